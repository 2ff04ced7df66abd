"""Proposals about markets move to the table of all proposals, with their ids. Open ones stay open for 48 hours more."""

from django.db import migrations

MOVE = """
ALTER TABLE users_proposal DISABLE TRIGGER proposal_begins_open;
INSERT INTO users_proposal (id, act, subject, payload, hash, amount, reason, proposed_by_id, proposed_from, proposed_at,
    expires_at, state, decided_by_id, decided_at, words)
SELECT p.id,
    CASE WHEN p.kind = 'UNDO' THEN 'market.undo' WHEN p.rule = 'VOID' THEN 'market.void' ELSE 'market.resolve' END,
    'market:' || p.market_id,
    CASE WHEN p.kind = 'UNDO' THEN '{}'::jsonb ELSE jsonb_build_object(
        'rule', p.rule, 'weights', p.weights, 'evidence_url', p.evidence_url, 'evidence_note', p.evidence_note,
        'effective_close_at', to_char(p.effective_close_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
        'closed_market', p.closed_market) END,
    p.preview_hash, p.pool, p.reason, p.proposed_by_id, 'moved', p.proposed_at,
    CASE WHEN p.state = 'OPEN' THEN now() ELSE p.proposed_at END + interval '48 hours',
    CASE WHEN p.state = 'REJECTED' AND p.decided_by_id = p.proposed_by_id THEN 'WITHDRAWN' ELSE p.state END,
    p.decided_by_id, p.decided_at, p.words
FROM payments_proposal p;
SELECT setval(pg_get_serial_sequence('users_proposal', 'id'), greatest((SELECT max(id) FROM users_proposal), 1),
    EXISTS (SELECT FROM users_proposal));
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE users_proposal ENABLE TRIGGER proposal_begins_open;
"""


class Migration(migrations.Migration):
    dependencies = [("payments", "0034_sending_of_one_market"), ("users", "0012_proposals")]

    operations = [
        migrations.RunSQL(MOVE, migrations.RunSQL.noop),
        migrations.DeleteModel(name="Proposal"),
    ]
