-- name: insert_attempts
-- Writes the rows that Django's bulk_create would write, in a fifth of the time. Most columns are copied from the payout
-- or are the same for all rows. `paid_report` has a default in the database.
INSERT INTO payments_attempt (transaction_id, settlement_id, number, kind, originator_conversation_id,
    conversation_id, token_hash, amount, phone_number, state, opened_at, posted_at, first_sent_at, next_query_at,
    result_code, result_words, receipt, counted_on)
SELECT t.id, t.settlement_id, o.number, %(kind)s, o.originator_conversation_id, '', o.token_hash, t.amount,
    coalesce(nullif(t.reissued_to, ''), t.phone_number), %(state)s, %(at)s, %(at)s, %(at)s, %(ask_at)s, '', '', '',
    %(counted_on)s
FROM unnest(%(payouts)s::bigint[], %(numbers)s::smallint[], %(ids)s::text[], %(hashes)s::text[])
    AS o (payout_id, number, originator_conversation_id, token_hash)
JOIN payments_transaction t ON t.id = o.payout_id
RETURNING transaction_id, id;

-- name: accept
-- An acceptance is committed without waiting for the disk. If the database server crashes, the record may be lost. This
-- does no harm, because an acceptance proves nothing and we then ask M-Pesa about the attempt.
SET LOCAL synchronous_commit = off;
WITH locked AS (
    SELECT id FROM payments_transaction WHERE id = ANY (%(payouts)s::bigint[]) ORDER BY id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE payments_attempt a
SET state = 'ACCEPTED',
    conversation_id = CASE WHEN a.conversation_id = '' THEN response.conversation_id ELSE a.conversation_id END
FROM unnest(%(attempts)s::bigint[], %(conversations)s::text[]) AS response (attempt_id, conversation_id), locked
WHERE a.id = response.attempt_id AND a.state = 'SENDING' AND locked.id = a.transaction_id
RETURNING a.id, a.posted_at;
