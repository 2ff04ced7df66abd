-- name: sum_from
-- Debits less credits of one account's transfers with ids from `first` on.
SELECT (SELECT coalesce(sum(amount), 0) FROM payments_transfer WHERE debit_id = %(account)s AND id >= %(first)s)
    - (SELECT coalesce(sum(amount), 0) FROM payments_transfer WHERE credit_id = %(account)s AND id >= %(first)s);
