"""Restores of the database: the heartbeat, the payouts that are asked about before they leave, and decisions."""

import uuid

import django.db.models.deletion
import django.db.models.functions.comparison
from django.conf import settings
from django.db import migrations, models

# The heartbeat only grows: a smaller counter would hide a loss. The three other tables are kept for ever.
GUARDS = """
CREATE TRIGGER heartbeat_grows BEFORE UPDATE ON payments_databaseheartbeat
    FOR EACH ROW WHEN (NEW.beats <= OLD.beats OR NEW.database <> OLD.database)
    EXECUTE FUNCTION kasoko_refuse('The heartbeat of the database only grows.');
CREATE TRIGGER restore_moves AFTER UPDATE OF state ON payments_restore
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION kasoko_guard_moves('state',
        'LISTING>ASKING LISTING>STOPPED ASKING>DECIDED STOPPED>DECIDED');
CREATE TRIGGER restore_stays BEFORE DELETE OR TRUNCATE ON payments_restore
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('A restore is kept.');
CREATE TRIGGER ask_first_stays BEFORE DELETE OR TRUNCATE ON payments_askfirst
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('A payout that may have left is kept.');
CREATE TRIGGER restore_decision_stays BEFORE DELETE OR TRUNCATE ON payments_restoredecision
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('A decision is kept.');
"""


class Migration(migrations.Migration):
    dependencies = [
        ("payments", "0018_reversed_answers"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Restore",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "survived_at",
                    models.DateTimeField(
                        help_text="The newest heartbeat that survived. All older commits survived too."
                    ),
                ),
                ("noticed_at", models.DateTimeField()),
                ("sign", models.CharField(help_text="How the loss was noticed.", max_length=300)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("LISTING", "Listing"),
                            ("ASKING", "Asking"),
                            ("STOPPED", "Stopped"),
                            ("DECIDED", "Decided"),
                        ],
                        default="LISTING",
                        max_length=8,
                    ),
                ),
                (
                    "needs_decision",
                    models.BooleanField(help_text="The lost time is longer than the time to send the same id again."),
                ),
                (
                    "payouts_a_settlement",
                    models.PositiveIntegerField(
                        help_text="The most payouts of one settlement that can have left without a row."
                    ),
                ),
                (
                    "last_market_id",
                    models.PositiveBigIntegerField(help_text="Markets up to this id existed when it was noticed."),
                ),
                (
                    "last_settlement_id",
                    models.BigIntegerField(default=-1, help_text="The last settlement whose payouts are listed."),
                ),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.AddField(
            model_name="attempt",
            name="asked_first_at",
            field=models.DateTimeField(
                help_text="When we began to ask about it before it left, because a restore may have lost its row.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="attempt",
            name="cleared_at",
            field=models.DateTimeField(
                help_text="When two people decided that it may leave after a restore, if M-Pesa does not know its id.",
                null=True,
            ),
        ),
        migrations.CreateModel(
            name="DatabaseHeartbeat",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("database", models.UUIDField(default=uuid.uuid4, editable=False)),
                ("beats", models.PositiveBigIntegerField(default=0)),
                ("at", models.DateTimeField()),
                (
                    "system",
                    models.CharField(
                        blank=True, help_text="PostgreSQL's system identifier, if we may read it.", max_length=32
                    ),
                ),
                (
                    "timeline",
                    models.CharField(blank=True, help_text="PostgreSQL's timeline, if we may read it.", max_length=16),
                ),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("id", 1)), name="one_database_heartbeat")],
            },
        ),
        migrations.CreateModel(
            name="AskFirst",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                (
                    "transaction",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="ask_first", to="payments.transaction"
                    ),
                ),
                (
                    "restore",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="ask_first", to="payments.restore"
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("ended_at__isnull", True)), fields=["transaction"], name="ask_first_open"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="RestoreDecision",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("grounds", models.CharField(max_length=300)),
                ("proposed_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(null=True)),
                ("confirmed", models.BooleanField(null=True)),
                (
                    "closed_by",
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
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "restore",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="decisions", to="payments.restore"
                    ),
                ),
                (
                    "transaction",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="payments.transaction",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        models.F("restore"),
                        django.db.models.functions.comparison.Coalesce("transaction", 0),
                        condition=models.Q(("closed_at__isnull", True)),
                        name="one_open_restore_decision",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("confirmed", True), _negated=True),
                            models.Q(("closed_by", models.F("proposed_by")), _negated=True),
                            _connector="OR",
                        ),
                        name="two_people_decide_a_restore",
                    ),
                ],
            },
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
