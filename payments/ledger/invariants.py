"""Invariants of the money: queries in `invariants.sql` that must return no row.

Every test that uses the database checks the invariants when it ends, and `manage.py reconcile` checks them on demand.
An auditor can read and run the `.sql` file.
"""

from dataclasses import dataclass
from pathlib import Path

from django.db import connection, transaction

from payments import named_sql

# The queries by title. A title is the first line of the statement's comment. The console shows titles, and
# InvariantCheck stores them.
INVARIANTS: dict[str, str] = {
    statement.comment[0]: statement.sql for statement in named_sql.read(Path(__file__).with_suffix(".sql")).values()
}


@dataclass(frozen=True)
class Difference:
    """One row that breaks an invariant. `detail` is the sentence that the query returned."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


def differences() -> list[Difference]:
    """Check every invariant now and return the rows that break an invariant. If the list is empty, the books close.

    Each invariant is one statement, so it sees one snapshot even while the system runs. All invariants share a
    snapshot if the caller opened a REPEATABLE READ transaction.
    """
    return [difference for invariant in INVARIANTS for difference in broken(invariant)]


def broken(invariant: str) -> list[Difference]:
    """Check one invariant by its title, without a time limit, and return the rows that break it."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(INVARIANTS[invariant])
        return [Difference(invariant, detail) for (detail,) in cursor.fetchall()]
