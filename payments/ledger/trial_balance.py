"""Trial balance of any day, from daily sums and the later transfers.

Reading every transfer would take too long. So each transfer is added once to the sums of its day and account kind.
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
    """Add new transfers to the sums of their days, and return the id of the last transfer added. Idempotent."""

    def add(low: int, high: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_SQL["add_transfers_to_days"], {"low": low, "high": high})

    return watermarks.advance(TABLE, add, keep_going=keep_going)


def balance(kind: str) -> Decimal:
    """Return the current balance of all accounts of one kind, in shillings.

    For an asset or an expense it is the debits less the credits; for any other kind, the credits less the debits.
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
        """The balance, as in the function `balance`."""
        difference = self.debits - self.credits
        return difference if self.kind in LedgerAccount.GROWS_BY_DEBIT else -difference


def trial_balance(*, day: date | None = None) -> list[TrialLine]:
    """Return the sums of debits and credits of each kind of account, of all days or up to the end of `day`.

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
