"""Orphans: requests that M-Pesa reports and our books lost, the account `suspense`, and attempts found again."""

from django.db import migrations, models

KINDS = [
    ("wallet", "Wallet"),
    ("pool", "Pool"),
    ("payable", "Payable"),
    ("in_flight", "In Flight"),
    ("fee_income", "Fee Income"),
    ("opening", "Opening"),
    ("tax_payable", "Tax Payable"),
    ("mpesa_charges_paid", "Mpesa Charges Paid"),
    ("mpesa_utility", "Mpesa Utility"),
    ("mpesa_paybill", "Mpesa Paybill"),
    ("charge_expense", "Charge Expense"),
    ("receivable", "Receivable"),
    ("bad_debt", "Bad Debt"),
    ("misdirected", "Misdirected"),
    ("suspense", "Suspense"),
]
# The transition pairs are those of Orphan.TRANSITIONS; a test tries every pair against this trigger.
GUARDS = """
CREATE OR REPLACE TRIGGER attempt_begins BEFORE INSERT ON payments_attempt
    FOR EACH ROW WHEN (NEW.state <> 'SENDING' AND NOT (NEW.kind = 'found' AND NEW.state IN ('IN_DOUBT', 'FAILED')))
    EXECUTE FUNCTION kasoko_refuse('An attempt begins SENDING. One that was found again begins IN_DOUBT or FAILED.');
CREATE TRIGGER orphan_begins BEFORE INSERT ON payments_orphan
    FOR EACH ROW WHEN (NEW.state <> 'WAITING') EXECUTE FUNCTION kasoko_refuse('An orphan begins WAITING.');
CREATE TRIGGER orphan_moves AFTER UPDATE OF state ON payments_orphan
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state',
        'WAITING>CLAIMED WAITING>SUSPENSE WAITING>NOT_PAID SUSPENSE>CLAIMED NOT_PAID>WAITING');
CREATE TRIGGER orphan_is_fixed AFTER UPDATE OF originator_conversation_id, external_ref, token_hash, first_seen_at
    ON payments_orphan FOR EACH ROW
    WHEN ((OLD.originator_conversation_id, OLD.external_ref, OLD.token_hash, OLD.first_seen_at) IS DISTINCT FROM
        (NEW.originator_conversation_id, NEW.external_ref, NEW.token_hash, NEW.first_seen_at))
    EXECUTE FUNCTION kasoko_refuse('The id of an orphan is not changed.');
CREATE TRIGGER orphan_stays BEFORE DELETE ON payments_orphan
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Orphans are not deleted.');
CREATE TRIGGER orphan_is_not_truncated BEFORE TRUNCATE ON payments_orphan
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Orphans are not deleted.');
"""
UNGUARDED = """
CREATE OR REPLACE TRIGGER attempt_begins BEFORE INSERT ON payments_attempt
    FOR EACH ROW WHEN (NEW.state <> 'SENDING') EXECUTE FUNCTION kasoko_refuse('An attempt begins SENDING.');
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0021_outcomes_of_requests")]
    operations = [
        migrations.AddField(
            model_name="attempt",
            name="paid_amount",
            field=models.DecimalField(
                decimal_places=2, help_text="What M-Pesa paid, if it is not the amount.", max_digits=16, null=True
            ),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="kind",
            field=models.CharField(
                choices=[("b2c", "B2C"), ("manual", "Manual"), ("found", "Found")], default="b2c", max_length=6
            ),
        ),
        migrations.AlterField(
            model_name="ledgeraccount", name="kind", field=models.CharField(choices=KINDS, max_length=20)
        ),
        migrations.AlterField(
            model_name="ledgerday", name="kind", field=models.CharField(choices=KINDS, max_length=20)
        ),
        migrations.CreateModel(
            name="Orphan",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("originator_conversation_id", models.CharField(max_length=36)),
                (
                    "external_ref",
                    models.CharField(help_text="The reference of the payout that the request paid.", max_length=36),
                ),
                ("token_hash", models.CharField(max_length=64)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("WAITING", "Waiting"),
                            ("CLAIMED", "Claimed"),
                            ("SUSPENSE", "Suspense"),
                            ("NOT_PAID", "Not Paid"),
                        ],
                        default="WAITING",
                        max_length=10,
                    ),
                ),
                ("amount", models.DecimalField(decimal_places=2, max_digits=16, null=True)),
                ("receipt", models.CharField(blank=True, max_length=64)),
                ("phone_visible", models.CharField(blank=True, max_length=20)),
                ("first_seen_at", models.DateTimeField()),
                ("next_query_at", models.DateTimeField(help_text="When the next status query is due.", null=True)),
                ("queries", models.PositiveIntegerField(default=0, help_text="Status queries asked so far.")),
                (
                    "stopped_at",
                    models.DateTimeField(help_text="When it stopped the sending. It does so once only.", null=True),
                ),
                ("closed_at", models.DateTimeField(null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("originator_conversation_id",), name="orphan_once_an_id"),
                    models.UniqueConstraint(fields=("token_hash",), name="orphan_token_once"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("state", "SUSPENSE"), _negated=True),
                            models.Q(("amount__gt", 0), models.Q(("receipt", ""), _negated=True)),
                            _connector="OR",
                        ),
                        name="orphan_in_suspense_has_amount_and_receipt",
                    ),
                ],
                "indexes": [
                    models.Index(
                        condition=models.Q(("state__in", ["WAITING", "SUSPENSE"])),
                        fields=["external_ref"],
                        name="orphan_by_reference",
                    )
                ],
            },
        ),
        migrations.RunSQL(GUARDS, UNGUARDED),
    ]
