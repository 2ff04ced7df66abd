"""Proposals, recoveries, readings of the float; settlements that scratch an outcome, wait, or are undone.

The transition pairs are those of the TRANSITIONS tables; a test tries every pair against the triggers.
"""

from decimal import Decimal

import django.db.models.deletion
import django.db.models.expressions
from django.conf import settings
from django.db import migrations, models

GUARDS = """
DROP TRIGGER settlement_moves ON payments_settlement;
CREATE TRIGGER settlement_moves BEFORE UPDATE OF state ON payments_settlement
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state',
        'PENDING>DIVIDING PENDING>WITHDRAWN DIVIDING>SETTLED SETTLED>UNDOING UNDOING>UNDONE');
DROP TRIGGER settlement_is_frozen ON payments_settlement;
CREATE TRIGGER settlement_is_frozen BEFORE UPDATE OF market_id, number, rule, weights, fee_pct, protect_stake,
        scratched, effective_close_at, evidence_url, evidence_note, approved_by_id,
        bet_count, pool, winning_pool, fee, net, late_refund, refund, funds ON payments_settlement
    FOR EACH ROW WHEN (
        (OLD.market_id, OLD.number, OLD.rule, OLD.weights, OLD.fee_pct, OLD.protect_stake, OLD.scratched,
         OLD.effective_close_at, OLD.evidence_url, OLD.evidence_note, OLD.approved_by_id)
            IS DISTINCT FROM (NEW.market_id, NEW.number, NEW.rule, NEW.weights, NEW.fee_pct, NEW.protect_stake,
                NEW.scratched, NEW.effective_close_at, NEW.evidence_url, NEW.evidence_note, NEW.approved_by_id)
        OR (OLD.state <> 'PENDING' AND
            (OLD.bet_count, OLD.pool, OLD.winning_pool, OLD.fee, OLD.net, OLD.late_refund, OLD.refund, OLD.funds)
            IS DISTINCT FROM
            (NEW.bet_count, NEW.pool, NEW.winning_pool, NEW.fee, NEW.net, NEW.late_refund, NEW.refund, NEW.funds)))
    EXECUTE FUNCTION kasoko_refuse('The totals of a settlement are frozen.');
DROP TRIGGER transaction_moves ON payments_transaction;
CREATE TRIGGER transaction_moves AFTER UPDATE OF status ON payments_transaction
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION kasoko_guard_moves('status',
        'PENDING>PROCESSING PENDING>HELD PENDING>COMPLETED PENDING>CANCELLED PROCESSING>COMPLETED PROCESSING>FAILED'
        ' PROCESSING>HELD PROCESSING>PENDING HELD>PENDING HELD>FAILED HELD>COMPLETED HELD>CANCELLED FAILED>PENDING'
        ' FAILED>COMPLETED FAILED>CANCELLED');
DROP TRIGGER callback_is_fixed ON payments_callback;
CREATE TRIGGER callback_is_fixed AFTER UPDATE OF kind, attempt_id, query_id, reading_id, originator_conversation_id,
        body, digest, received_at, source_ip, trusted ON payments_callback
    FOR EACH ROW WHEN (
        (OLD.kind, coalesce(OLD.attempt_id, NEW.attempt_id), OLD.query_id, OLD.reading_id,
         OLD.originator_conversation_id, OLD.body, OLD.digest, OLD.received_at, OLD.source_ip, OLD.trusted)
        IS DISTINCT FROM
        (NEW.kind, NEW.attempt_id, NEW.query_id, NEW.reading_id, NEW.originator_conversation_id, NEW.body,
         NEW.digest, NEW.received_at, NEW.source_ip, NEW.trusted))
    EXECUTE FUNCTION kasoko_refuse('A stored callback is not changed.');

-- Proposals: what was proposed is what is approved.
CREATE TRIGGER proposal_begins_open BEFORE INSERT ON payments_proposal
    FOR EACH ROW WHEN (NEW.state <> 'OPEN') EXECUTE FUNCTION kasoko_refuse('A proposal begins OPEN.');
CREATE TRIGGER proposal_moves BEFORE UPDATE OF state ON payments_proposal
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state', 'OPEN>APPROVED OPEN>REJECTED OPEN>STALE');
CREATE TRIGGER proposal_is_fixed BEFORE UPDATE OF market_id, kind, rule, weights, reason, evidence_url, evidence_note,
        effective_close_at, preview_hash, pool, closed_market, proposed_by_id, proposed_at ON payments_proposal
    FOR EACH ROW WHEN (
        (OLD.market_id, OLD.kind, OLD.rule, OLD.weights, OLD.reason, OLD.evidence_url, OLD.evidence_note,
         OLD.effective_close_at, OLD.preview_hash, OLD.pool, OLD.closed_market, OLD.proposed_by_id, OLD.proposed_at)
        IS DISTINCT FROM
        (NEW.market_id, NEW.kind, NEW.rule, NEW.weights, NEW.reason, NEW.evidence_url, NEW.evidence_note,
         NEW.effective_close_at, NEW.preview_hash, NEW.pool, NEW.closed_market, NEW.proposed_by_id, NEW.proposed_at))
    EXECUTE FUNCTION kasoko_refuse('What was proposed is not changed.');
CREATE TRIGGER proposal_stays BEFORE DELETE ON payments_proposal
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Proposals are not deleted.');
CREATE TRIGGER proposal_is_not_truncated BEFORE TRUNCATE ON payments_proposal
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Proposals are not deleted.');

-- Recoveries.
CREATE TRIGGER recovery_begins_open BEFORE INSERT ON payments_recovery
    FOR EACH ROW WHEN (NEW.decision <> 'OPEN') EXECUTE FUNCTION kasoko_refuse('A recovery begins OPEN.');
CREATE TRIGGER recovery_moves BEFORE UPDATE OF decision ON payments_recovery
    FOR EACH ROW WHEN (OLD.decision IS DISTINCT FROM NEW.decision)
    EXECUTE FUNCTION kasoko_guard_moves('decision',
        'OPEN>SET_OFF OPEN>WRITTEN_OFF SET_OFF>WRITTEN_OFF WRITTEN_OFF>OPEN');
CREATE TRIGGER recovery_is_fixed BEFORE UPDATE OF settlement_id, user_id, created_at ON payments_recovery
    FOR EACH ROW WHEN ((OLD.settlement_id, OLD.user_id, OLD.created_at) IS DISTINCT FROM
        (NEW.settlement_id, NEW.user_id, NEW.created_at))
    EXECUTE FUNCTION kasoko_refuse('Who owes, and from which settlement, is not changed.');
CREATE TRIGGER recovery_stays BEFORE DELETE ON payments_recovery
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Recoveries are not deleted.');
CREATE TRIGGER recovery_is_not_truncated BEFORE TRUNCATE ON payments_recovery
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Recoveries are not deleted.');
"""


class Migration(migrations.Migration):
    dependencies = [
        ("markets", "0003_decisions"),
        ("payments", "0002_guards"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="FloatReading",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("source", models.CharField(choices=[("result", "Result"), ("balance", "Balance")], max_length=8)),
                ("token_hash", models.CharField(max_length=64, null=True)),
                ("asked_at", models.DateTimeField(null=True)),
                ("amount", models.DecimalField(decimal_places=2, max_digits=16, null=True)),
                ("read_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Proposal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=[("RESOLVE", "Resolve"), ("UNDO", "Undo")], max_length=10)),
                ("rule", models.CharField(blank=True, max_length=10)),
                ("weights", models.JSONField(default=dict)),
                ("reason", models.CharField(blank=True, max_length=300)),
                ("evidence_url", models.CharField(blank=True, max_length=500)),
                ("evidence_note", models.CharField(blank=True, max_length=1000)),
                ("effective_close_at", models.DateTimeField(blank=True, null=True)),
                ("preview_hash", models.CharField(max_length=64)),
                ("pool", models.DecimalField(decimal_places=2, max_digits=16)),
                (
                    "closed_market",
                    models.BooleanField(default=False, help_text="The market was open, and was closed by it."),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("OPEN", "Open"),
                            ("APPROVED", "Approved"),
                            ("REJECTED", "Rejected"),
                            ("STALE", "Stale"),
                        ],
                        default="OPEN",
                        max_length=10,
                    ),
                ),
                ("proposed_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                ("words", models.CharField(blank=True, help_text="Why it was rejected, or is stale.", max_length=300)),
            ],
        ),
        migrations.CreateModel(
            name="Recovery",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("amount", models.DecimalField(decimal_places=2, max_digits=16)),
                ("recovered", models.DecimalField(decimal_places=2, default=Decimal("0.00"), max_digits=16)),
                ("written_off", models.DecimalField(decimal_places=2, default=Decimal("0.00"), max_digits=16)),
                (
                    "decision",
                    models.CharField(
                        choices=[("OPEN", "Open"), ("SET_OFF", "Set Off"), ("WRITTEN_OFF", "Written Off")],
                        default="OPEN",
                        max_length=12,
                    ),
                ),
                (
                    "pct",
                    models.PositiveSmallIntegerField(
                        blank=True, help_text="Of each later dividend, at most.", null=True
                    ),
                ),
                ("reason", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField()),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "verbose_name_plural": "recoveries",
            },
        ),
        migrations.RemoveConstraint(
            model_name="callback",
            name="callback_stored_once",
        ),
        migrations.RemoveConstraint(
            model_name="settlement",
            name="one_live_settlement_a_market",
        ),
        migrations.RemoveIndex(
            model_name="settlement",
            name="settlement_to_do",
        ),
        migrations.AddField(
            model_name="settlement",
            name="approved_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="settlement",
            name="effective_close_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="settlement",
            name="evidence_note",
            field=models.CharField(blank=True, max_length=1000),
        ),
        migrations.AddField(
            model_name="settlement",
            name="evidence_url",
            field=models.CharField(blank=True, max_length=500),
        ),
        migrations.AddField(
            model_name="settlement",
            name="late_refund",
            field=models.DecimalField(decimal_places=2, max_digits=16, null=True),
        ),
        migrations.AddField(
            model_name="settlement",
            name="scratched",
            field=models.CharField(blank=True, max_length=120),
        ),
        migrations.AddField(
            model_name="settlement",
            name="stopped_at",
            field=models.DateTimeField(blank=True, help_text="Nothing of it leaves: its undo is proposed.", null=True),
        ),
        migrations.AddField(
            model_name="settlement",
            name="undone_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="settlement",
            name="undone_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="settlement",
            name="undone_reason",
            field=models.CharField(blank=True, max_length=300),
        ),
        migrations.AlterField(
            model_name="callback",
            name="kind",
            field=models.CharField(
                choices=[
                    ("result", "Result"),
                    ("timeout", "Timeout"),
                    ("status", "Status"),
                    ("plain", "Plain"),
                    ("balance", "Balance"),
                ],
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="settlement",
            name="rule",
            field=models.CharField(
                choices=[
                    ("WINNER", "Winner"),
                    ("JOINT", "Joint"),
                    ("SPLIT", "Split"),
                    ("VOID", "Void"),
                    ("SCRATCH", "Scratch"),
                ],
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="settlement",
            name="state",
            field=models.CharField(
                choices=[
                    ("PENDING", "Pending"),
                    ("DIVIDING", "Dividing"),
                    ("SETTLED", "Settled"),
                    ("UNDOING", "Undoing"),
                    ("WITHDRAWN", "Withdrawn"),
                    ("UNDONE", "Undone"),
                ],
                default="PENDING",
                max_length=10,
            ),
        ),
        migrations.AddIndex(
            model_name="settlement",
            index=models.Index(
                condition=models.Q(("state__in", ["PENDING", "DIVIDING", "UNDOING"])),
                fields=["id"],
                name="settlement_to_do",
            ),
        ),
        migrations.AddConstraint(
            model_name="settlement",
            constraint=models.UniqueConstraint(
                condition=models.Q(
                    ("state__in", ["PENDING", "DIVIDING", "SETTLED", "UNDOING"]),
                    models.Q(("rule", "SCRATCH"), _negated=True),
                ),
                fields=("market",),
                name="one_live_settlement_a_market",
            ),
        ),
        migrations.AddConstraint(
            model_name="settlement",
            constraint=models.UniqueConstraint(
                condition=models.Q(("rule", "SCRATCH")), fields=("market", "scratched"), name="outcome_scratched_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="settlement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("rule", "SCRATCH"), ("scratched__gt", "")),
                    models.Q(models.Q(("rule", "SCRATCH"), _negated=True), ("scratched", "")),
                    _connector="OR",
                ),
                name="a_scratch_names_its_outcome",
            ),
        ),
        migrations.AddIndex(
            model_name="floatreading",
            index=models.Index(
                condition=models.Q(("read_at__isnull", False)), fields=["-read_at"], name="float_latest"
            ),
        ),
        migrations.AddConstraint(
            model_name="floatreading",
            constraint=models.UniqueConstraint(fields=("token_hash",), name="float_token_once"),
        ),
        migrations.AddField(
            model_name="callback",
            name="reading",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="callbacks",
                to="payments.floatreading",
            ),
        ),
        migrations.AddConstraint(
            model_name="callback",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "plain"), _negated=True),
                fields=("kind", "attempt", "query", "reading", "digest"),
                name="callback_stored_once",
                nulls_distinct=False,
            ),
        ),
        migrations.AddField(
            model_name="proposal",
            name="decided_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="proposal",
            name="market",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="proposals", to="markets.market"
            ),
        ),
        migrations.AddField(
            model_name="proposal",
            name="proposed_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="recovery",
            name="decided_by",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="recovery",
            name="settlement",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="recoveries",
                to="payments.settlement",
            ),
        ),
        migrations.AddField(
            model_name="recovery",
            name="user",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="recoveries", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddConstraint(
            model_name="proposal",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "OPEN")), fields=("market",), name="one_open_proposal_a_market"
            ),
        ),
        migrations.AddConstraint(
            model_name="proposal",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "APPROVED"), _negated=True),
                    models.Q(
                        ("decided_by__isnull", False), models.Q(("decided_by", models.F("proposed_by")), _negated=True)
                    ),
                    _connector="OR",
                ),
                name="proposer_is_not_approver",
            ),
        ),
        migrations.AddIndex(
            model_name="recovery",
            index=models.Index(
                condition=models.Q(("decision", "SET_OFF")), fields=["user"], name="recovery_to_set_off"
            ),
        ),
        migrations.AddConstraint(
            model_name="recovery",
            constraint=models.UniqueConstraint(
                fields=("settlement", "user"), name="recovery_once_a_settlement_and_member", nulls_distinct=False
            ),
        ),
        migrations.AddConstraint(
            model_name="recovery",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "amount__gte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("recovered"), "+", models.F("written_off")
                        ),
                    ),
                    ("recovered__gte", 0),
                    ("written_off__gte", 0),
                ),
                name="no_more_comes_back_than_is_owed",
            ),
        ),
        migrations.AddConstraint(
            model_name="recovery",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decision", "SET_OFF"), ("pct__gte", 1), ("pct__lte", 100)),
                    models.Q(models.Q(("decision", "SET_OFF"), _negated=True), ("pct", None)),
                    _connector="OR",
                ),
                name="a_set_off_has_a_percentage",
            ),
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
