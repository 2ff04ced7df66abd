"""The receiver of a payout, holds by a person, and ids that fit M-Pesa."""

from django.conf import settings
from django.contrib.postgres.operations import AddConstraintNotValid
from django.db import migrations, models

# Only two people change the number of a payout, and never while one of its requests may still be paid.
GUARD = """
CREATE OR REPLACE FUNCTION payments_guard_receiver() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = NEW.id
               AND a.state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT'))
       OR NOT EXISTS (SELECT FROM payments_verdict v WHERE v.transaction_id = NEW.id AND v.kind = 'REISSUE'
                      AND v.confirmed AND v.phone_number = NEW.reissued_to) THEN
        RAISE EXCEPTION 'Two people re-issue transaction %, and only while no request of it is open.', NEW.id
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER receiver_is_guarded AFTER UPDATE OF reissued_to ON payments_transaction
    FOR EACH ROW WHEN (OLD.reissued_to IS DISTINCT FROM NEW.reissued_to) EXECUTE FUNCTION payments_guard_receiver();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0019_restores"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name="transaction",
            name="held_by_person",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="A person holds it. Only a release or a decision ends the hold.",
            ),
        ),
        migrations.AddField(
            model_name="transaction",
            name="reissued_to",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="The new number that two people confirmed.",
                max_length=12,
            ),
        ),
        migrations.AddField(
            model_name="verdict",
            name="kind",
            field=models.CharField(
                choices=[("RESULT", "Result"), ("REISSUE", "Reissue")],
                db_default="RESULT",
                default="RESULT",
                max_length=10,
            ),
        ),
        migrations.AddField(
            model_name="verdict",
            name="phone_number",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="The new number, if the kind is REISSUE.",
                max_length=12,
            ),
        ),
        migrations.AlterField(
            model_name="ledgeraccount",
            name="kind",
            field=models.CharField(
                choices=[
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
                ],
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="ledgerday",
            name="kind",
            field=models.CharField(
                choices=[
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
                ],
                max_length=20,
            ),
        ),
        AddConstraintNotValid(
            model_name="attempt",
            constraint=models.CheckConstraint(
                condition=models.Q(("originator_conversation_id__regex", "^[A-Za-z0-9-]{1,36}$")),
                name="request_id_fits_mpesa",
            ),
        ),
        AddConstraintNotValid(
            model_name="transaction",
            constraint=models.CheckConstraint(
                condition=models.Q(("external_ref__regex", "^[A-Za-z0-9-]{1,32}$")), name="reference_fits_mpesa"
            ),
        ),
        migrations.RunSQL(GUARD, migrations.RunSQL.noop),
    ]
