"""Scratched outcomes, and the time at which an event really ended.

A scratched outcome takes no bets, also by plain SQL, and is never restored.
"""

from django.db import migrations, models

GUARDS = """
CREATE OR REPLACE FUNCTION markets_require_open() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    market record;
    scratched record;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(504403158265495552 + market_id)
        FROM (SELECT DISTINCT market_id FROM placed ORDER BY market_id) m;
    FOR market IN
        SELECT id, status FROM markets_market WHERE id IN (SELECT DISTINCT market_id FROM placed) ORDER BY id FOR SHARE
    LOOP
        IF market.status <> 'OPEN' THEN
            RAISE EXCEPTION 'Market % is % and takes no bets', market.id, market.status
                USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
        END IF;
    END LOOP;
    SELECT o.market_id, o.name INTO scratched FROM markets_outcome o
        WHERE o.scratched_at IS NOT NULL AND (o.market_id, o.name) IN (SELECT market_id, outcome FROM placed) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'Outcome % of market % is scratched and takes no bets', scratched.name, scratched.market_id
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER scratched_stays_scratched BEFORE UPDATE OF scratched_at ON markets_outcome
    FOR EACH ROW WHEN (OLD.scratched_at IS NOT NULL AND OLD.scratched_at IS DISTINCT FROM NEW.scratched_at)
    EXECUTE FUNCTION kasoko_refuse('A scratched outcome is not put back: its stakes have been returned.');
"""


class Migration(migrations.Migration):
    dependencies = [
        ("markets", "0002_guards"),
    ]

    operations = [
        migrations.AddField(
            model_name="market",
            name="effective_close_at",
            field=models.DateTimeField(
                blank=True, help_text="When the event really ended: later bets get their stakes back.", null=True
            ),
        ),
        migrations.AddField(
            model_name="outcome",
            name="scratched_at",
            field=models.DateTimeField(blank=True, help_text="Since then it takes no bets and cannot win.", null=True),
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
