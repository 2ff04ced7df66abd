"""Versions of a market's terms, stakes taken back after a change, and suspended betting.

Every new column has a constant default or may be null, so no table is rewritten. The check on bets is NOT VALID: old bets
were never taken back.
"""

import django.db.models.deletion
from django.conf import settings
from django.contrib.postgres.operations import AddConstraintNotValid
from django.db import migrations, models

GUARDS = """
-- A version of the terms stays as it is. Only the mark of the members who were told moves.
CREATE TRIGGER terms_are_fixed BEFORE UPDATE ON markets_terms
    FOR EACH ROW WHEN ((OLD.market_id, OLD.version, OLD.question, OLD.description, OLD.source, OLD.outcomes,
            OLD.platform_fee_pct, OLD.end_date, OLD.reason, OLD.made_at, OLD.made_by_id, OLD.approved_by_id,
            OLD.notice_until)
        IS DISTINCT FROM
        (NEW.market_id, NEW.version, NEW.question, NEW.description, NEW.source, NEW.outcomes, NEW.platform_fee_pct,
            NEW.end_date, NEW.reason, NEW.made_at, NEW.made_by_id, NEW.approved_by_id, NEW.notice_until))
    EXECUTE FUNCTION kasoko_refuse('A version of a market''s terms is not changed. Make a new version.');
CREATE TRIGGER terms_stay BEFORE DELETE ON markets_terms
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Versions of a market''s terms are not deleted.');
CREATE TRIGGER terms_are_not_truncated BEFORE TRUNCATE ON markets_terms
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Versions of a market''s terms are not deleted.');

CREATE TRIGGER market_begins_with_first_terms BEFORE INSERT ON markets_market
    FOR EACH ROW WHEN (NEW.terms_version <> 1 OR NEW.take_back_until IS NOT NULL OR NEW.closed_at IS NOT NULL)
    EXECUTE FUNCTION kasoko_refuse('A market begins with version 1 of its terms.');

-- After the first bet the terms change only to a new version. The version's row is inserted first, and the market then
-- takes its values. A market without bets and without such rows is free, as the guide's shell example needs.
CREATE FUNCTION markets_guard_terms() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    made markets_terms%ROWTYPE;
    has_bets boolean := EXISTS (SELECT FROM markets_bet WHERE market_id = NEW.id);
    close_only boolean := (OLD.question, OLD.description, OLD.source, OLD.platform_fee_pct, OLD.terms_version)
        IS NOT DISTINCT FROM (NEW.question, NEW.description, NEW.source, NEW.platform_fee_pct, NEW.terms_version);
    problem text := '';
BEGIN
    IF NEW.end_date > OLD.end_date AND (OLD.closed_at IS NOT NULL OR OLD.end_date <= clock_timestamp())
            AND (has_bets OR EXISTS (SELECT FROM markets_terms WHERE market_id = NEW.id)) THEN
        problem := 'its close has passed and never moves later';
    ELSIF close_only AND NEW.end_date < OLD.end_date AND OLD.status IN ('OPEN', 'CLOSED')
            AND current_setting('kasoko.production', true) IS DISTINCT FROM 'on' THEN
        RETURN NEW;  -- In development a shell may end a market.
    ELSIF OLD.status <> 'OPEN' THEN
        problem := 'it is ' || OLD.status;
    ELSE
        SELECT * INTO made FROM markets_terms WHERE market_id = NEW.id AND version = NEW.terms_version;
        IF NEW.terms_version = OLD.terms_version THEN
            IF has_bets OR made.id IS NOT NULL THEN
                problem := 'they need a new version';
            END IF;
        ELSIF made.id IS NULL OR NEW.terms_version <> OLD.terms_version + 1
                OR (made.question, made.description, made.source, made.platform_fee_pct, made.end_date)
                IS DISTINCT FROM (NEW.question, NEW.description, NEW.source, NEW.platform_fee_pct, NEW.end_date) THEN
            problem := 'the new version is not recorded';
        ELSIF has_bets AND (made.notice_until IS NULL OR made.notice_until IS DISTINCT FROM NEW.take_back_until
                OR made.notice_until <= made.made_at OR made.notice_until >= NEW.end_date) THEN
            problem := 'members get no notice before the close';
        END IF;
    END IF;
    IF problem <> '' THEN
        RAISE EXCEPTION 'The terms of market % are not changed: %', NEW.id, problem
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER market_terms_are_frozen
    BEFORE UPDATE OF question, description, source, platform_fee_pct, end_date, terms_version ON markets_market
    FOR EACH ROW WHEN (
        (OLD.question, OLD.description, OLD.source, OLD.platform_fee_pct, OLD.end_date, OLD.terms_version)
        IS DISTINCT FROM
        (NEW.question, NEW.description, NEW.source, NEW.platform_fee_pct, NEW.end_date, NEW.terms_version))
    EXECUTE FUNCTION markets_guard_terms();
CREATE TRIGGER notice_comes_with_new_terms BEFORE UPDATE OF take_back_until ON markets_market
    FOR EACH ROW WHEN (OLD.take_back_until IS DISTINCT FROM NEW.take_back_until
        AND OLD.terms_version = NEW.terms_version)
    EXECUTE FUNCTION kasoko_refuse('The notice of a change of terms is not moved.');
CREATE TRIGGER market_closed_for_good BEFORE UPDATE OF closed_at, status ON markets_market
    FOR EACH ROW WHEN (OLD.closed_at IS NOT NULL
        AND (OLD.closed_at IS DISTINCT FROM NEW.closed_at OR (OLD.status <> 'OPEN' AND NEW.status = 'OPEN')))
    EXECUTE FUNCTION kasoko_refuse('A closed market is not opened again.');

-- Outcomes are added, renamed and removed only before the first bet. Afterwards they are only scratched.
CREATE FUNCTION markets_require_no_bets() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    market bigint;
BEGIN
    SELECT o.market_id INTO market FROM (SELECT DISTINCT market_id FROM changed) o
        WHERE EXISTS (SELECT FROM markets_bet b WHERE b.market_id = o.market_id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'Market % has bets: its outcomes are only scratched', market
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER outcomes_are_added_before_bets AFTER INSERT ON markets_outcome REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION markets_require_no_bets();
CREATE TRIGGER outcomes_are_removed_before_bets AFTER DELETE ON markets_outcome REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION markets_require_no_bets();
CREATE FUNCTION markets_refuse_renaming() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM markets_bet WHERE market_id IN (OLD.market_id, NEW.market_id)) THEN
        RAISE EXCEPTION 'Market % has bets: its outcomes are only scratched', OLD.market_id
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER outcomes_are_renamed_before_bets BEFORE UPDATE OF name, market_id ON markets_outcome
    FOR EACH ROW WHEN ((OLD.name, OLD.market_id) IS DISTINCT FROM (NEW.name, NEW.market_id))
    EXECUTE FUNCTION markets_refuse_renaming();
CREATE TRIGGER outcomes_are_not_truncated BEFORE TRUNCATE ON markets_outcome
    FOR EACH STATEMENT EXECUTE FUNCTION kasoko_refuse('Outcomes are not deleted; scratch them.');

-- A bet takes the market's current version of the terms. Outside code need not name it: its rows are corrected here, for
-- markets whose terms have changed, and no other row is touched.
CREATE OR REPLACE FUNCTION markets_require_open() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    market record;
    scratched record;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(504403158265495552 + market_id)
        FROM (SELECT DISTINCT market_id FROM placed ORDER BY market_id) m;
    FOR market IN
        SELECT m.id, m.status, m.terms_version, m.take_back_until, m.betting_suspended_at, p.low, p.high
        FROM markets_market m JOIN (SELECT market_id, min(terms_version) AS low, max(terms_version) AS high
            FROM placed GROUP BY market_id) p ON p.market_id = m.id
        ORDER BY m.id FOR SHARE OF m
    LOOP
        IF market.status <> 'OPEN' THEN
            RAISE EXCEPTION 'Market % is % and takes no bets', market.id, market.status
                USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
        END IF;
        IF market.betting_suspended_at IS NOT NULL OR market.take_back_until > clock_timestamp() THEN
            RAISE EXCEPTION 'Betting on market % is suspended', market.id
                USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
        END IF;
        IF market.low <> market.terms_version OR market.high <> market.terms_version THEN
            UPDATE markets_bet b SET terms_version = market.terms_version FROM placed
            WHERE placed.market_id = market.id AND b.id = placed.id AND b.terms_version <> market.terms_version;
        END IF;
    END LOOP;
    SELECT o.market_id, o.name INTO scratched FROM markets_outcome o
        WHERE o.scratched_at IS NOT NULL AND (o.market_id, o.name) IN (SELECT market_id, outcome FROM placed) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'Outcome % of market % is scratched and takes no bets', scratched.name, scratched.market_id
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END $$;
-- At depth 0 only, because the trigger above gives a new bet its version.
CREATE TRIGGER bet_keeps_its_terms AFTER UPDATE OF terms_version ON markets_bet
    FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND OLD.terms_version <> NEW.terms_version)
    EXECUTE FUNCTION kasoko_refuse('A bet keeps the terms that it was placed under.');

-- A stake is taken back during the notice of a change, if its bet is older than the change.
CREATE FUNCTION markets_guard_take_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.taken_back_at IS NOT NULL OR NOT EXISTS (
            SELECT FROM markets_market m WHERE m.id = NEW.market_id AND m.status IN ('OPEN', 'CLOSED')
            AND m.terms_version > NEW.terms_version AND m.take_back_until > NEW.taken_back_at) THEN
        RAISE EXCEPTION 'The stake of bet % cannot be taken back', NEW.id
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER stake_is_taken_back_in_time AFTER UPDATE OF taken_back_at ON markets_bet
    FOR EACH ROW WHEN (OLD.taken_back_at IS DISTINCT FROM NEW.taken_back_at)
    EXECUTE FUNCTION markets_guard_take_back();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("markets", "0005_public_id"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Terms",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.PositiveSmallIntegerField()),
                ("question", models.CharField(max_length=500)),
                ("description", models.TextField(blank=True)),
                ("source", models.CharField(blank=True, max_length=500)),
                ("outcomes", models.JSONField(help_text="Names of the outcomes, in their order.")),
                ("platform_fee_pct", models.DecimalField(decimal_places=2, max_digits=5)),
                ("end_date", models.DateTimeField()),
                ("reason", models.CharField(blank=True, max_length=300)),
                ("made_at", models.DateTimeField()),
                ("notice_until", models.DateTimeField(null=True)),
                ("told_up_to", models.BigIntegerField(default=0)),
                (
                    "market",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="terms", to="markets.market"
                    ),
                ),
                (
                    "made_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "approved_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={"verbose_name_plural": "terms"},
        ),
        migrations.AddField(
            model_name="bet",
            name="terms_version",
            field=models.PositiveSmallIntegerField(
                db_default=1,
                default=1,
                editable=False,
                help_text="The version of the market's terms that it was placed under.",
            ),
        ),
        migrations.AddField(
            model_name="bet",
            name="taken_back_at",
            field=models.DateTimeField(
                blank=True, help_text="When the member took the stake back after a change of terms.", null=True
            ),
        ),
        migrations.AddField(
            model_name="market",
            name="source",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Where the answer to the question is read.",
                max_length=500,
            ),
        ),
        migrations.AddField(
            model_name="market",
            name="terms_version",
            field=models.PositiveSmallIntegerField(db_default=1, default=1, editable=False),
        ),
        migrations.AddField(
            model_name="market",
            name="take_back_until",
            field=models.DateTimeField(
                blank=True, help_text="Until then members may take back stakes made under older terms.", null=True
            ),
        ),
        migrations.AddField(
            model_name="market",
            name="betting_suspended_at",
            field=models.DateTimeField(blank=True, help_text="Since then staff suspend betting.", null=True),
        ),
        migrations.AddField(
            model_name="market",
            name="closed_at",
            field=models.DateTimeField(
                blank=True, help_text="When staff or the clock closed it for good. It never opens again.", null=True
            ),
        ),
        migrations.AddField(
            model_name="market",
            name="reminded_at",
            field=models.DateTimeField(
                blank=True, help_text="When staff were last reminded that it needs its outcome.", null=True
            ),
        ),
        migrations.AddIndex(
            model_name="bet",
            index=models.Index(
                condition=models.Q(("taken_back_at__isnull", False)), fields=["market"], name="bet_taken_back"
            ),
        ),
        AddConstraintNotValid(
            model_name="bet",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("taken_back_at", None),
                    models.Q(("payout", models.F("amount")), ("result", "REFUNDED")),
                    _connector="OR",
                ),
                name="taken_back_bet_is_refunded",
            ),
        ),
        migrations.AddIndex(
            model_name="terms",
            index=models.Index(
                condition=models.Q(("notice_until__isnull", False), ("told_up_to__lt", 4611686018427387904)),
                fields=["id"],
                name="terms_to_tell",
            ),
        ),
        migrations.AddConstraint(
            model_name="terms",
            constraint=models.UniqueConstraint(fields=("market", "version"), name="terms_once_a_version"),
        ),
        migrations.RunSQL(GUARDS, migrations.RunSQL.noop),
    ]
