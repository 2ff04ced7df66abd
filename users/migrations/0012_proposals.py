"""Proposals of all acts, and the acts that one person carried out alone."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

GUARDS = """
CREATE TRIGGER proposal_begins_open BEFORE INSERT ON users_proposal
    FOR EACH ROW WHEN (NEW.state <> 'OPEN') EXECUTE FUNCTION kasoko_refuse('A proposal begins OPEN.');
CREATE TRIGGER proposal_moves BEFORE UPDATE OF state ON users_proposal
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION kasoko_guard_moves('state',
        'OPEN>APPROVED OPEN>REJECTED OPEN>WITHDRAWN OPEN>STALE OPEN>EXPIRED');
CREATE TRIGGER proposal_is_fixed BEFORE UPDATE OF act, subject, payload, hash, amount, reason, proposed_by_id, proposed_from,
        proposed_at, expires_at ON users_proposal
    FOR EACH ROW WHEN (
        (OLD.act, OLD.subject, OLD.payload, OLD.hash, OLD.amount, OLD.reason, OLD.proposed_by_id, OLD.proposed_from,
         OLD.proposed_at, OLD.expires_at)
        IS DISTINCT FROM
        (NEW.act, NEW.subject, NEW.payload, NEW.hash, NEW.amount, NEW.reason, NEW.proposed_by_id, NEW.proposed_from,
         NEW.proposed_at, NEW.expires_at))
    EXECUTE FUNCTION kasoko_refuse('What was proposed is not changed.');
CREATE TRIGGER proposal_result_stands BEFORE UPDATE ON users_proposal
    FOR EACH ROW WHEN (
        OLD.state <> 'OPEN' AND (OLD.decided_by_id, OLD.decided_at, OLD.words, OLD.first_approved_by_id)
            IS DISTINCT FROM (NEW.decided_by_id, NEW.decided_at, NEW.words, NEW.first_approved_by_id)
        OR OLD.first_approved_by_id IS DISTINCT FROM NEW.first_approved_by_id AND OLD.first_approved_by_id IS NOT NULL)
    EXECUTE FUNCTION kasoko_refuse('A decided proposal is not changed.');
CREATE TRIGGER proposal_stays BEFORE DELETE ON users_proposal
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Proposals are not deleted.');
CREATE TRIGGER proposal_is_not_truncated BEFORE TRUNCATE ON users_proposal
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Proposals are not deleted.');
CREATE TRIGGER single_handed_act_stays BEFORE UPDATE OR DELETE ON users_singlehandedact
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('An act that was done is not changed.');
CREATE TRIGGER single_handed_act_is_not_truncated BEFORE TRUNCATE ON users_singlehandedact
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('An act that was done is not changed.');
"""


class Migration(migrations.Migration):
    dependencies = [
        ("users", "0011_run_market"),
    ]

    operations = [
        migrations.CreateModel(
            name="Proposal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("act", models.CharField(max_length=60)),
                ("subject", models.CharField(max_length=80)),
                ("payload", models.JSONField(default=dict)),
                ("hash", models.CharField(max_length=64)),
                ("amount", models.DecimalField(decimal_places=2, max_digits=14, null=True)),
                ("reason", models.CharField(blank=True, max_length=300)),
                ("proposed_from", models.CharField(max_length=64)),
                ("proposed_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("first_approved_at", models.DateTimeField(null=True)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("OPEN", "Open"),
                            ("APPROVED", "Approved"),
                            ("REJECTED", "Rejected"),
                            ("WITHDRAWN", "Withdrawn"),
                            ("STALE", "Stale"),
                            ("EXPIRED", "Expired"),
                        ],
                        default="OPEN",
                        max_length=10,
                    ),
                ),
                ("decided_at", models.DateTimeField(null=True)),
                (
                    "words",
                    models.CharField(blank=True, help_text="The reason why it was not carried out.", max_length=300),
                ),
                (
                    "decided_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "first_approved_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "proposed_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["subject", "id"], name="proposal_by_subject"),
                    models.Index(
                        condition=models.Q(("state", "OPEN")), fields=["expires_at"], name="open_proposal_by_end"
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("proposed_by__isnull", False), ("state", "OPEN")),
                        fields=("subject",),
                        name="one_open_proposal_a_subject",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("state", "APPROVED"), _negated=True),
                            models.Q(
                                ("decided_by__isnull", False),
                                ("proposed_by__isnull", False),
                                models.Q(("decided_by", models.F("proposed_by")), _negated=True),
                            ),
                            models.Q(
                                ("decided_by__isnull", False),
                                ("first_approved_by__isnull", False),
                                models.Q(("decided_by", models.F("first_approved_by")), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="two_people_approve_a_proposal",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="SingleHandedAct",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("act", models.CharField(max_length=60)),
                ("amount", models.DecimalField(decimal_places=2, max_digits=14)),
                ("at", models.DateTimeField()),
                (
                    "actor",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["actor", "act", "at"], name="single_handed_by_actor")],
            },
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
