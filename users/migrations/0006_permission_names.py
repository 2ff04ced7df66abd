"""Plain display names of the console's permissions. Codenames stay, so roles and people keep their permissions."""

from django.db import migrations

from users import roles


def rename_permissions(apps, schema_editor):
    """Update the names only. An operator may have changed the roles' permissions, and they stay as they are."""
    permissions = apps.get_model("auth", "Permission").objects.filter(
        content_type__app_label="users", content_type__model="customuser"
    )
    for codename, name in roles.PERMISSIONS.items():
        permissions.filter(codename=codename).update(name=name)


class Migration(migrations.Migration):
    dependencies = [("users", "0005_decide_recovery")]

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
                    ("resolve_market", "Resolve, void, withdraw and undo a market, or scratch an outcome"),
                    ("approve_resolution", "Approve another person's proposal for a market"),
                    ("answer_dispute", "Answer, uphold or reject members' disputes"),
                    ("decide_recovery", "Set off or write off members' debts"),
                ],
                "verbose_name": "member",
            },
        ),
        migrations.RunPython(rename_permissions, migrations.RunPython.noop),
    ]
