"""The permission to create and change markets, which the role of operators gets.

The role loses the permissions of Django's forms for markets, because pages of the console replace the forms. Other roles
stay as they are.
"""

from django.db import migrations

CODENAME, NAME = "run_market", "Create and change markets, suspend and resume betting, close a market"


def grant(apps, schema_editor):
    content_types = apps.get_model("contenttypes", "ContentType").objects
    member_model, _ = content_types.get_or_create(app_label="users", model="customuser")
    permission, _ = apps.get_model("auth", "Permission").objects.update_or_create(
        content_type=member_model, codename=CODENAME, defaults={"name": NAME}
    )
    for role in apps.get_model("auth", "Group").objects.filter(name="operator"):
        role.permissions.add(permission)
        role.permissions.remove(*role.permissions.filter(content_type__app_label="markets"))


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("users", "0010_enrolment_codes"),
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
                    (CODENAME, NAME),
                    ("resolve_market", "Resolve, void, withdraw and undo a market, or scratch an outcome"),
                    ("approve_resolution", "Approve another person's proposal for a market"),
                    ("answer_dispute", "Answer, uphold or reject members' disputes"),
                    ("decide_recovery", "Set off or write off members' debts"),
                ],
                "verbose_name": "member",
            },
        ),
        migrations.RunPython(grant, migrations.RunPython.noop),
    ]
