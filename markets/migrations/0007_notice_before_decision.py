"""No decision but a void while members may take back stakes, also by plain SQL."""

from django.db import migrations

# The decision's settlement is written before the market's state.
GUARD = """
CREATE FUNCTION markets_guard_notice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.take_back_until > clock_timestamp() AND NOT EXISTS (
            SELECT FROM payments_settlement s
            WHERE s.market_id = NEW.id AND s.rule = 'VOID' AND s.state = 'PENDING') THEN
        RAISE EXCEPTION 'Members may take back stakes of market % until %: it is only voided', NEW.id, NEW.take_back_until
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER notice_ends_before_a_decision BEFORE UPDATE OF status ON markets_market
    FOR EACH ROW WHEN (OLD.status <> 'RESOLVED' AND NEW.status = 'RESOLVED' AND NEW.take_back_until IS NOT NULL)
    EXECUTE FUNCTION markets_guard_notice();
"""
UNGUARD = "DROP TRIGGER notice_ends_before_a_decision ON markets_market; DROP FUNCTION markets_guard_notice();"


class Migration(migrations.Migration):
    dependencies = [("markets", "0006_terms")]
    operations = [migrations.RunSQL(GUARD, UNGUARD)]
