-- name: open_wallets
-- Open the missing wallet accounts of the next members who get money in their wallets.
INSERT INTO payments_ledgeraccount (code, kind, user_id)
SELECT DISTINCT 'wallet:' || t.user_id, 'wallet', t.user_id FROM payments_transaction t
WHERE t.settlement_id = %(settlement)s AND t.destination = 'wallet' AND t.user_id > %(low)s
  AND t.user_id <= %(high)s
  AND NOT EXISTS (SELECT FROM payments_ledgeraccount a WHERE a.kind = 'wallet' AND a.user_id = t.user_id)
ORDER BY 3 ON CONFLICT (code) DO NOTHING;

-- name: book_transfers
-- Move the next members' amounts out of the pool: M-Pesa parts to `payable`, wallet parts to the wallets.
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT CASE t.destination WHEN 'mpesa' THEN 'payout:' ELSE 'wallet:' END || t.id, %(pool)s,
    coalesce(a.id, %(payable)s), t.amount, CASE t.destination WHEN 'mpesa' THEN 'payout' ELSE 'wallet' END,
    %(at)s, t.id
FROM payments_transaction t
LEFT JOIN payments_ledgeraccount a
  ON a.kind = 'wallet' AND a.user_id = CASE t.destination WHEN 'wallet' THEN t.user_id END
WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
ORDER BY t.id;
