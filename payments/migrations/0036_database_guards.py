"""The profile of the database, and guards that no session can switch off.

The guards of production read a row of the owner, not a setting of the session. The function that moves balances runs
with the owner's rights, so the application needs no right to change a balance. `migrate` fixes the search path of every
function (api/database_roles.py).
"""

from django.db import migrations, models

PROFILE = """
-- Its body is parsed now, so no other table or function can take the place of these names later.
CREATE FUNCTION kasoko_is_production() RETURNS boolean LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce((SELECT production FROM payments_databaseprofile), true);
END;
ALTER FUNCTION payments_move_wallets() SECURITY DEFINER;
"""
NO_PROFILE = """
DROP FUNCTION kasoko_is_production();
ALTER FUNCTION payments_move_wallets() SECURITY INVOKER;
"""
GUARDS = """
CREATE OR REPLACE FUNCTION payments_book_assigned_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    delta numeric := NEW.balance;
    wallet bigint;
    opening bigint;
    number bigint;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        delta := NEW.balance - OLD.balance;
    END IF;
    IF kasoko_is_production() THEN
        RAISE EXCEPTION 'A balance is not assigned in production: money moves by transfers.'
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    INSERT INTO payments_ledgeraccount (code, kind, user_id) VALUES ('wallet:' || NEW.id, 'wallet', NEW.id)
        ON CONFLICT (code) DO NOTHING;
    INSERT INTO payments_ledgeraccount (code, kind) VALUES ('opening', 'opening') ON CONFLICT (code) DO NOTHING;
    SELECT id INTO STRICT wallet FROM payments_ledgeraccount WHERE code = 'wallet:' || NEW.id;
    SELECT id INTO STRICT opening FROM payments_ledgeraccount WHERE code = 'opening';
    -- The member's row is locked, so no two assignments draw one number.
    SELECT count(*) + 1 INTO number FROM payments_transfer
        WHERE code = 'opening' AND (debit_id = wallet OR credit_id = wallet);
    INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
    VALUES ('opening:' || NEW.id || ':' || number,
        CASE WHEN delta > 0 THEN opening ELSE wallet END, CASE WHEN delta > 0 THEN wallet ELSE opening END,
        abs(delta), 'opening', clock_timestamp());
    RETURN NULL;
END $$;

DROP TRIGGER bet_is_booked ON markets_bet;
CREATE CONSTRAINT TRIGGER bet_is_booked AFTER INSERT ON markets_bet DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (kasoko_is_production()) EXECUTE FUNCTION payments_require_booked_stake();
"""
# The function stays as markets made it, but for its switch.
TERMS = """
DO $do$ BEGIN
    EXECUTE replace(pg_get_functiondef('markets_guard_terms'::regproc), $${old}$$, $${new}$$);
END $do$;
"""
SESSION, ROW = "current_setting('kasoko.production', true) IS DISTINCT FROM 'on'", "NOT kasoko_is_production()"
# Before this migration the profile was a setting of the session.
BY_SESSION = GUARDS.replace("kasoko_is_production()", "current_setting('kasoko.production', true) = 'on'")


class Migration(migrations.Migration):
    dependencies = [("payments", "0035_proposals"), ("markets", "0006_terms")]

    operations = [
        migrations.CreateModel(
            name="DatabaseProfile",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("production", models.BooleanField()),
            ],
            options={
                "constraints": [models.CheckConstraint(condition=models.Q(("id", 1)), name="one_database_profile")],
            },
        ),
        migrations.RunSQL(PROFILE, NO_PROFILE),
        migrations.RunSQL(GUARDS, BY_SESSION),
        migrations.RunSQL(TERMS.format(old=SESSION, new=ROW), TERMS.format(old=ROW, new=SESSION)),
    ]
