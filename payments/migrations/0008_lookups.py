"""What a transfer names is looked up by an index, whatever the tables held when a session planned it.

A session keeps the plan of its first transfer. Where the tables had a page or two then, a join read the whole of them for
every row: the first large settlement on young tables took a time that grew with its square. The forms below leave
PostgreSQL no other way than an index: a scalar subquery, and `= ANY (ARRAY[...])`, which is no clause to hash, to merge or
to scan in order by.
"""

from django.db import migrations

LOOKUPS = """
CREATE OR REPLACE FUNCTION payments_require_what_is_named() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM (SELECT debit_id AS id FROM booked UNION SELECT credit_id FROM booked) named
               WHERE (SELECT a.id FROM payments_ledgeraccount a WHERE a.id = named.id) IS NULL)
       OR EXISTS (SELECT FROM booked WHERE booked.transaction_id IS NOT NULL
                  AND (SELECT t.id FROM payments_transaction t WHERE t.id = booked.transaction_id) IS NULL) THEN
        RAISE EXCEPTION 'A transfer names an account or a transaction that is not there.'
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;

-- Rows are locked by id, and only those whose balance moves.
CREATE OR REPLACE FUNCTION payments_move_wallets() RETURNS trigger LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_material = off AS $$
BEGIN
    WITH moved AS MATERIALIZED (
        SELECT (SELECT a.user_id FROM payments_ledgeraccount a WHERE a.id = side.account_id AND a.kind = 'wallet')
            AS user_id, sum(side.delta) AS delta
        FROM (SELECT credit_id AS account_id, amount AS delta FROM booked
              UNION ALL SELECT debit_id, -amount FROM booked) side
        GROUP BY side.account_id HAVING sum(side.delta) <> 0
    ), locked AS (
        SELECT u.id, moved.delta FROM moved JOIN users_customuser u ON u.id = ANY (ARRAY[moved.user_id])
        ORDER BY moved.user_id FOR NO KEY UPDATE OF u
    )
    UPDATE users_customuser u SET balance = u.balance + locked.delta FROM locked WHERE u.id = ANY (ARRAY[locked.id]);
    RETURN NULL;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0007_callback_once_for_each_trust")]
    operations = [migrations.RunSQL(LOOKUPS, migrations.RunSQL.noop)]
