"""What Python promises about money, held by PostgreSQL.

The transition pairs are those of the TRANSITIONS tables in payments/models.py; a test tries every pair against them.
"""

from django.db import migrations

GUARDS = """
-- The ledger is append-only.
CREATE TRIGGER transfer_stays BEFORE UPDATE OR DELETE ON payments_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Transfers are not changed; correct them by further transfers.');
CREATE TRIGGER transfer_is_not_truncated BEFORE TRUNCATE ON payments_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Transfers are not changed; correct them by further transfers.');
CREATE TRIGGER account_stays BEFORE UPDATE OR DELETE ON payments_ledgeraccount
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Ledger accounts are not changed.');
CREATE TRIGGER account_is_not_truncated BEFORE TRUNCATE ON payments_ledgeraccount
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Ledger accounts are not changed.');

-- What a transfer names is there. Accounts and transactions are never removed, so it is enough to look once, for all rows
-- of a statement together; foreign keys would look three times a row, and lock the accounts that all transfers share.
-- Nested loops over indexes, here and below: a session keeps one plan for all sizes, and the plan that is best for ten
-- thousand transfers reads whole tables for one.
CREATE FUNCTION payments_require_what_is_named() RETURNS trigger LANGUAGE plpgsql
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF EXISTS (SELECT FROM (SELECT debit_id AS id FROM booked UNION SELECT credit_id FROM booked) named
               LEFT JOIN payments_ledgeraccount a ON a.id = named.id WHERE a.id IS NULL)
       OR EXISTS (SELECT FROM booked LEFT JOIN payments_transaction t ON t.id = booked.transaction_id
                  WHERE booked.transaction_id IS NOT NULL AND t.id IS NULL) THEN
        RAISE EXCEPTION 'A transfer names an account or a transaction that is not there.'
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
-- Before wallets are locked: triggers of one kind fire in the order of their names.
CREATE TRIGGER transfer_has_its_accounts AFTER INSERT ON payments_transfer REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT EXECUTE FUNCTION payments_require_what_is_named();

-- A wallet's cached balance follows its transfers. Rows are locked by id, and only those whose balance moves; they have
-- room in their pages for it, so that no index of the member is touched.
ALTER TABLE users_customuser SET (fillfactor = 50);
CREATE FUNCTION payments_move_wallets() RETURNS trigger LANGUAGE plpgsql
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    WITH moved AS (
        SELECT account_id, sum(delta) AS delta
        FROM (SELECT credit_id AS account_id, amount AS delta FROM booked
              UNION ALL SELECT debit_id, -amount FROM booked) side
        GROUP BY account_id HAVING sum(delta) <> 0
    ), locked AS (
        SELECT u.id, moved.delta FROM moved
        JOIN payments_ledgeraccount a ON a.id = moved.account_id AND a.kind = 'wallet'
        JOIN users_customuser u ON u.id = a.user_id
        ORDER BY u.id FOR NO KEY UPDATE OF u
    )
    UPDATE users_customuser u SET balance = u.balance + locked.delta FROM locked WHERE u.id = locked.id;
    RETURN NULL;
END $$;
-- At depth 0 only: a transfer that a trigger books (below) stands for a balance that was moved already.
CREATE TRIGGER transfer_moves_wallets AFTER INSERT ON payments_transfer REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION payments_move_wallets();

-- A balance assigned from outside becomes a transfer against `opening`, so that the books always close.
CREATE FUNCTION payments_book_assigned_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    delta numeric := NEW.balance;
    wallet bigint;
    opening bigint;
    number bigint;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        delta := NEW.balance - OLD.balance;
    END IF;
    IF current_setting('kasoko.production', true) = 'on' THEN
        RAISE EXCEPTION 'A balance is not assigned in production: money moves by transfers.'
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    INSERT INTO payments_ledgeraccount (code, kind, user_id) VALUES ('wallet:' || NEW.id, 'wallet', NEW.id)
        ON CONFLICT (code) DO NOTHING;
    INSERT INTO payments_ledgeraccount (code, kind) VALUES ('opening', 'opening') ON CONFLICT (code) DO NOTHING;
    SELECT id INTO STRICT wallet FROM payments_ledgeraccount WHERE code = 'wallet:' || NEW.id;
    SELECT id INTO STRICT opening FROM payments_ledgeraccount WHERE code = 'opening';
    -- The member's row is locked, so no two assignments draw one number.
    SELECT count(*) + 1 INTO number FROM payments_transfer
        WHERE code = 'opening' AND (debit_id = wallet OR credit_id = wallet);
    INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
    VALUES ('opening:' || NEW.id || ':' || number,
        CASE WHEN delta > 0 THEN opening ELSE wallet END, CASE WHEN delta > 0 THEN wallet ELSE opening END,
        abs(delta), 'opening', clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER assigned_balance_is_booked AFTER UPDATE OF balance ON users_customuser
    FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND OLD.balance IS DISTINCT FROM NEW.balance)
    EXECUTE FUNCTION payments_book_assigned_balance();
CREATE TRIGGER first_balance_is_booked AFTER INSERT ON users_customuser
    FOR EACH ROW WHEN (NEW.balance <> 0) EXECUTE FUNCTION payments_book_assigned_balance();

-- In production every bet's stake is in the ledger by the time its transaction commits.
CREATE FUNCTION payments_require_booked_stake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM payments_transfer WHERE key = 'stake:' || NEW.id) THEN
        RAISE EXCEPTION 'Bet % has no stake in the ledger: in production bets are placed by the service.', NEW.id
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER bet_is_booked AFTER INSERT ON markets_bet DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (current_setting('kasoko.production', true) = 'on')
    EXECUTE FUNCTION payments_require_booked_stake();

-- Settlements.
CREATE TRIGGER settlement_begins_pending BEFORE INSERT ON payments_settlement
    FOR EACH ROW WHEN (NEW.state <> 'PENDING') EXECUTE FUNCTION kasoko_refuse('A settlement begins PENDING.');
CREATE TRIGGER settlement_moves BEFORE UPDATE OF state ON payments_settlement
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state',
        'PENDING>DIVIDING PENDING>WITHDRAWN DIVIDING>SETTLED SETTLED>UNDONE');
CREATE TRIGGER settlement_is_frozen BEFORE UPDATE OF market_id, number, rule, weights, fee_pct, protect_stake,
        bet_count, pool, winning_pool, fee, net, refund, funds ON payments_settlement
    FOR EACH ROW WHEN (
        (OLD.market_id, OLD.number, OLD.rule, OLD.weights, OLD.fee_pct, OLD.protect_stake)
            IS DISTINCT FROM (NEW.market_id, NEW.number, NEW.rule, NEW.weights, NEW.fee_pct, NEW.protect_stake)
        OR (OLD.state <> 'PENDING' AND
            (OLD.bet_count, OLD.pool, OLD.winning_pool, OLD.fee, OLD.net, OLD.refund, OLD.funds) IS DISTINCT FROM
            (NEW.bet_count, NEW.pool, NEW.winning_pool, NEW.fee, NEW.net, NEW.refund, NEW.funds)))
    EXECUTE FUNCTION kasoko_refuse('The totals of a settlement are frozen.');
CREATE TRIGGER settlement_stays BEFORE DELETE ON payments_settlement
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Settlements are not deleted.');
CREATE TRIGGER settlement_is_not_truncated BEFORE TRUNCATE ON payments_settlement
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Settlements are not deleted.');

-- Transactions.
CREATE FUNCTION payments_require_settlement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM (SELECT DISTINCT settlement_id AS id FROM made WHERE settlement_id IS NOT NULL) named
               WHERE NOT EXISTS (SELECT FROM payments_settlement s WHERE s.id = named.id)) THEN
        RAISE EXCEPTION 'A transaction names a settlement that is not there.'
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transaction_has_its_settlement AFTER INSERT ON payments_transaction REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION payments_require_settlement();
CREATE TRIGGER transaction_begins BEFORE INSERT ON payments_transaction
    FOR EACH ROW WHEN (NEW.status <> 'PENDING' AND NOT (NEW.status = 'COMPLETED' AND NEW.destination = 'wallet'))
    EXECUTE FUNCTION kasoko_refuse('A transaction begins PENDING, or COMPLETED where it goes to a wallet.');
CREATE TRIGGER transaction_moves AFTER UPDATE OF status ON payments_transaction
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION kasoko_guard_moves('status',
        'PENDING>PROCESSING PENDING>HELD PENDING>COMPLETED PENDING>CANCELLED PROCESSING>COMPLETED PROCESSING>FAILED'
        ' PROCESSING>HELD PROCESSING>PENDING HELD>PENDING HELD>FAILED HELD>COMPLETED HELD>CANCELLED FAILED>PENDING'
        ' FAILED>COMPLETED');
CREATE TRIGGER transaction_is_fixed AFTER UPDATE OF user_id, settlement_id, type, amount, destination, tranche,
        external_ref, phone_number, public_id, created_at ON payments_transaction
    FOR EACH ROW WHEN (
        (OLD.user_id, OLD.settlement_id, OLD.type, OLD.amount, OLD.destination, OLD.tranche, OLD.external_ref,
         OLD.phone_number, OLD.public_id, OLD.created_at) IS DISTINCT FROM
        (NEW.user_id, NEW.settlement_id, NEW.type, NEW.amount, NEW.destination, NEW.tranche, NEW.external_ref,
         NEW.phone_number, NEW.public_id, NEW.created_at))
    EXECUTE FUNCTION kasoko_refuse('Whom a transaction pays, how much and where is not changed.');
CREATE TRIGGER transaction_stays BEFORE DELETE ON payments_transaction
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Transactions are not deleted.');
CREATE TRIGGER transaction_is_not_truncated BEFORE TRUNCATE ON payments_transaction
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Transactions are not deleted.');

-- Attempts.
CREATE TRIGGER attempt_begins BEFORE INSERT ON payments_attempt
    FOR EACH ROW WHEN (NEW.state <> 'SENDING') EXECUTE FUNCTION kasoko_refuse('An attempt begins SENDING.');
CREATE TRIGGER attempt_moves AFTER UPDATE OF state ON payments_attempt
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state',
        'SENDING>WAITING SENDING>ACCEPTED SENDING>IN_DOUBT SENDING>PAID SENDING>FAILED WAITING>SENDING'
        ' WAITING>IN_DOUBT WAITING>PAID WAITING>FAILED ACCEPTED>IN_DOUBT ACCEPTED>PAID ACCEPTED>FAILED'
        ' IN_DOUBT>SENDING IN_DOUBT>PAID IN_DOUBT>FAILED FAILED>PAID');
CREATE TRIGGER attempt_is_fixed AFTER UPDATE OF transaction_id, settlement_id, number, kind,
        originator_conversation_id, token_hash, amount, phone_number, opened_at ON payments_attempt
    FOR EACH ROW WHEN (
        (OLD.transaction_id, OLD.settlement_id, OLD.number, OLD.kind, OLD.originator_conversation_id, OLD.token_hash,
         OLD.amount, OLD.phone_number, OLD.opened_at) IS DISTINCT FROM
        (NEW.transaction_id, NEW.settlement_id, NEW.number, NEW.kind, NEW.originator_conversation_id, NEW.token_hash,
         NEW.amount, NEW.phone_number, NEW.opened_at))
    EXECUTE FUNCTION kasoko_refuse('What an attempt sends, and to whom, is not changed.');
CREATE TRIGGER attempt_stays BEFORE DELETE ON payments_attempt
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Attempts are not deleted.');
CREATE TRIGGER attempt_is_not_truncated BEFORE TRUNCATE ON payments_attempt
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Attempts are not deleted.');

-- What strangers told us is kept as they told it; a parked one may find its attempt later.
CREATE TRIGGER callback_is_fixed AFTER UPDATE OF kind, attempt_id, query_id, originator_conversation_id, body, digest,
        received_at, source_ip, trusted ON payments_callback
    FOR EACH ROW WHEN (
        (OLD.kind, coalesce(OLD.attempt_id, NEW.attempt_id), OLD.query_id, OLD.originator_conversation_id, OLD.body,
         OLD.digest, OLD.received_at, OLD.source_ip, OLD.trusted) IS DISTINCT FROM
        (NEW.kind, NEW.attempt_id, NEW.query_id, NEW.originator_conversation_id, NEW.body,
         NEW.digest, NEW.received_at, NEW.source_ip, NEW.trusted))
    EXECUTE FUNCTION kasoko_refuse('A stored callback is not changed.');
CREATE TRIGGER callback_stays BEFORE DELETE ON payments_callback
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Callbacks are not deleted.');
CREATE TRIGGER callback_is_not_truncated BEFORE TRUNCATE ON payments_callback
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Callbacks are not deleted.');

-- A row for each breaker, so that the console shows them all; one that is missing is made when it first opens.
INSERT INTO payments_breaker (cause, probes, reason)
    SELECT unnest(ARRAY['switch', 'no_float', 'credentials', 'throttle', 'network', 'doubt', 'failures']), 0, '';
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0001_initial"), ("markets", "0002_guards"), ("users", "0001_initial")]
    operations = [migrations.RunSQL(GUARDS, migrations.RunSQL.noop)]
