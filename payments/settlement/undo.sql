-- name: cancel_unsent
-- Cancel payouts without an open request. By an invariant `payable` holds exactly the amounts of these payouts.
WITH cancelled AS (
    UPDATE payments_transaction t SET status = 'CANCELLED', reason = 'Its settlement was undone.'
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND t.destination = 'mpesa' AND t.status IN ('PENDING', 'HELD', 'FAILED')
      AND NOT EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = t.id AND a.state = ANY (%(open)s))
    RETURNING t.id, t.amount
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT 'undo:' || id, %(payable)s, %(pool)s, amount, 'undo', %(at)s, id FROM cancelled ORDER BY id;

-- name: open_receivable_accounts
-- Open the receivable accounts of members with transactions that were not cancelled.
INSERT INTO payments_ledgeraccount (code, kind, user_id)
SELECT DISTINCT 'receivable:' || t.user_id, 'receivable', t.user_id FROM payments_transaction t
WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s AND t.status <> 'CANCELLED'
  AND NOT EXISTS (SELECT FROM payments_ledgeraccount a WHERE a.code = 'receivable:' || t.user_id)
ORDER BY 3 ON CONFLICT (code) DO NOTHING;

-- name: reverse_credits
-- Take amounts back from wallets, as far as each balance allows. `credited` holds the amounts that came to wallets:
-- wallet parts, and payouts redirected to a wallet. It leaves out a redirected payout that M-Pesa had paid after all:
-- its wallet credit was set off, and the member has the money on the phone.
WITH credited AS (
    SELECT t.id, t.user_id, t.amount, f.id AS transfer_id
    FROM payments_transaction t JOIN payments_transfer f ON f.transaction_id = t.id AND f.code IN ('wallet', 'redirect')
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND (t.destination = 'wallet' OR NOT EXISTS (
          SELECT FROM payments_transfer o WHERE o.transaction_id = t.id AND o.code IN ('setoff', 'unwrite')))
), locked AS (
    SELECT id, balance FROM users_customuser WHERE id IN (SELECT user_id FROM credited) ORDER BY id FOR NO KEY UPDATE
), back AS (
    SELECT c.id, c.transfer_id, c.user_id, least(c.amount, greatest(0, l.balance + c.amount
        - sum(c.amount) OVER (PARTITION BY c.user_id ORDER BY c.id))) AS amount
    FROM credited c JOIN locked l ON l.id = c.user_id
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT 'reverse:' || back.transfer_id, a.id, %(pool)s, back.amount, 'reverse', %(at)s, back.id
FROM back JOIN payments_ledgeraccount a ON a.kind = 'wallet' AND a.user_id = back.user_id
WHERE back.amount > 0 ORDER BY back.id;

-- name: book_receivables
-- Book each amount that did not come back as receivable from the member. `credited` is as in `reverse_credits`.
WITH credited AS (
    SELECT t.id, t.user_id, t.amount, f.id AS transfer_id
    FROM payments_transaction t JOIN payments_transfer f ON f.transaction_id = t.id AND f.code IN ('wallet', 'redirect')
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND (t.destination = 'wallet' OR NOT EXISTS (
          SELECT FROM payments_transfer o WHERE o.transaction_id = t.id AND o.code IN ('setoff', 'unwrite')))
), gone AS (
    SELECT t.id, t.user_id, t.amount - coalesce(r.amount, 0) AS amount
    FROM payments_transaction t LEFT JOIN credited c ON c.id = t.id
    LEFT JOIN payments_transfer r ON r.key = 'reverse:' || c.transfer_id
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND t.status <> 'CANCELLED'
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT 'recall:' || gone.id, a.id, %(pool)s, gone.amount, 'recall', %(at)s, gone.id
FROM gone JOIN payments_ledgeraccount a ON a.kind = 'receivable' AND a.user_id = gone.user_id
WHERE gone.amount > 0 ORDER BY gone.id;

-- name: record_debts
-- Record each member's debt from the settlement, or add to it. A written-off debt that grows becomes open again.
INSERT INTO payments_recovery (settlement_id, user_id, amount, recovered, written_off, decision, reason, created_at)
SELECT %(settlement)s, t.user_id, sum(f.amount), 0, 0, 'OPEN', '', %(at)s
FROM payments_transaction t JOIN payments_transfer f ON f.transaction_id = t.id AND f.code = 'recall'
WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
GROUP BY t.user_id ORDER BY t.user_id
ON CONFLICT (settlement_id, user_id) DO UPDATE SET amount = payments_recovery.amount + excluded.amount,
    decision = CASE payments_recovery.decision WHEN 'WRITTEN_OFF' THEN 'OPEN' ELSE payments_recovery.decision END;
