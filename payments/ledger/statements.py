"""Reading the ledger by account: finding one, its transfers with a running balance, and the same as a file's rows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import connection
from django.db.models import Q, QuerySet

from payments.ledger import journal, trial_balance
from payments.models import LedgerAccount, Transfer
from users import phone
from users.models import CustomUser

PAGE = 50


@dataclass(frozen=True)
class Line:
    """One transfer as its account sees it: `change` is signed, `balance` is the account's after it. Shillings."""

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
    """A page of an account's transfers, newest first; `next` is where the following page begins."""

    account: LedgerAccount
    balance: Decimal
    lines: list[Line]
    next: int | None


def search(typed: str, kind: str = "") -> QuerySet[LedgerAccount]:
    """Accounts by code (`pool:12`, the start of one), by a member's phone, or by kind."""
    accounts = LedgerAccount.objects.select_related("user", "market").order_by("pk")
    if kind:
        accounts = accounts.filter(kind=kind)
    typed = typed.strip()
    if not typed:
        return accounts if kind else accounts.exclude(kind__in=["wallet", "pool", "receivable"])
    try:
        number = phone.normalise(typed)
    except phone.NotAPhoneNumber:
        pass
    else:
        return accounts.filter(user__in=CustomUser.objects.filter(phone_number=number))
    if found := re.fullmatch(r"([0-9]{1,18})", typed):
        return accounts.filter(Q(market_id=int(found[1])) | Q(user_id=int(found[1])))
    return accounts.filter(code=typed.lower())


def statement(account: LedgerAccount, *, before: int | None = None) -> Statement:
    """A page of one account's transfers below the id `before` (or the newest), with the balance after each."""
    grows_by_debit = account.kind in LedgerAccount.GROWS_BY_DEBIT
    # Of most kinds there is but one account, which all transfers share: its balance is that of the kind.
    shared = account.user_id is None and account.market_id is None
    balance = trial_balance.balance(account.kind) if shared else journal.balance(account.code)
    later = _sum_from(account, before) if before is not None else journal.ZERO
    running = balance - (later if grows_by_debit else -later)
    # Each side has its own index, so each side's newest are read and the newest of both are kept.
    sides: list[Transfer] = []
    for side in ("debit", "credit"):
        rows = Transfer.objects.filter(**{side: account}).select_related("debit", "credit").order_by("-pk")
        sides += list((rows.filter(pk__lt=before) if before is not None else rows)[: PAGE + 1])
    newest = sorted(sides, key=lambda transfer: -transfer.pk)[: PAGE + 1]
    lines = []
    for transfer in newest[:PAGE]:
        debited = transfer.debit_id == account.pk
        change = transfer.amount if debited == grows_by_debit else -transfer.amount
        other = transfer.credit.code if debited else transfer.debit.code
        lines.append(
            Line(transfer.pk, transfer.at, transfer.key, transfer.code, other, transfer.transaction_id, change, running)
        )
        running -= change
    return Statement(account, balance, lines, newest[PAGE - 1].pk if len(newest) > PAGE else None)


def _sum_from(account: LedgerAccount, first: int) -> Decimal:
    """Debits less credits of the transfers from the id `first` on."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT coalesce(sum(amount), 0) FROM payments_transfer"
            " WHERE debit_id = %(account)s AND id >= %(first)s) - (SELECT coalesce(sum(amount), 0)"
            " FROM payments_transfer WHERE credit_id = %(account)s AND id >= %(first)s)",
            {"account": account.pk, "first": first},
        )
        (total,) = cursor.fetchone()
    return total


def exported(account: LedgerAccount) -> Iterator[Line]:
    """Every transfer of an account, oldest first, read in pieces so that a long one needs no memory."""
    grows_by_debit = account.kind in LedgerAccount.GROWS_BY_DEBIT
    rows = Transfer.objects.filter(Q(debit=account) | Q(credit=account)).select_related("debit", "credit")
    running, last = journal.ZERO, 0
    while page := list(rows.filter(pk__gt=last).order_by("pk")[:2_000]):
        for transfer in page:
            debited = transfer.debit_id == account.pk
            change = transfer.amount if debited == grows_by_debit else -transfer.amount
            running += change
            other = transfer.credit.code if debited else transfer.debit.code
            yield Line(
                transfer.pk, transfer.at, transfer.key, transfer.code, other, transfer.transaction_id, change, running
            )
        last = page[-1].pk
