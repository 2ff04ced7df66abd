from django.db import migrations

from users import roles


def install_roles(apps, schema_editor):
    roles.install(
        apps.get_model("auth", "Group"),
        apps.get_model("auth", "Permission"),
        apps.get_model("contenttypes", "ContentType"),
    )


class Migration(migrations.Migration):
    dependencies = [("users", "0004_roles")]

    operations = [
        migrations.AlterModelOptions(
            name="customuser",
            options={
                "permissions": [
                    ("view_console", "See the home page, markets, payouts and limbo, with phones masked"),
                    ("view_ledger", "See accounts, transfers and the trial balance"),
                    ("export_books", "Download accounts and balances"),
                    ("view_audit", "See and verify the audit trail"),
                    ("view_members", "See members' wallets, bets and statements, with phones masked"),
                    ("open_phone", "See a member's whole phone number, which is recorded"),
                    ("note_member", "Write notes about a member"),
                    ("act_on_payouts", "Retry, ask about, hold, release payouts, or pay them to the wallet"),
                    ("decide_payout", "Say what became of a held payout, by M-Pesa's statement"),
                    ("switch_sending", "Stop and start all sending"),
                    ("resolve_market", "Resolve, void, withdraw and undo a market, scratch an outcome"),
                    ("approve_resolution", "Approve what another person proposed for a market"),
                    ("answer_dispute", "Answer, uphold and reject members' disputes"),
                    ("decide_recovery", "Set off or write off what members owe back"),
                ],
                "verbose_name": "member",
            },
        ),
        migrations.RunPython(install_roles, migrations.RunPython.noop),
    ]
