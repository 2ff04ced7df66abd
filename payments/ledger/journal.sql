-- name: post_transfers
-- Book all entries or none. If an account does not exist yet, nothing is inserted.
WITH booked AS MATERIALIZED (
    SELECT e.number, e.key, d.id AS debit_id, c.id AS credit_id, e.amount, e.code, e.transaction_id
    FROM unnest(%(keys)s::text[], %(debits)s::text[], %(credits)s::text[], %(amounts)s::numeric[],
                %(codes)s::text[], %(transactions)s::bigint[])
        WITH ORDINALITY AS e (key, debit, credit, amount, code, transaction_id, number)
    JOIN payments_ledgeraccount d ON d.code = e.debit JOIN payments_ledgeraccount c ON c.code = e.credit
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT key, debit_id, credit_id, amount, code, %(at)s, transaction_id FROM booked
WHERE (SELECT count(*) FROM booked) = %(count)s ORDER BY number;
