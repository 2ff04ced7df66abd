"""The withdrawal of a scratch that found its books wrong: its outcome is put back, and may be scratched again."""

from django.db import migrations, models

GUARDS = """
CREATE OR REPLACE FUNCTION kasoko_guard_scratched() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.scratched_at IS NOT NULL OR NOT EXISTS (
        SELECT FROM payments_settlement s WHERE s.market_id = NEW.market_id AND s.scratched = NEW.name
            AND s.state IN ('WITHDRAWN', 'UNDONE')
    ) OR EXISTS (
        SELECT FROM payments_settlement s WHERE s.market_id = NEW.market_id AND s.scratched = NEW.name
            AND s.state NOT IN ('WITHDRAWN', 'UNDONE')
    ) THEN
        RAISE EXCEPTION 'A scratched outcome is not put back: its stakes have been returned.'
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER scratched_stays_scratched BEFORE UPDATE OF scratched_at ON markets_outcome
    FOR EACH ROW WHEN (OLD.scratched_at IS NOT NULL AND OLD.scratched_at IS DISTINCT FROM NEW.scratched_at)
    EXECUTE FUNCTION kasoko_guard_scratched();
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0030_numbers_that_were_paid"), ("markets", "0005_public_id")]
    operations = [
        migrations.RemoveConstraint(model_name="settlement", name="outcome_scratched_once"),
        migrations.AddConstraint(
            model_name="settlement",
            constraint=models.UniqueConstraint(
                condition=models.Q(
                    ("rule", "SCRATCH"), models.Q(("state__in", ["WITHDRAWN", "UNDONE"]), _negated=True)
                ),
                fields=("market", "scratched"),
                name="outcome_scratched_once",
            ),
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
