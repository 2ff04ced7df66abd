"""API keys of machines, and the permission to make them, which the role of approvers gets."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

CODENAME, NAME = "make_api_keys", "Make and revoke API keys of machines"


def grant(apps, schema_editor):
    content_types = apps.get_model("contenttypes", "ContentType").objects
    member_model, _ = content_types.get_or_create(app_label="users", model="customuser")
    permission, _ = apps.get_model("auth", "Permission").objects.update_or_create(
        content_type=member_model, codename=CODENAME, defaults={"name": NAME}
    )
    for role in apps.get_model("auth", "Group").objects.filter(name="approver"):
        role.permissions.add(permission)


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("users", "0012_proposals"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="customuser",
            options={
                "permissions": [
                    ("view_console", "See the home page, markets, payouts and payouts in doubt, with phones masked"),
                    ("view_ledger", "See accounts, transfers and the trial balance"),
                    ("export_books", "Download accounts and balances"),
                    ("view_audit", "See and verify the audit trail"),
                    ("view_members", "See members' wallets, bets and statements, with phones masked"),
                    ("open_phone", "See a member's whole phone number, which is recorded"),
                    ("note_member", "Write notes about a member"),
                    ("act_on_payouts", "Retry, ask about, hold, release payouts, or pay them to the wallet"),
                    ("decide_payout", "Decide the outcome of a held payout from M-Pesa's statement"),
                    ("switch_sending", "Stop and start the sending of payouts"),
                    ("run_market", "Create and change markets, suspend and resume betting, close a market"),
                    ("resolve_market", "Resolve, void, withdraw and undo a market, or scratch an outcome"),
                    ("approve_resolution", "Approve another person's proposal for a market"),
                    ("answer_dispute", "Answer, uphold or reject members' disputes"),
                    ("decide_recovery", "Set off or write off members' debts"),
                    (CODENAME, NAME),
                ],
                "verbose_name": "member",
            },
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=80)),
                ("shown", models.CharField(max_length=16)),
                ("digest", models.CharField(max_length=64, unique=True)),
                ("acts", models.JSONField()),
                ("addresses", models.JSONField()),
                ("made_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("revoked_at", models.DateTimeField(null=True)),
                ("last_used_at", models.DateTimeField(null=True)),
                (
                    "made_by",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="api_keys",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
        ),
        migrations.RunPython(grant, migrations.RunPython.noop),
    ]
