"""Account statements: search for accounts, and pages and exports of their transfers with running balances."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import connection
from django.db.models import Q, QuerySet

from payments import named_sql
from payments.ledger import journal, trial_balance
from payments.models import LedgerAccount, Transfer
from users import phone
from users.models import CustomUser

PAGE = 50
EXPORT_PAGE = 2_000
_SUM_FROM = named_sql.beside(__file__)["sum_from"]


@dataclass(frozen=True)
class Line:
    """One transfer as a line of an account's statement. Amounts are shillings.

    `change` is signed, `balance` is the account's balance after the transfer, and `other` is the other account.
    """

    id: int
    at: datetime
    key: str
    code: str
    other: str
    transaction_id: int | None
    change: Decimal
    balance: Decimal


@dataclass(frozen=True)
class Statement:
    """A page of an account's transfers, newest first; `next` is the id at which the following page begins."""

    account: LedgerAccount
    balance: Decimal
    lines: list[Line]
    next: int | None


def search(typed: str, kind: str = "") -> QuerySet[LedgerAccount]:
    """Find accounts by code (`pool:12`), a member's phone number, the id of a member or market, or kind."""
    accounts = LedgerAccount.objects.select_related("user", "market").order_by("pk")
    if kind:
        accounts = accounts.filter(kind=kind)
    typed = typed.strip()
    if not typed:
        return accounts if kind else accounts.exclude(kind__in=["wallet", "pool", "receivable"])
    try:
        phone_number = phone.normalise(typed)
    except phone.NotAPhoneNumber:
        pass
    else:
        return accounts.filter(user__in=CustomUser.objects.filter(phone_number=phone_number))
    if re.fullmatch(r"[0-9]{1,18}", typed):
        return accounts.filter(Q(market_id=int(typed)) | Q(user_id=int(typed)))
    return accounts.filter(code=typed.lower())


def statement(account: LedgerAccount, *, before: int | None = None) -> Statement:
    """Return a page of one account's transfers with the balance after each.

    The page holds the newest transfers, or the newest transfers with ids below `before`.
    """
    # Most kinds have a single account that belongs to no member and no market. Its balance is the balance of the kind.
    shared = account.user_id is None and account.market_id is None
    balance = trial_balance.balance(account.kind) if shared else journal.balance(account.code)
    later = _sum_from(account, before) if before is not None else journal.ZERO
    running = balance - (later if _grows_by_debit(account) else -later)
    # Debits and credits have separate indexes. So read the newest transfers of each side, then keep the newest of both.
    sides: list[Transfer] = []
    for side in ("debit", "credit"):
        rows = Transfer.objects.filter(**{side: account}).select_related("debit", "credit").order_by("-pk")
        sides += list((rows.filter(pk__lt=before) if before is not None else rows)[: PAGE + 1])
    newest = sorted(sides, key=lambda transfer: -transfer.pk)[: PAGE + 1]
    lines = []
    for transfer in newest[:PAGE]:
        lines.append(_line(transfer, account, running))
        running -= lines[-1].change
    return Statement(account, balance, lines, newest[PAGE - 1].pk if len(newest) > PAGE else None)


def exported(account: LedgerAccount) -> Iterator[Line]:
    """Yield every transfer of an account, oldest first. Transfers are read in pages, to need little memory."""
    rows = Transfer.objects.filter(Q(debit=account) | Q(credit=account)).select_related("debit", "credit")
    running, last = journal.ZERO, 0
    while page := list(rows.filter(pk__gt=last).order_by("pk")[:EXPORT_PAGE]):
        for transfer in page:
            running += _change(transfer, account)
            yield _line(transfer, account, running)
        last = page[-1].pk


def _line(transfer: Transfer, account: LedgerAccount, balance: Decimal) -> Line:
    return Line(
        id=transfer.pk,
        at=transfer.at,
        key=transfer.key,
        code=transfer.code,
        other=transfer.credit.code if transfer.debit_id == account.pk else transfer.debit.code,
        transaction_id=transfer.transaction_id,
        change=_change(transfer, account),
        balance=balance,
    )


def _change(transfer: Transfer, account: LedgerAccount) -> Decimal:
    debited = transfer.debit_id == account.pk
    return transfer.amount if debited == _grows_by_debit(account) else -transfer.amount


def _grows_by_debit(account: LedgerAccount) -> bool:
    return account.kind in LedgerAccount.GROWS_BY_DEBIT


def _sum_from(account: LedgerAccount, first: int) -> Decimal:
    """Return debits less credits of the account's transfers with ids from `first` on."""
    with connection.cursor() as cursor:
        cursor.execute(_SUM_FROM, {"account": account.pk, "first": first})
        (total,) = cursor.fetchone()
    return total
