"""Tests of the application's role in PostgreSQL: rights that it lacks, and the checks at start.

The role logs in by itself, with the rights of production, as web, workers and beat do.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from psycopg2 import errors

from api import checks, database_owner, database_roles
from payments.models import DatabaseProfile
from testing import database
from testing.builders import member

pytestmark = pytest.mark.skipif(
    database.APPLICATION_URL not in os.environ, reason="KASOKO_TEST_APPLICATION_URL names no application's login"
)
Login = Any
ROOT = Path(__file__).resolve().parents[2]


def owner_url() -> str:
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}").geturl()


@pytest.fixture(scope="module")
def owner(django_db_setup: None) -> Iterator[Login]:
    """A login of the owner, while the application's role has the rights of production."""
    login = psycopg2.connect(owner_url())
    login.autocommit = True
    with login.cursor() as cursor:
        for production in (True, False):
            database_roles.set_production(cursor, production=production)
            database_roles.grant(cursor, database.application_role())
            if production:
                yield login
    login.close()


@pytest.fixture
def application(owner: Login) -> Iterator[Login]:
    """A login of the application's role, with the rights of production. Its changes are rolled back."""
    login = psycopg2.connect(database.application_url())
    yield login
    login.rollback()
    login.close()


def run(login: Login, *statements: str) -> list[tuple[Any, ...]]:
    with login.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def refuses(login: Login, *statements: str) -> bool:
    """Return True if the role lacks the right for the last statement, and take back what the others did."""
    try:
        run(login, *statements)
    except errors.InsufficientPrivilege:
        return True
    finally:
        login.rollback()
    return False


NEW_MEMBER = (
    "INSERT INTO users_customuser (public_id, phone_number, full_name, password, balance, is_staff, is_active,"
    " is_superuser, date_joined, session_epoch)"
    " VALUES (gen_random_uuid(), '254712345678', '', '', {}, false, true, false, now(), 0)"
)
GUARDED = (
    "payments_transfer", "payments_ledgeraccount", "users_auditentry", "payments_callback", "payments_transaction",
    "payments_attempt", "payments_settlement", "payments_certificate", "payments_verdict", "markets_bet",
    "markets_market", "users_customuser", "users_notice",
)  # fmt: skip


@pytest.mark.parametrize("table", GUARDED)
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {}",
        "TRUNCATE {} CASCADE",
        "ALTER TABLE {} DISABLE TRIGGER ALL",
        "ALTER TABLE {} DISABLE TRIGGER USER",
        "ALTER TABLE {} ADD COLUMN mine text",
        "ALTER TABLE {} OWNER TO CURRENT_USER",
        "CREATE RULE mine AS ON INSERT TO {} DO INSTEAD NOTHING",
        "CREATE TRIGGER mine BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "DROP TABLE {} CASCADE",
    ],
)
def test_guarded_table_is_neither_emptied_nor_altered(application: Login, table: str, statement: str) -> None:
    assert refuses(application, statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payments_transfer SET amount = amount",
        "UPDATE payments_ledgeraccount SET code = code",
        "UPDATE users_auditentry SET reason = ''",
        "UPDATE payments_certificate SET id = id",
        "UPDATE payments_callback SET body = ''",
        "UPDATE payments_callback SET trusted = true",
        "UPDATE payments_callback SET received_at = now()",
        "UPDATE users_notice SET text = ''",
        "UPDATE users_customuser SET balance = balance + 1",
        "UPDATE users_customuser SET full_name = '', balance = 1000000",
        "UPDATE payments_databaseprofile SET production = false",
        "DELETE FROM payments_databaseprofile",
        "INSERT INTO payments_databaseprofile VALUES (1, false)",
        "INSERT INTO django_migrations (app, name, applied) VALUES ('payments', 'mine', now())",
        "SELECT setval('users_auditentry_number_seq', 1)",
        "ALTER SEQUENCE payments_transfer_id_seq RESTART",
        "MERGE INTO payments_transfer t USING (SELECT 1) s ON true WHEN MATCHED THEN UPDATE SET amount = 1",
        "INSERT INTO payments_ledgeraccount (code, kind) VALUES ('opening', 'opening')"
        " ON CONFLICT (code) DO UPDATE SET kind = 'wallet'",
    ],
)
def test_recorded_fact_is_not_changed(application: Login, statement: str) -> None:
    assert refuses(application, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE payments_transfer (id int)",
        "CREATE TEMPORARY VIEW payments_databaseprofile AS SELECT false AS production",
        "SELECT 1 AS id INTO TEMPORARY users_customuser",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE FUNCTION pg_temp.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE OR REPLACE FUNCTION kasoko_is_production() RETURNS boolean LANGUAGE sql RETURN false",
        "ALTER FUNCTION payments_move_wallets() SECURITY INVOKER",
        "DROP FUNCTION kasoko_refuse() CASCADE",
        "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION kasoko_refuse()",
        "CREATE ROLE mine SUPERUSER",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "COPY payments_transfer FROM PROGRAM 'true'",
        "COPY payments_transfer TO '/tmp/mine'",
        "SET session_replication_role = replica",
        "SET ROLE kasoko",
        "SET ROLE kasoko_root",
        "SET SESSION AUTHORIZATION kasoko",
    ],
)
def test_role_creates_nothing_and_becomes_nobody(application: Login, statement: str) -> None:
    assert refuses(application, statement)


def test_setting_of_a_session_opens_no_guard(application: Login) -> None:
    # given: the setting that once was the switch, and a path on which own objects would come first
    settings = ("SET kasoko.production = 'off'", "SET search_path = pg_temp, public")

    # when, then
    with pytest.raises(errors.CheckViolation, match="not assigned in production"):
        run(application, *settings, NEW_MEMBER.format(1))
    application.rollback()
    assert refuses(application, *settings, "DO $$ BEGIN UPDATE users_customuser SET balance = 1; END $$")

    # and: without a balance the row is inserted
    run(application, *settings, NEW_MEMBER.format(0))
    assert run(application, "SELECT balance FROM users_customuser WHERE phone_number = '254712345678'") == [(0,)]


def test_transfer_of_the_application_moves_the_balance(application: Login) -> None:
    # given
    run(application, NEW_MEMBER.format(0))
    ((user_id,),) = run(application, "SELECT id FROM users_customuser WHERE phone_number = '254712345678'")
    account = (
        f"INSERT INTO payments_ledgeraccount (code, kind, user_id) VALUES ('wallet:{user_id}', 'wallet', {user_id})"  # noqa: S608
    )
    ((wallet,),) = run(application, f"{account} RETURNING id")
    ((bank,),) = run(
        application, "INSERT INTO payments_ledgeraccount (code, kind) VALUES ('a test', 'mpesa_paybill') RETURNING id"
    )

    # when
    run(
        application,
        "INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)"  # noqa: S608 - our own ids
        f" VALUES ('deposit:of-a-test', {bank}, {wallet}, 5, 'deposit', now())",
    )

    # then
    assert run(application, f"SELECT balance FROM users_customuser WHERE id = {user_id}") == [(5,)]  # noqa: S608


def test_state_moves_only_through_its_guard(application: Login) -> None:
    # given
    run(
        application,
        "INSERT INTO markets_market (question, category, status, platform_fee_pct, end_date, created_at, description)"
        " VALUES ('?', '', 'OPEN', 5, now(), now(), '')",
    )

    # when, then
    with pytest.raises(errors.CheckViolation, match="cannot move OPEN>SETTLED"):
        run(application, "UPDATE markets_market SET status = 'SETTLED' WHERE question = '?'")


def test_temporary_tables_of_the_owner_fool_no_trigger(db: None) -> None:
    # given: tables with the names of ours, which PostgreSQL looks up first
    user = member(balance=1)
    deposit = (
        "INSERT INTO public.payments_transfer (key, debit_id, credit_id, amount, code, at) SELECT 'opening:x', o.id,"
        " w.id, 7, 'opening', now() FROM public.payments_ledgeraccount o, public.payments_ledgeraccount w"
        " WHERE o.kind = 'opening' AND w.kind = 'wallet'"
    )
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE payments_ledgeraccount (id bigint, kind text, user_id bigint)")
        cursor.execute("CREATE TEMPORARY TABLE payments_databaseprofile AS SELECT 1 AS id, true AS production")

        # when
        cursor.execute(deposit)

        # then
        cursor.execute("SELECT kasoko_is_production()")
        assert cursor.fetchone() == (False,)
        cursor.execute("DROP TABLE pg_temp.payments_ledgeraccount, pg_temp.payments_databaseprofile")
    user.refresh_from_db()
    assert user.balance == 8


def test_every_function_has_a_fixed_search_path(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT proname, prosecdef, coalesce(array_to_string(proconfig, ';'), ''), prosqlbody IS NOT NULL,"
            " has_function_privilege(oid, 'EXECUTE') FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        )
        functions = cursor.fetchall()
    assert {"payments_move_wallets", "kasoko_refuse", "users_chain_audit"} < {name for name, *_ in functions}
    for name, runs_as_owner, options, is_parsed, may_call in functions:
        assert is_parsed or f"search_path={database_roles.SEARCH_PATH}" in options, name
        assert runs_as_owner == (name in database_roles.OWNERS_FUNCTIONS), name
        assert may_call == (name in database_roles.CALLED_FUNCTIONS), name


def test_rights_agree_with_the_triggers(db: None) -> None:
    # Bit 8 of the type is DELETE.
    refusing = (
        "SELECT tgrelid::regclass::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
        " WHERE p.proname = 'kasoko_refuse' AND tgqual IS NULL AND tgtype & 8 > 0"
    )
    with connection.cursor() as cursor:
        cursor.execute(refusing)
        never_deleted = {table for (table,) in cursor.fetchall()}
        never_changed = database_roles.append_only_tables(cursor)
        cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
        tables = {table for (table,) in cursor.fetchall()}
    named = database_roles.READ_ONLY | database_roles.APPEND_ONLY | database_roles.DELETED
    named |= set(database_roles.CHANGED_COLUMNS) | set(database_roles.FIXED_COLUMNS)
    assert {"payments_transfer", "payments_ledgeraccount", "users_auditentry", "payments_certificate"} < never_changed
    assert not never_deleted & database_roles.DELETED
    assert named <= tables


# --- checked at start ------------------------------------------------------------------------------------------------


def problems(login: Login) -> list[str]:
    with login.cursor() as cursor:
        return database_roles.problems(cursor)


def test_application_role_passes_the_check(application: Login) -> None:
    assert problems(application) == []


@pytest.mark.parametrize(
    ("given", "taken", "told"),
    [
        ("GRANT DELETE ON markets_bet TO {}", "REVOKE DELETE ON markets_bet FROM {}", "has DELETE on markets_bet"),
        (
            "GRANT UPDATE ON payments_transfer TO {}",
            "REVOKE UPDATE ON payments_transfer FROM {}",
            "has UPDATE on payments_transfer",
        ),
        (
            "GRANT TRIGGER ON markets_bet TO {}",
            "REVOKE TRIGGER ON markets_bet FROM {}",
            "has TRUNCATE, TRIGGER on markets_bet",
        ),
        (
            "GRANT UPDATE (balance) ON users_customuser TO {}",
            "REVOKE UPDATE (balance) ON users_customuser FROM {}",
            "may change a balance",
        ),
        ("GRANT CREATE ON SCHEMA public TO {}", "REVOKE CREATE ON SCHEMA public FROM {}", "may create schemas"),
        (
            "UPDATE payments_databaseprofile SET production = false",
            "UPDATE payments_databaseprofile SET production = true",
            "in its development profile",
        ),
    ],
)
def test_role_with_one_right_too_many_fails_the_check(
    application: Login, owner: Login, given: str, taken: str, told: str
) -> None:
    role = database.application_role()
    run(owner, given.format(role))
    try:
        assert [told in problem for problem in problems(application)] == [True]
    finally:
        application.rollback()
        run(owner, taken.format(role))


def test_owner_of_the_tables_fails_the_check(db: None) -> None:
    with database.as_owner(), connection.cursor() as cursor:
        assert "owns the tables" in database_roles.problems(cursor)[0]


def test_production_does_not_start_as_owner_of_the_tables(db: None, settings: Any) -> None:
    # given: the tests' own login, which is the owner's
    settings.PRODUCTION = True
    with database.as_owner():
        found = checks.application_role(databases=["default"])
    assert [message.id for message in found] == ["kasoko.E001"]


def test_production_does_not_start_with_the_owners_password(settings: Any) -> None:
    settings.PRODUCTION = True
    settings.DATABASE_OWNER = settings.DATABASE_OWNER | {"USER": "another"}
    with pytest.raises(ImproperlyConfigured, match="DATABASE_OWNER_URL is set for this process"):
        checks.refuse_strong_role()


@pytest.mark.parametrize("command", [("-c", "import api.wsgi"), ("-m", "celery", "-A", "api", "worker", "-l", "info")])
def test_process_of_production_ends_if_it_logs_in_as_the_owner(owner: Login, command: tuple[str, ...]) -> None:
    # given
    settings = {
        "PROFILE": "production",
        "DJANGO_SECRET_KEY": "0123456789abcdef-" * 3,
        "CALLBACK_TOKEN_KEY": "fedcba9876543210+" * 3,
        "ALLOWED_HOSTS": "kasoko.app",
        "DATABASE_URL": owner_url(),
    }

    # when
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    # then
    assert ended.returncode != 0
    assert "The role of DATABASE_URL owns the tables" in ended.stdout + ended.stderr


def test_development_starts_with_one_role(settings: Any) -> None:
    assert not database_owner.is_apart()
    checks.refuse_strong_role()


# --- the commands ----------------------------------------------------------------------------------------------------


def test_new_table_and_column_get_their_rights_again(application: Login, owner: Login) -> None:
    # given: a migration added a column and a table
    run(owner, "ALTER TABLE users_customuser ADD COLUMN nickname text NOT NULL DEFAULT ''")
    run(owner, "CREATE TABLE payments_later (id int)")
    try:
        # when
        with owner.cursor() as cursor:
            database_roles.grant(cursor, database.application_role())

        # then
        run(application, "UPDATE users_customuser SET nickname = ''", "INSERT INTO payments_later VALUES (1)")
        run(application, "UPDATE payments_later SET id = 2")
        assert refuses(application, "DELETE FROM payments_later")
    finally:
        application.rollback()
        run(owner, "DROP TABLE payments_later", "ALTER TABLE users_customuser DROP COLUMN nickname")


def test_production_profile_is_not_lowered_by_a_migration(db: None) -> None:
    login = database_roles.Login("kasoko", "")
    with database.as_owner(), connection.cursor() as cursor, transaction.atomic():
        database_roles.install(cursor, login, production=True)
        database_roles.install(cursor, login, production=False)
        assert DatabaseProfile.objects.get().production
        database_roles.set_production(cursor, production=False)
        assert not DatabaseProfile.objects.get().production


def test_missing_role_is_told_with_its_statement(db: None) -> None:
    refused = pytest.raises(database_roles.CannotMakeRole, match="CREATE ROLE kasoko_other LOGIN PASSWORD")
    with database.as_owner(), connection.cursor() as cursor, refused:
        database_roles.make_role(cursor, database_roles.Login("kasoko_other", "secret"))
