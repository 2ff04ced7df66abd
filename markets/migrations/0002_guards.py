"""Triggers and constraints for the rules about markets and bets.

The transition pairs are those of Market.TRANSITIONS; a test tries every pair against this trigger.
"""

from django.db import migrations

GUARDS = """
-- Two guards that every money table uses. Arguments: a sentence | a column and the pairs it may move by.
CREATE FUNCTION kasoko_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END $$;

CREATE FUNCTION kasoko_guard_moves() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    move text := (to_jsonb(OLD) ->> TG_ARGV[0]) || '>' || (to_jsonb(NEW) ->> TG_ARGV[0]);
BEGIN
    IF NOT move = ANY (string_to_array(TG_ARGV[1], ' ')) THEN
        RAISE EXCEPTION '% % cannot move %', TG_TABLE_NAME, NEW.id, move
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;

-- Markets.
CREATE TRIGGER market_begins_open BEFORE INSERT ON markets_market
    FOR EACH ROW WHEN (NEW.status <> 'OPEN') EXECUTE FUNCTION kasoko_refuse('A market begins OPEN.');
CREATE TRIGGER market_moves BEFORE UPDATE OF status ON markets_market
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION kasoko_guard_moves('status',
        'OPEN>CLOSED CLOSED>OPEN CLOSED>RESOLVED RESOLVED>SETTLED RESOLVED>VOID RESOLVED>CLOSED SETTLED>CLOSED');
CREATE TRIGGER market_stays BEFORE DELETE ON markets_market
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Markets are not deleted; void them.');
CREATE TRIGGER market_is_not_truncated BEFORE TRUNCATE ON markets_market
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Markets are not deleted; void them.');

-- A bet's outcome, and a market's resolved one, are outcomes of that market.
ALTER TABLE markets_bet ADD CONSTRAINT bet_outcome_is_its_markets
    FOREIGN KEY (market_id, outcome) REFERENCES markets_outcome (market_id, name);
ALTER TABLE markets_market ADD CONSTRAINT resolved_outcome_is_the_markets
    FOREIGN KEY (id, resolved_outcome) REFERENCES markets_outcome (market_id, name);

-- Room in each page for the result that settlement writes once: no index of the bet is touched then.
ALTER TABLE markets_bet SET (fillfactor = 45);

-- The advisory lock queues fairly, where a stream of bets that share the row's own lock would keep a resolve waiting;
-- 504403158265495552 is 7 << 56, as in markets.locks.market_lock.
-- FOR SHARE and a resolve's FOR NO KEY UPDATE exclude each other, so a bet is in before the pool is counted or not at
-- all; bets on one market do not wait for each other.
CREATE FUNCTION markets_require_open() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    market record;
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
    RETURN NULL;
END $$;
CREATE TRIGGER bet_needs_an_open_market AFTER INSERT ON markets_bet REFERENCING NEW TABLE AS placed
    FOR EACH STATEMENT EXECUTE FUNCTION markets_require_open();

CREATE TRIGGER bet_begins_pending BEFORE INSERT ON markets_bet
    FOR EACH ROW WHEN (NEW.result <> 'PENDING' OR NEW.payout <> 0)
    EXECUTE FUNCTION kasoko_refuse('A bet begins PENDING, without a dividend.');
-- After the update, here and in payments: a trigger before it has PostgreSQL lock each row first, which costs as much WAL
-- as the update itself.
CREATE TRIGGER bet_is_fixed AFTER UPDATE OF user_id, market_id, outcome, amount, placed_at, public_id, client_ref
    ON markets_bet FOR EACH ROW
    WHEN ((OLD.user_id, OLD.market_id, OLD.outcome, OLD.amount, OLD.placed_at, OLD.public_id, OLD.client_ref)
        IS DISTINCT FROM
        (NEW.user_id, NEW.market_id, NEW.outcome, NEW.amount, NEW.placed_at, NEW.public_id, NEW.client_ref))
    EXECUTE FUNCTION kasoko_refuse('A placed bet is not changed.');
CREATE TRIGGER bet_verdict_stands AFTER UPDATE OF result, payout ON markets_bet
    FOR EACH ROW WHEN (OLD.result <> 'PENDING' AND NEW.result <> 'PENDING'
        AND (OLD.result, OLD.payout) IS DISTINCT FROM (NEW.result, NEW.payout))
    EXECUTE FUNCTION kasoko_refuse('The verdict on a bet is not changed; only an undo takes it back to PENDING.');
CREATE TRIGGER bet_stays BEFORE DELETE ON markets_bet
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Bets are not deleted; void the market.');
CREATE TRIGGER bet_is_not_truncated BEFORE TRUNCATE ON markets_bet
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Bets are not deleted; void the market.');
"""


class Migration(migrations.Migration):
    dependencies = [("markets", "0001_initial")]
    operations = [migrations.RunSQL(GUARDS, migrations.RunSQL.noop)]
