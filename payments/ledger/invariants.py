"""Invariants of the money: each is one query in `invariants.sql` that must return no row.

Every test checks them when it ends, and `manage.py reconcile` checks them on demand. An auditor reads the `.sql` file.
"""

from dataclasses import dataclass
from pathlib import Path

from django.db import connection, transaction

from payments import named_sql

# By title, the first line of the statement's comment: the console shows it and InvariantCheck stores it.
INVARIANTS: dict[str, str] = {
    statement.comment[0]: statement.sql for statement in named_sql.read(Path(__file__).with_suffix(".sql")).values()
}


@dataclass(frozen=True)
class Difference:
    """One row that breaks an invariant; `detail` says how."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


def differences() -> list[Difference]:
    """Check every invariant now and return the rows that break one; an empty list means that the books close.

    Each invariant is one statement, so it sees one snapshot even while the system runs. All of them share a snapshot
    if the caller opened a REPEATABLE READ transaction.
    """
    return [difference for invariant in INVARIANTS for difference in broken(invariant)]


def broken(invariant: str) -> list[Difference]:
    """Check one invariant by its name in INVARIANTS, without a time limit, and return the rows that break it."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(INVARIANTS[invariant])
        return [Difference(invariant, detail) for (detail,) in cursor.fetchall()]
