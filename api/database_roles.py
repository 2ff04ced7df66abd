"""Rights of the application's role in PostgreSQL.

Migrations run as the owner of the tables. Web, workers and beat log in as another role that owns nothing. A person who
takes over a process of ours, or its password, can then not rewrite the ledger, the audit trail or a balance, and can
not switch off a trigger. `manage.py migrate` grants these rights again each time, so new tables and columns get theirs.

A table without an entry here gets SELECT, INSERT and UPDATE, but no UPDATE if its triggers refuse every update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg2.extensions
from psycopg2 import sql

# Rows that the application only reads. Migrations write them.
READ_ONLY = {
    "auth_permission",
    "django_content_type",
    "django_migrations",
    "payments_databaseprofile",
}
# Rows that are written once and never changed, although no trigger says so. Only the owner destroys a member's key.
APPEND_ONLY = {"django_admin_log", "users_memberkey", "users_membernote"}
# The only columns that change in these tables.
CHANGED_COLUMNS = {
    # Columns that say what became of a callback. A parked one finds its attempt later.
    "payments_callback": {"attempt_id", "applied_at", "verdict"},
    "users_notice": {"sent_at"},
}
# Columns that never change in these tables. In development a balance may be assigned, and a trigger books it.
FIXED_COLUMNS = {"users_customuser": {"id", "balance"}}
DEVELOPMENT_COLUMNS = {"users_customuser": {"balance"}}
# Rows that are deleted on purpose: sessions, tokens, second factors, roles of a person, and rows that live for days.
# A trigger keeps the outcomes of a market that has bets.
DELETED = {
    "auth_group",
    "auth_group_permissions",
    "django_session",
    "knox_authtoken",
    "markets_outcome",
    "otp_static_staticdevice",
    "otp_static_statictoken",
    "otp_totp_totpdevice",
    "payments_daytotal",
    "payments_heartbeat",
    "payments_invariantcheck",
    "payments_statusquery",
    "users_customuser_groups",
    "users_customuser_user_permissions",
    "users_enrolmentcode",
    "users_knownaddress",
    "users_pincounter",
    "users_tokenproof",
}
# Functions that run with the owner's rights. Only they change a balance.
OWNERS_FUNCTIONS = {"payments_move_wallets"}
# Functions that the application calls. A trigger needs no right to call its function.
CALLED_FUNCTIONS = {"kasoko_is_production"}
# `pg_temp` comes last, or a temporary table would come before ours.
SEARCH_PATH = "pg_catalog, public, pg_temp"
# Membership in one of these is as good as owning the tables.
STRONG_ROLES = (
    "pg_database_owner",
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_write_all_data",
    "pg_write_server_files",
)

_TABLES = """
    SELECT c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'S') ORDER BY c.relname
"""
# Triggers that refuse an act on all rows, whatever changes in them. Bit 16 of the type is UPDATE.
_NEVER_CHANGED = """
    SELECT DISTINCT c.relname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
    WHERE p.proname = 'kasoko_refuse' AND t.tgqual IS NULL AND t.tgattr = '' AND t.tgtype & 16 > 0
"""
_COLUMNS = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = format('public.%%I', %s::text)::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_FUNCTIONS = """
    SELECT p.oid::regprocedure::text, p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'public' AND p.prokind = 'f'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    ORDER BY p.proname
"""


class CannotMakeRole(Exception):
    """The application's role is missing, and the owner may not create it. The message has the statement to run."""


@dataclass(frozen=True)
class Login:
    """The name and the password of the application's role."""

    role: str
    password: str


def install(cursor: Any, application: Login, *, production: bool) -> None:
    """Make the application's role, give it its rights, and harden the functions. The cursor is the owner's.

    A database that once was made production stays production: only `set_production` changes it back.
    Idempotent: a second call gives the same rights.
    Raises: CannotMakeRole.
    """
    harden_functions(cursor)
    cursor.execute(
        "INSERT INTO payments_databaseprofile (id, production) VALUES (1, %s) ON CONFLICT DO NOTHING", [production]
    )
    if production:
        set_production(cursor, production=True)
    cursor.execute("SELECT current_user")
    if cursor.fetchone()[0] == application.role:
        return
    make_role(cursor, application)
    grant(cursor, application.role)


def set_production(cursor: Any, *, production: bool) -> None:
    """Switch the guards of production on or off, as the owner."""
    cursor.execute(
        "UPDATE payments_databaseprofile SET production = %s WHERE production <> %s", [production, production]
    )


def make_role(cursor: Any, application: Login) -> None:
    """Create the application's role if it is missing. Raises: CannotMakeRole."""
    cursor.execute("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", [application.role])
    if cursor.fetchone()[0]:
        return
    if not may_make_roles(cursor):
        raise CannotMakeRole(
            f"The role {application.role} of DATABASE_URL does not exist, and the owner may not create roles. Run this "
            f"as a superuser, with the password of DATABASE_URL: CREATE ROLE {application.role} LOGIN PASSWORD '…'"
        )
    options = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION"
    cursor.execute(sql.SQL(f"CREATE ROLE {{}} {options}").format(sql.Identifier(application.role)))
    set_password(cursor, application)


def may_make_roles(cursor: Any) -> bool:
    """Return True if the role of this connection may create roles and set passwords."""
    cursor.execute("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    return bool(cursor.fetchone()[0])


def set_password(cursor: Any, application: Login) -> None:
    """Give the application's role the password of DATABASE_URL. The server's log shows its hash only."""
    raw = cursor.db.connection if hasattr(cursor, "db") else cursor.connection
    hashed = psycopg2.extensions.encrypt_password(application.password, application.role, raw, "scram-sha-256")
    role = sql.Identifier(application.role)
    cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(hashed)))


def harden_functions(cursor: Any) -> None:
    """Fix the search path of every function of ours, and let nobody else attach them to a table."""
    cursor.execute(_FUNCTIONS)
    for signature, name in cursor.fetchall():
        rights = "SECURITY DEFINER" if name in OWNERS_FUNCTIONS else "SECURITY INVOKER"
        path = "" if name in CALLED_FUNCTIONS else f" SET search_path = {SEARCH_PATH}"
        cursor.execute(f"ALTER FUNCTION {signature} {rights}{path}")
        cursor.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")


def grant(cursor: Any, role: str) -> None:
    """Take every right from the application's role and from everybody, and give the role those that it needs."""
    name = sql.Identifier(role)
    cursor.execute("SELECT current_database(), production FROM payments_databaseprofile")
    database, production = cursor.fetchone()
    statements = [
        sql.SQL("REVOKE CREATE, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database)),
        sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(sql.Identifier(database), name),
        sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), name),
        sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC"),
        sql.SQL("REVOKE ALL ON SCHEMA public FROM {}").format(name),
        sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name),
        sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, {}").format(name),
        sql.SQL("REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, {}").format(name),
        sql.SQL("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM {}").format(name),
    ]
    append_only = append_only_tables(cursor)
    for relation, kind in _relations(cursor):
        target = sql.Identifier("public", relation)
        if kind == "S":
            statements.append(sql.SQL("GRANT USAGE, SELECT ON SEQUENCE {} TO {}").format(target, name))
            continue
        if relation in READ_ONLY or kind in "vm":
            rights: list[sql.Composable] = [sql.SQL("SELECT")]
        elif relation in append_only:
            rights = [sql.SQL("SELECT"), sql.SQL("INSERT")]
        else:
            rights = _rights(cursor, relation, production=production)
        statements.append(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(", ").join(rights), target, name))
    for function in sorted(CALLED_FUNCTIONS):
        statements.append(
            sql.SQL("GRANT EXECUTE ON FUNCTION {}() TO {}").format(sql.Identifier("public", function), name)
        )
    for statement in statements:
        cursor.execute(statement)


def append_only_tables(cursor: Any) -> set[str]:
    """Return the tables whose rows are never changed: those listed, and those whose triggers refuse every update."""
    cursor.execute(_NEVER_CHANGED)
    return APPEND_ONLY | {table for (table,) in cursor.fetchall()}


def _rights(cursor: Any, table: str, *, production: bool) -> list[sql.Composable]:
    """Return the rights of the application on a table whose rows change."""
    rights: list[sql.Composable] = [sql.SQL("SELECT"), sql.SQL("INSERT")]
    fixed = FIXED_COLUMNS.get(table, set())
    if not production:
        fixed = fixed - DEVELOPMENT_COLUMNS.get(table, set())
    if table in CHANGED_COLUMNS or fixed:
        cursor.execute(_COLUMNS, [table])
        columns = [column for (column,) in cursor.fetchall() if column not in fixed]
        columns = [column for column in columns if column in CHANGED_COLUMNS.get(table, {column})]
        rights.append(sql.SQL("UPDATE ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))))
    else:
        rights.append(sql.SQL("UPDATE"))
    if table in DELETED:
        rights.append(sql.SQL("DELETE"))
    return rights


# --- checked at start ------------------------------------------------------------------------------------------------

_ROLE = """
    SELECT rolsuper, rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls FROM pg_roles
    WHERE rolname = current_user
"""
_OWNED = """
    SELECT pg_has_role(current_user, c.relowner, 'MEMBER') FROM pg_class c
    WHERE c.oid = to_regclass('public.payments_transfer')
"""
_RIGHTS = """
    SELECT has_database_privilege(current_database(), 'TEMPORARY') AS temporary,
        has_database_privilege(current_database(), 'CREATE') OR has_schema_privilege('public', 'CREATE') AS creates
"""


def problems(cursor: Any) -> list[str]:
    """Return the reasons for which the role of this connection must not run the application, as sentences.

    The cursor is the application's. A database without our tables has none of them.
    """
    cursor.execute(_OWNED)
    owned = cursor.fetchone()
    if owned is None:
        return []
    found = []
    cursor.execute(_ROLE)
    is_superuser, has_attributes = cursor.fetchone()
    if is_superuser:
        return ["The role of DATABASE_URL is a superuser, so no guard of the database holds for it."]
    if owned[0]:
        return [
            "The role of DATABASE_URL owns the tables or is a member of their owner, so it can remove their guards."
        ]
    if has_attributes:
        found.append("The role of DATABASE_URL may create roles or databases, replicate, or pass row security.")
    cursor.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) AND pg_has_role(current_user, oid, 'MEMBER') ORDER BY 1",
        [list(STRONG_ROLES)],
    )
    found += [f"The role of DATABASE_URL is a member of {role}." for (role,) in cursor.fetchall()]
    cursor.execute(_RIGHTS)
    may_make_temporary, may_create = cursor.fetchone()
    if may_make_temporary:
        found.append("The role of DATABASE_URL may make temporary tables, which can take the place of ours.")
    if may_create:
        found.append("The role of DATABASE_URL may create schemas, tables or functions.")
    return found + _excess_rights(cursor)


def _excess_rights(cursor: Any) -> list[str]:
    """Return a sentence for each right on a guarded table that the application must not have."""
    found = []
    refused: Mapping[str, set[str]] = {
        "TRUNCATE, TRIGGER": {relation for relation, kind in _relations(cursor) if kind in "rp"},
        "DELETE": {relation for relation, kind in _relations(cursor) if kind in "rp"} - DELETED,
        "UPDATE": append_only_tables(cursor) | READ_ONLY | set(CHANGED_COLUMNS) | set(FIXED_COLUMNS),
        "INSERT": READ_ONLY,
    }
    for rights, tables in refused.items():
        cursor.execute(
            "SELECT name FROM unnest(%s::text[]) name"
            " WHERE has_table_privilege(to_regclass('public.' || name), %s) ORDER BY 1",
            [sorted(tables), rights],
        )
        found += [f"The role of DATABASE_URL has {rights} on {table}." for (table,) in cursor.fetchall()]
    cursor.execute("SELECT has_column_privilege('public.users_customuser', 'balance', 'UPDATE')")
    if cursor.fetchone()[0]:
        found.append("The role of DATABASE_URL may change a balance.")
    cursor.execute("SELECT kasoko_is_production()")
    if not cursor.fetchone()[0]:
        found.append("The database is in its development profile, which lets a balance be assigned.")
    return found


def _relations(cursor: Any) -> list[tuple[str, str]]:
    cursor.execute(_TABLES)
    return cursor.fetchall()
