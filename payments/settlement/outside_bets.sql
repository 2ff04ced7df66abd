-- name: book_outside_stakes
-- Book the stakes of bets that were made straight through the ORM, from `opening`. In production it books nothing.
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
SELECT 'stake:' || b.id, %(opening)s, %(pool)s, b.amount, 'stake', %(at)s FROM markets_bet b
WHERE b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s
  AND NOT kasoko_is_production()
  AND NOT EXISTS (SELECT FROM payments_transfer t WHERE t.credit_id = %(pool)s AND t.key = 'stake:' || b.id)
ORDER BY b.id;
