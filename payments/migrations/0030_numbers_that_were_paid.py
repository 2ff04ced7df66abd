"""A request that our books had lost may have gone to another number. Its payment records the number that was paid."""

from django.db import migrations

TRIGGER = """
CREATE OR REPLACE TRIGGER attempt_is_fixed AFTER UPDATE OF transaction_id, settlement_id, number, kind,
        originator_conversation_id, token_hash, amount, phone_number, opened_at ON payments_attempt
    FOR EACH ROW WHEN (
        (OLD.transaction_id, OLD.settlement_id, OLD.number, OLD.kind, OLD.originator_conversation_id, OLD.token_hash,
         OLD.amount, OLD.phone_number, OLD.opened_at) IS DISTINCT FROM
        (NEW.transaction_id, NEW.settlement_id, NEW.number, NEW.kind, NEW.originator_conversation_id, NEW.token_hash,
         NEW.amount, {number}, NEW.opened_at))
    EXECUTE FUNCTION kasoko_refuse('What an attempt sends, and to whom, is not changed.');
"""
# M-Pesa had the id before we sent it, or we asked before we sent it.
PAID_NUMBER = """CASE WHEN OLD.state <> 'PAID' AND NEW.state = 'PAID'
            AND (OLD.known_at IS NOT NULL OR OLD.asked_first_at IS NOT NULL) THEN OLD.phone_number
            ELSE NEW.phone_number END"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0029_supposed_requests")]

    operations = [
        migrations.RunSQL(TRIGGER.format(number=PAID_NUMBER), TRIGGER.format(number="NEW.phone_number")),
    ]
