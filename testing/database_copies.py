"""Copies of the whole database in memory, for tests in which a server loses its last commits."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

from django.db import connection, transaction

from testing import database

_TABLES = """
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind = 'r' ORDER BY 1
"""
_SEQUENCES = "SELECT sequencename, coalesce(last_value, 0) FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1"


@dataclass(frozen=True)
class DatabaseCopy:
    """The rows of each table in PostgreSQL's COPY format, and the last value of each sequence."""

    tables: Mapping[str, bytes]
    sequences: Mapping[str, int]


def take() -> DatabaseCopy:
    """Copy every table and sequence of the test database."""
    with connection.cursor() as cursor:
        cursor.execute(_SEQUENCES)
        sequences = dict(cursor.fetchall())
        cursor.execute(_TABLES)
        tables = {}
        for (table,) in cursor.fetchall():
            rows = io.BytesIO()
            cursor.copy_expert(f'COPY "{table}" TO STDOUT', rows)
            tables[table] = rows.getvalue()
    return DatabaseCopy(tables, sequences)


def put_back(copy: DatabaseCopy) -> None:
    """Replace all rows by those of the copy without firing triggers, as a restore from a backup does."""
    tables = [f'"{table}"' for table in copy.tables]
    with transaction.atomic(), database.as_owner(), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"TRUNCATE {', '.join(tables)}")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        # Two foreign keys to outcomes cannot be deferred, so outcomes come first.
        for table in sorted(copy.tables, key=lambda name: name != "markets_outcome"):
            cursor.copy_expert(f'COPY "{table}" FROM STDIN', io.BytesIO(copy.tables[table]))
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        for sequence, last in copy.sequences.items():
            cursor.execute("SELECT setval(%s::regclass, greatest(%s, 1), %s)", [f'"{sequence}"', last, last > 0])
