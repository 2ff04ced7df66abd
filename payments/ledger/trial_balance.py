"""Trial balance of any day, from daily sums and the transfers since.

Reading every transfer would take too long. So each transfer is added once to the sums of its day and kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from django.db import connection

from markets import watermarks
from payments import named_sql
from payments.ledger import journal
from payments.models import LedgerAccount

TABLE = "payments_transfer"
_SQL = named_sql.beside(__file__)


def advance(*, keep_going: Callable[[], bool]) -> int:
    """Add new transfers to the sums of their days; return the id up to which they are summed. Idempotent."""

    def add(low: int, high: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_SQL["add_transfers_to_days"], {"low": low, "high": high})

    return watermarks.advance(TABLE, add, keep_going=keep_going)


def balance(kind: str) -> Decimal:
    """Return the balance of all accounts of one kind, in shillings, exact as of now.

    It is positive on the side by which the kind grows.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SQL["sums_of_one_kind"], {"kind": kind})
        debited, credited = cursor.fetchone()
    difference: Decimal = debited - credited
    return difference if kind in LedgerAccount.GROWS_BY_DEBIT else -difference


@dataclass(frozen=True)
class TrialLine:
    """One line of the trial balance: the total debits and credits of one kind, in shillings."""

    kind: str
    accounts: int
    debits: Decimal
    credits: Decimal

    @property
    def balance(self) -> Decimal:
        """Positive on the side by which the kind grows."""
        difference = self.debits - self.credits
        return difference if self.kind in LedgerAccount.GROWS_BY_DEBIT else -difference


def trial_balance(*, day: date | None = None) -> list[TrialLine]:
    """Return the sums of debits and credits of every kind of account: of all days, or up to the end of one day.

    The two columns are equal to the cent.
    Units: shillings; a day begins at midnight in Nairobi.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SQL["sums_of_every_kind"], {"day": day})
        sums = {kind: (debited, credited) for kind, debited, credited in cursor.fetchall()}
        cursor.execute(_SQL["accounts_by_kind"])
        counts = dict(cursor.fetchall())
    return [
        TrialLine(kind=kind.value, accounts=counts.get(kind.value, 0), debits=debited, credits=credited)
        for kind in LedgerAccount.Kind
        for debited, credited in [sums.get(kind.value, (journal.ZERO, journal.ZERO))]
        if debited or credited
    ]
