-- The invariants of the money: 22 statements that must each return no row.
--
-- Run them all:  psql "$DATABASE_URL" -f payments/ledger/invariants.sql
-- Each row that a statement returns breaks the invariant, and its text says how. The column is named after the
-- invariant. Amounts are shillings. Below each heading stand the invariant's title, as in the console, and an
-- explanation of the comparison.
--
-- A transfer debits one account and credits another. So the sum of an account is its credits less its debits,
-- or the reverse for assets and expenses (receivable, mpesa_utility and others).


-- name: wallet_balances_are_their_transfers
-- A wallet's cached balance is the sum of its transfers
-- users_customuser.balance is a copy for speed. It must equal the credits less the debits of the member's wallet.
SELECT 'member ' || u.id || ' has ' || u.balance || ', transfers say ' || coalesce(w.total, 0)
    AS wallet_balances_are_their_transfers
FROM users_customuser u LEFT JOIN (
    SELECT a.user_id, sum(s.delta) AS total
    FROM payments_ledgeraccount a JOIN (
        SELECT credit_id AS account_id, amount AS delta FROM payments_transfer
        UNION ALL SELECT debit_id, -amount FROM payments_transfer) s ON s.account_id = a.id
    WHERE a.kind = 'wallet' GROUP BY a.user_id) w ON w.user_id = u.id
WHERE u.balance <> coalesce(w.total, 0);


-- name: pools_are_empty_after_settlement
-- A pool is empty after its settlement; during an undo it holds the money that has come back
-- A settled or void market has divided its whole pool. During an undo the pool holds the amounts taken back so far.
SELECT 'market ' || m.id || ' holds ' || sum(s.delta) || ', of an undo ' || coalesce(back.total, 0)
    || ' should have come back' AS pools_are_empty_after_settlement
FROM markets_market m JOIN payments_ledgeraccount a ON a.market_id = m.id AND a.kind = 'pool' JOIN (
    SELECT credit_id AS account_id, amount AS delta FROM payments_transfer
    UNION ALL SELECT debit_id, -amount FROM payments_transfer) s ON s.account_id = a.id
LEFT JOIN (SELECT u.market_id, sum(t.amount) AS total
    FROM payments_settlement u JOIN payments_transaction t ON t.settlement_id = u.id
    WHERE u.state = 'UNDOING' AND t.user_id <= u.last_user_id
    GROUP BY u.market_id) back ON back.market_id = m.id
WHERE m.status IN ('SETTLED', 'VOID')
GROUP BY m.id, back.total HAVING sum(s.delta) <> coalesce(back.total, 0);


-- name: undos_take_back_what_was_paid
-- An undo takes back each payout that it has reached, whole and once, and no other payout
-- An undo goes through the members by id. The transactions of members up to last_user_id have come back in full, and
-- those of later members have not come back at all.
SELECT 'settlement ' || s.id || ', ' || s.state || ': of transaction ' || t.id || ' over ' || t.amount || ', '
    || back.total || ' has come back' AS undos_take_back_what_was_paid
FROM payments_settlement s JOIN payments_transaction t ON t.settlement_id = s.id
JOIN LATERAL (SELECT coalesce(sum(f.amount), 0) AS total FROM payments_transfer f
    JOIN payments_ledgeraccount a ON a.id = f.credit_id AND a.kind = 'pool' AND a.market_id = s.market_id
    WHERE f.transaction_id = t.id AND f.code IN ('undo', 'reverse', 'recall')) back ON true
WHERE s.state IN ('UNDOING', 'UNDONE') AND back.total <>
    CASE WHEN s.state = 'UNDONE' OR t.user_id <= s.last_user_id THEN t.amount ELSE 0 END;


-- name: settlements_pay_stakes_less_fee
-- A settlement pays out its stakes less the fee
-- Stakes = pool + late refunds. Transactions = stakes less the fee. Dividends of the bets = the net pool + late refunds.
SELECT 'settlement ' || s.id || ': stakes ' || b.stakes || ', fee ' || s.fee || ', transactions '
    || coalesce(t.total, 0) || ', dividends ' || b.dividends AS settlements_pay_stakes_less_fee
FROM payments_settlement s
JOIN LATERAL (SELECT coalesce(sum(b.amount), 0) AS stakes, coalesce(sum(b.payout), 0) AS dividends
    FROM markets_bet b JOIN markets_outcome o ON o.market_id = b.market_id AND o.name = b.outcome
    WHERE b.market_id = s.market_id AND b.taken_back_at IS NULL
      AND CASE s.rule WHEN 'SCRATCH' THEN b.outcome = s.scratched ELSE o.scratched_at IS NULL END) b ON true
JOIN LATERAL (SELECT sum(amount) AS total FROM payments_transaction WHERE settlement_id = s.id) t ON true
WHERE s.state IN ('SETTLED', 'UNDOING') AND s.settled_at IS NOT NULL AND (b.stakes, coalesce(t.total, 0),
        CASE WHEN s.state = 'UNDOING' AND s.last_bet_id > 0 THEN s.net + s.late_refund ELSE b.dividends END)
    IS DISTINCT FROM (s.pool + s.late_refund, s.pool - s.fee + s.late_refund, s.net + s.late_refund);


-- name: members_are_paid_their_dividends
-- Each member's transactions of a settlement sum to their dividends
-- For each member of a settlement, the sum of the transactions equals the sum of the payouts of the member's bets.
SELECT 'settlement ' || settlement_id || ' member ' || user_id || ': transactions ' || sum(paid)
    || ', dividends ' || sum(won) AS members_are_paid_their_dividends
FROM (WITH stands AS (SELECT * FROM payments_settlement
          WHERE state = 'SETTLED' OR state = 'UNDOING' AND last_bet_id = 0 AND settled_at IS NOT NULL)
      SELECT t.settlement_id, t.user_id, t.amount AS paid, 0 AS won FROM payments_transaction t
      JOIN stands s ON s.id = t.settlement_id
      UNION ALL
      SELECT s.id, b.user_id, 0, b.payout FROM stands s
      JOIN markets_outcome o ON o.market_id = s.market_id
          AND CASE s.rule WHEN 'SCRATCH' THEN o.name = s.scratched ELSE o.scratched_at IS NULL END
      JOIN markets_bet b ON b.market_id = s.market_id AND b.outcome = o.name
      WHERE b.payout > 0 AND b.taken_back_at IS NULL) x
GROUP BY settlement_id, user_id HAVING sum(paid) <> sum(won);


-- name: bet_results_follow_the_outcome
-- Results of bets follow the outcome until an undo has reached them
-- Each bet is WON, LOST or REFUNDED as the resolution says. An undo sets bets back to PENDING by id (last_bet_id).
SELECT 'bet ' || b.id || ' on ' || b.outcome || ' is ' || b.result || ' with ' || b.payout
    AS bet_results_follow_the_outcome
FROM payments_settlement s JOIN markets_outcome o ON o.market_id = s.market_id
    AND CASE s.rule WHEN 'SCRATCH' THEN o.name = s.scratched ELSE o.scratched_at IS NULL END
JOIN markets_bet b ON b.market_id = s.market_id AND b.outcome = o.name
WHERE s.state IN ('SETTLED', 'UNDOING') AND s.settled_at IS NOT NULL AND b.taken_back_at IS NULL AND b.result <> CASE
    WHEN s.state = 'UNDOING' AND b.id <= s.last_bet_id THEN 'PENDING'
    WHEN s.refund OR b.placed_at > s.effective_close_at THEN 'REFUNDED'
    WHEN s.weights ? b.outcome THEN 'WON' ELSE 'LOST' END;


-- name: pools_hold_their_stakes_after_undo
-- After an undo a pool holds its stakes again
-- A market that is open again after an undo holds exactly the stakes of its pending bets.
SELECT 'market ' || m.id || ' holds ' || coalesce(p.total, 0) || ' of ' || coalesce(b.total, 0) || ' staked'
    AS pools_hold_their_stakes_after_undo
FROM markets_market m
JOIN LATERAL (SELECT sum(b.amount) AS total FROM markets_bet b
    JOIN markets_outcome o ON o.market_id = b.market_id AND o.name = b.outcome
    WHERE b.market_id = m.id AND b.result = 'PENDING'
      AND EXISTS (SELECT FROM payments_transfer t WHERE t.key = 'stake:' || b.id)) b ON true
JOIN LATERAL (SELECT sum(CASE WHEN t.credit_id = a.id THEN t.amount ELSE -t.amount END) AS total
    FROM payments_ledgeraccount a JOIN payments_transfer t ON a.id IN (t.debit_id, t.credit_id)
    WHERE a.kind = 'pool' AND a.market_id = m.id) p ON true
WHERE m.status IN ('OPEN', 'CLOSED')
  AND EXISTS (SELECT FROM payments_settlement s WHERE s.market_id = m.id AND s.state = 'UNDONE')
  AND NOT EXISTS (SELECT FROM payments_settlement s WHERE s.market_id = m.id AND s.rule = 'SCRATCH'
      AND s.state <> 'SETTLED')
  AND coalesce(p.total, 0) <> coalesce(b.total, 0);


-- name: stakes_taken_back_are_in_the_wallets
-- A stake that was taken back went from the pool to the member's wallet, whole and once
-- Each bet that was taken back has one transfer of its stake from its market's pool to its member's wallet. No other bet
-- has one.
SELECT 'bet ' || coalesce(b.id::text, split_part(t.key, ':', 2)) || ' with a stake of ' || coalesce(b.amount, 0)
    || ': ' || coalesce(t.amount, 0) || ' went back' AS stakes_taken_back_are_in_the_wallets
FROM (SELECT id, user_id, market_id, amount FROM markets_bet WHERE taken_back_at IS NOT NULL) b
FULL JOIN (SELECT f.key, f.amount, d.market_id, c.user_id FROM payments_transfer f
    JOIN payments_ledgeraccount d ON d.id = f.debit_id AND d.kind = 'pool'
    JOIN payments_ledgeraccount c ON c.id = f.credit_id AND c.kind = 'wallet'
    WHERE f.code = 'takeback') t ON t.key = 'takeback:' || b.id
WHERE (b.amount, b.market_id, b.user_id) IS DISTINCT FROM (t.amount, t.market_id, t.user_id);


-- name: receivables_are_in_recoveries
-- Debts of members equal their receivables
-- The balance of a member's receivable account equals the sum of the amounts still owed in their recoveries.
SELECT 'member ' || user_id || ' owes ' || sum(booked) || ', recoveries say ' || sum(owed)
    AS receivables_are_in_recoveries
FROM (SELECT a.user_id, t.amount AS booked, 0 AS owed
      FROM payments_ledgeraccount a JOIN payments_transfer t ON t.debit_id = a.id WHERE a.kind = 'receivable'
      UNION ALL
      SELECT a.user_id, -t.amount, 0
      FROM payments_ledgeraccount a JOIN payments_transfer t ON t.credit_id = a.id WHERE a.kind = 'receivable'
      UNION ALL
      SELECT user_id, 0, amount - recovered - written_off FROM payments_recovery) x
GROUP BY user_id HAVING sum(booked) <> sum(owed);


-- name: ledger_days_are_their_transfers
-- The days of the ledger are the sums of their transfers
-- payments_ledgerday is a copy for speed. The sums of each day and kind must equal the transfers up to the watermark.
SELECT 'day ' || day || ' of ' || kind || ' is off by ' || sum(debits) || ' and ' || sum(credits)
    AS ledger_days_are_their_transfers
FROM (SELECT day, kind, debits, credits FROM payments_ledgerday
      UNION ALL
      SELECT (t.at AT TIME ZONE 'Africa/Nairobi')::date, a.kind, -side.debit, -side.credit
      FROM payments_transfer t CROSS JOIN LATERAL
          (VALUES (t.debit_id, t.amount, 0), (t.credit_id, 0, t.amount)) AS side (account_id, debit, credit)
      JOIN payments_ledgeraccount a ON a.id = side.account_id
      WHERE t.id <= (SELECT up_to FROM markets_watermark WHERE "table" = 'payments_transfer')) x
GROUP BY day, kind HAVING sum(debits) <> 0 OR sum(credits) <> 0;


-- name: tallies_are_their_bets
-- The tallies of a market are the sums of its bets
-- markets_tally is a copy for speed. The tally of each five minutes must equal the bets up to the watermark.
SELECT 'outcome ' || outcome || ' of market ' || market_id || ' is off by ' || sum(stakes) || ' and '
    || sum(bets) || ' bets' AS tallies_are_their_bets
FROM (SELECT market_id, outcome, slot, stakes, bets FROM markets_tally
      UNION ALL
      SELECT market_id, outcome, date_bin('5 minutes', placed_at, '2000-01-01 00:00Z'), -amount, -1
      FROM markets_bet WHERE id <= (SELECT up_to FROM markets_watermark WHERE "table" = 'markets_bet')) x
GROUP BY market_id, outcome, slot HAVING sum(stakes) <> 0 OR sum(bets) <> 0;


-- name: in_flight_is_in_open_attempts
-- The money in flight equals the open attempts
-- The account in_flight holds exactly the amounts of the attempts whose result is not known yet.
SELECT 'in_flight holds ' || f.total || ', open attempts ' || o.total AS in_flight_is_in_open_attempts
FROM (SELECT coalesce(sum(CASE WHEN c.code = 'in_flight' THEN t.amount ELSE -t.amount END), 0) AS total
      FROM payments_transfer t JOIN payments_ledgeraccount d ON d.id = t.debit_id
      JOIN payments_ledgeraccount c ON c.id = t.credit_id
      WHERE d.code = 'in_flight' OR c.code = 'in_flight') f,
     (SELECT coalesce(sum(amount), 0) AS total FROM payments_attempt
      WHERE state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT')) o
WHERE f.total <> o.total;


-- name: payable_is_in_unsent_payouts
-- The payable money equals the unfinished payouts without an open attempt
-- The account payable holds exactly the M-Pesa payouts and withdrawals that are unfinished, without an open attempt.
SELECT 'payable holds ' || p.total || ', unfinished payouts ' || u.total AS payable_is_in_unsent_payouts
FROM (SELECT coalesce(sum(CASE WHEN c.code = 'payable' THEN t.amount ELSE -t.amount END), 0) AS total
      FROM payments_transfer t JOIN payments_ledgeraccount d ON d.id = t.debit_id
      JOIN payments_ledgeraccount c ON c.id = t.credit_id
      WHERE d.code = 'payable' OR c.code = 'payable') p,
     (SELECT coalesce(sum(t.amount), 0) AS total FROM payments_transaction t
      WHERE t.destination = 'mpesa' AND t.type IN ('PAYOUT', 'WITHDRAWAL')
        AND t.status NOT IN ('COMPLETED', 'CANCELLED')
        AND NOT EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = t.id
            AND a.state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT'))) u
WHERE p.total <> u.total;


-- name: paid_attempts_are_booked_once
-- A paid attempt left the M-Pesa account exactly once, with its own amount
-- A paid attempt has one booking of its amount out of the M-Pesa account, or out of suspense, also if M-Pesa reversed it
-- later. Any other attempt has none. If M-Pesa paid another amount, that amount is booked (paid_amount). A booking that was
-- reversed, because a person had decided wrongly, does not count.
SELECT 'attempt ' || a.originator_conversation_id || ' of ' || a.amount || ' is ' || a.state || ', '
    || count(t.id) || ' payments of ' || coalesce(sum(t.amount), 0) || ' are booked' AS paid_attempts_are_booked_once
FROM payments_attempt a
LEFT JOIN payments_transfer t ON t.transaction_id = a.transaction_id
    AND (t.code IN ('paid', 'late', 'misdirected', 'excess') AND split_part(t.key, ':', 2) = a.id::text
        OR t.key = 'claimed:' || nullif(a.receipt, ''))
    AND NOT EXISTS (SELECT FROM payments_transfer r WHERE r.key = 'reverse:' || t.id)
GROUP BY a.id
HAVING count(t.id) FILTER (WHERE t.code <> 'excess') <> (a.state IN ('PAID', 'REVERSED'))::int
    OR coalesce(sum(t.amount), 0)
        <> CASE WHEN a.state IN ('PAID', 'REVERSED') THEN coalesce(a.paid_amount, a.amount) ELSE 0 END;


-- name: reversed_payments_are_owed_again
-- A payment that M-Pesa reversed is owed again
-- The transfers of a reversed attempt return its amount to the M-Pesa account: one if it settled its payout (returned), up
-- to three if it was late or went to a replaced number (regained). Any other attempt has none.
SELECT 'attempt ' || a.originator_conversation_id || ' is ' || a.state || ', returned ' || coalesce(t.amount, 0)
    AS reversed_payments_are_owed_again
FROM payments_attempt a LEFT JOIN (
    SELECT split_part(key, ':', 2)::bigint AS attempt, sum(amount) AS amount FROM payments_transfer
    WHERE code IN ('returned', 'regained') GROUP BY 1) t ON t.attempt = a.id
WHERE coalesce(t.amount, 0) <> CASE WHEN a.state = 'REVERSED' THEN coalesce(a.paid_amount, a.amount) ELSE 0 END;


-- name: payouts_are_completed_once
-- An M-Pesa payout is completed by one paid attempt, or by its wallet
-- A completed M-Pesa payout has either one payment or one redirect to the wallet. Any other payout has neither. A
-- payment that was taken back or reversed does not count.
SELECT 'transaction ' || t.id || ' is ' || t.status || ' with ' || x.paid || ' payments that settle it and '
    || x.redirected || ' to the wallet' AS payouts_are_completed_once
FROM payments_transaction t JOIN LATERAL (
    SELECT count(*) FILTER (WHERE f.code IN ('paid', 'claimed')
            AND NOT EXISTS (SELECT FROM payments_transfer r WHERE r.key = 'reverse:' || f.id))
            - count(*) FILTER (WHERE f.code = 'returned') AS paid,
        count(*) FILTER (WHERE f.code = 'redirect') AS redirected
    FROM payments_transfer f WHERE f.transaction_id = t.id) x ON true
WHERE t.destination = 'mpesa' AND t.type = 'PAYOUT'
  AND x.paid + x.redirected <> (t.status = 'COMPLETED')::int;


-- name: suspense_is_in_orphans
-- The money in suspense equals the orphans that M-Pesa paid
-- The account suspense holds exactly the payments of requests that no payout in these books has claimed. A payment that
-- a payout has claimed, but that is not proven yet, is still in suspense.
SELECT 'suspense holds ' || s.total || ', orphans ' || o.total AS suspense_is_in_orphans
FROM (SELECT coalesce(sum(CASE WHEN d.code = 'suspense' THEN t.amount ELSE -t.amount END), 0) AS total
      FROM payments_transfer t JOIN payments_ledgeraccount d ON d.id = t.debit_id
      JOIN payments_ledgeraccount c ON c.id = t.credit_id
      WHERE d.code = 'suspense' OR c.code = 'suspense') s,
     (SELECT coalesce(sum(o.amount), 0) AS total FROM payments_orphan o
      WHERE EXISTS (SELECT FROM payments_transfer t WHERE t.key = 'foreign:' || o.receipt)
        AND NOT EXISTS (SELECT FROM payments_attempt a
            WHERE a.originator_conversation_id = o.originator_conversation_id AND a.state IN ('PAID', 'REVERSED'))) o
WHERE s.total <> o.total;


-- name: attempts_send_what_is_owed
-- Each request has the amount and the phone of its payout
-- An attempt has the amount of its transaction. It has its phone number, or a new number that two people confirmed. A
-- payment that our books had lost has the number that M-Pesa paid.
SELECT 'attempt ' || a.originator_conversation_id || ' sends ' || a.amount || ', owed ' || t.amount
    AS attempts_send_what_is_owed
FROM payments_attempt a JOIN payments_transaction t ON t.id = a.transaction_id
WHERE a.amount <> t.amount OR a.phone_number <> t.phone_number AND NOT EXISTS (
    SELECT FROM payments_verdict v WHERE v.transaction_id = t.id AND v.kind = 'REISSUE' AND v.confirmed
        AND v.phone_number = a.phone_number)
    AND NOT (a.state IN ('PAID', 'REVERSED') AND (a.known_at IS NOT NULL OR a.asked_first_at IS NOT NULL));


-- name: attempts_have_the_settlement_of_their_payout
-- A request counts to the settlement of its payout
-- An attempt has a copy of its transaction's settlement, because sending counts attempts by settlement.
SELECT 'attempt ' || a.originator_conversation_id || ' counts to ' || coalesce(a.settlement_id::text, 'none')
    || ', its payout to ' || coalesce(t.settlement_id::text, 'none') AS attempts_have_the_settlement_of_their_payout
FROM payments_attempt a JOIN payments_transaction t ON t.id = a.transaction_id
WHERE a.settlement_id IS DISTINCT FROM t.settlement_id;


-- name: only_payouts_under_way_have_an_open_attempt
-- A payout under way has one open request, and a finished or failed one has none
-- A PROCESSING payout has one open attempt. A FAILED, COMPLETED or CANCELLED payout has none.
SELECT 'transaction ' || t.id || ' is ' || t.status || ' with ' || count(a.id) || ' open requests'
    AS only_payouts_under_way_have_an_open_attempt
FROM payments_transaction t LEFT JOIN payments_attempt a ON a.transaction_id = t.id
    AND a.state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT')
WHERE t.destination = 'mpesa' AND t.status IN ('PROCESSING', 'FAILED', 'COMPLETED', 'CANCELLED')
GROUP BY t.id HAVING count(a.id) <> (t.status = 'PROCESSING')::int;


-- name: receipts_are_used_once
-- No receipt pays two attempts
-- An M-Pesa receipt proves one payment, so only one paid attempt may have it, in upper or lower case. A receipt that
-- staff typed counts once M-Pesa has confirmed it.
SELECT 'receipt ' || upper(receipt) || ' stands on ' || count(*) || ' attempts' AS receipts_are_used_once
FROM payments_attempt WHERE state = 'PAID' AND receipt <> '' AND decision <> 'paid'
GROUP BY upper(receipt) HAVING count(*) > 1;


-- name: day_totals_are_their_requests
-- The amounts that count for a member's limit of the day are those of the requests
-- payments_daytotal is a copy, so that two workers cannot pass M-Pesa's limit together. Each member's total of a day must
-- equal the open and the paid requests that count on the day. Only the latest seven days are kept.
SELECT 'member ' || user_id || ' on ' || day || ' is off by ' || sum(amount) AS day_totals_are_their_requests
FROM (SELECT user_id, day, amount FROM payments_daytotal
      UNION ALL
      SELECT t.user_id, a.counted_on, -a.amount FROM payments_attempt a
      JOIN payments_transaction t ON t.id = a.transaction_id
      WHERE a.counted_on IS NOT NULL AND a.state <> 'FAILED') x
WHERE day > coalesce((SELECT max(day) FROM payments_daytotal), DATE '0001-01-08') - 7
GROUP BY user_id, day HAVING sum(amount) <> 0;
