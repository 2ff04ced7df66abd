"""The trial balance of any day without reading every transfer: days are summed once, what came since is live."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from django.db import connection

from markets import watermarks
from payments.ledger import journal
from payments.models import LedgerAccount

TABLE = "payments_transfer"
_ADD = """
    INSERT INTO payments_ledgerday (day, kind, debits, credits)
    SELECT (t.at AT TIME ZONE 'Africa/Nairobi')::date, a.kind, sum(side.debit), sum(side.credit)
    FROM payments_transfer t CROSS JOIN LATERAL
        (VALUES (t.debit_id, t.amount, 0), (t.credit_id, 0, t.amount)) AS side (account_id, debit, credit)
    JOIN payments_ledgeraccount a ON a.id = side.account_id
    WHERE t.id > %s AND t.id <= %s GROUP BY 1, 2 ORDER BY 2, 1
    ON CONFLICT (kind, day) DO UPDATE
    SET debits = payments_ledgerday.debits + excluded.debits, credits = payments_ledgerday.credits + excluded.credits"""
# Days, mark and later transfers in one statement: one moment, so none is missed and none is counted twice. The later
# ones are few: read by their ids in order, and the kinds by their accounts' ids, so that no whole table is read.
_SINCE = """
    SELECT (t.at AT TIME ZONE 'Africa/Nairobi')::date,
        (SELECT kind FROM payments_ledgeraccount a WHERE a.id = side.account_id), side.debit, side.credit
    FROM (SELECT * FROM payments_transfer
          WHERE id > coalesce((SELECT up_to FROM markets_watermark WHERE "table" = 'payments_transfer'), 0)
          ORDER BY id) t CROSS JOIN LATERAL
        (VALUES (t.debit_id, t.amount, 0), (t.credit_id, 0, t.amount)) AS side (account_id, debit, credit)"""
_BALANCE = f"""
    SELECT kind, sum(debits), sum(credits)
    FROM (SELECT day, kind, debits, credits FROM payments_ledgerday UNION ALL {_SINCE}) booked
    WHERE %(day)s::date IS NULL OR day <= %(day)s::date GROUP BY kind"""  # noqa: S608 - our own words
_ONE = f"""
    SELECT coalesce(sum(debits), 0), coalesce(sum(credits), 0)
    FROM (SELECT kind, debits, credits FROM payments_ledgerday WHERE kind = %(kind)s
          UNION ALL SELECT kind, debit, credit FROM ({_SINCE}) AS s (day, kind, debit, credit)) booked
    WHERE kind = %(kind)s"""  # noqa: S608 - our own words
_ACCOUNTS = "SELECT kind, count(*) FROM payments_ledgeraccount GROUP BY kind"


def advance(*, keep_going: Callable[[], bool]) -> int:
    """Add the transfers that have been booked to their days; returns the id up to which they are in. Idempotent."""

    def add(low: int, high: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_ADD, [low, high])

    return watermarks.advance(TABLE, add, keep_going=keep_going)


def balance(kind: str) -> Decimal:
    """The balance of all accounts of a kind in shillings, positive on the side it grows by; exact, as of now."""
    with connection.cursor() as cursor:
        cursor.execute(_ONE, {"kind": kind})
        debits, credits = cursor.fetchone()
    difference: Decimal = debits - credits
    return difference if kind in LedgerAccount.GROWS_BY_DEBIT else -difference


@dataclass(frozen=True)
class TrialLine:
    """One line of the trial balance: the kind's total of debits and of credits, in shillings."""

    kind: str
    accounts: int
    debits: Decimal
    credits: Decimal

    @property
    def balance(self) -> Decimal:
        """Positive on the side the kind grows by."""
        difference = self.debits - self.credits
        return difference if self.kind in LedgerAccount.GROWS_BY_DEBIT else -difference


def trial_balance(*, day: date | None = None) -> list[TrialLine]:
    """Every kind of account with the sums of its debits and credits, to the cent: of all, or up to the end of a day.

    Units: shillings; a day is Nairobi's. The two columns are equal.
    """
    with connection.cursor() as cursor:
        cursor.execute(_BALANCE, {"day": day})
        sums = {kind: (debits, credits) for kind, debits, credits in cursor.fetchall()}
        cursor.execute(_ACCOUNTS)
        counts = dict(cursor.fetchall())
    return [
        TrialLine(kind=kind.value, accounts=counts.get(kind.value, 0), debits=debits, credits=credits)
        for kind in LedgerAccount.Kind
        for debits, credits in [sums.get(kind.value, (journal.ZERO, journal.ZERO))]
        if debits or credits
    ]
