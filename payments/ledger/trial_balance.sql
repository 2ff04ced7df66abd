-- name: add_transfers_to_days
-- Add the transfers with ids above `low` and up to `high` to the sums of their days and kinds.
INSERT INTO payments_ledgerday (day, kind, debits, credits)
SELECT (t.at AT TIME ZONE 'Africa/Nairobi')::date, a.kind, sum(side.debit), sum(side.credit)
FROM payments_transfer t CROSS JOIN LATERAL
    (VALUES (t.debit_id, t.amount, 0), (t.credit_id, 0, t.amount)) AS side (account_id, debit, credit)
JOIN payments_ledgeraccount a ON a.id = side.account_id
WHERE t.id > %(low)s AND t.id <= %(high)s GROUP BY 1, 2 ORDER BY 2, 1
ON CONFLICT (kind, day) DO UPDATE
SET debits = payments_ledgerday.debits + excluded.debits, credits = payments_ledgerday.credits + excluded.credits;


-- name: sums_of_every_kind
-- Sum debits and credits by kind, of all days or up to the end of `day`.
-- Days, watermark and later transfers are read in one statement, so no transfer is missed and none is counted twice.
-- The later transfers are few. Transfers are read by id, and account kinds by account id, so no whole table is read.
SELECT kind, sum(debits), sum(credits)
FROM (
    SELECT day, kind, debits, credits FROM payments_ledgerday
    UNION ALL
    SELECT (t.at AT TIME ZONE 'Africa/Nairobi')::date,
        (SELECT kind FROM payments_ledgeraccount a WHERE a.id = side.account_id), side.debit, side.credit
    FROM (SELECT * FROM payments_transfer
          WHERE id > coalesce((SELECT up_to FROM markets_watermark WHERE "table" = 'payments_transfer'), 0)
          ORDER BY id) t CROSS JOIN LATERAL
        (VALUES (t.debit_id, t.amount, 0), (t.credit_id, 0, t.amount)) AS side (account_id, debit, credit)) booked
WHERE %(day)s::date IS NULL OR day <= %(day)s::date GROUP BY kind;


-- name: sums_of_one_kind
-- Sum debits and credits of one kind now. It is one statement for the reason given at sums_of_every_kind.
SELECT coalesce(sum(debits), 0), coalesce(sum(credits), 0)
FROM (
    SELECT kind, debits, credits FROM payments_ledgerday WHERE kind = %(kind)s
    UNION ALL
    SELECT (SELECT kind FROM payments_ledgeraccount a WHERE a.id = side.account_id), side.debit, side.credit
    FROM (SELECT * FROM payments_transfer
          WHERE id > coalesce((SELECT up_to FROM markets_watermark WHERE "table" = 'payments_transfer'), 0)
          ORDER BY id) t CROSS JOIN LATERAL
        (VALUES (t.debit_id, t.amount, 0), (t.credit_id, 0, t.amount)) AS side (account_id, debit, credit)) booked
WHERE kind = %(kind)s;


-- name: accounts_by_kind
-- Count the accounts of each kind.
SELECT kind, count(*) FROM payments_ledgeraccount GROUP BY kind;
