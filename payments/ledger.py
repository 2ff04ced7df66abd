"""The double-entry ledger: append transfers, sum them. It never updates, never deletes, and knows no market's rules.

A transfer moves one amount from a debit account to a credit account, so the books balance by shape. Accounts are named
by code (`wallet:7`, `pool:3`, `payable`) and open on need. A trigger keeps `CustomUser.balance` equal to the wallet's
sum; every other balance is a sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import connection, transaction
from django.db.models import Case, Count, DecimalField, F, Sum, When
from django.db.models.functions import Coalesce

from payments.models import LedgerAccount, Transfer

PAYABLE = "payable"
IN_FLIGHT = "in_flight"
FEE_INCOME = "fee_income"
OPENING = "opening"
MPESA_UTILITY = "mpesa_utility"
MPESA_CHARGES_PAID = "mpesa_charges_paid"
CHARGE_EXPENSE = "charge_expense"
BAD_DEBT = "bad_debt"
ZERO = Decimal("0.00")


def wallet(user_id: int) -> str:
    return f"wallet:{user_id}"


def pool(market_id: int) -> str:
    return f"pool:{market_id}"


def receivable(user_id: int) -> str:
    return f"receivable:{user_id}"


@dataclass(frozen=True)
class Entry:
    """A transfer to be booked: `debit` and `credit` are account codes, `amount` shillings > 0.

    `key` is what makes it happen once; `code`, its first part, says what kind of move it is.
    """

    key: str
    debit: str
    credit: str
    amount: Decimal
    transaction_id: int | None = None

    @property
    def code(self) -> str:
        return self.key.partition(":")[0]


def open_accounts(codes: Iterable[str]) -> dict[str, int]:
    """Return the id of each account, opening those that are not there yet. Idempotent by code."""
    wanted = sorted(set(codes))
    found = dict(LedgerAccount.objects.filter(code__in=wanted).values_list("code", "pk"))
    missing = [code for code in wanted if code not in found]
    if missing:
        accounts = []
        for code in missing:
            kind, _, owner = code.partition(":")
            accounts.append(
                LedgerAccount(
                    code=code,
                    kind=kind,
                    user_id=int(owner) if kind in {"wallet", "receivable"} else None,
                    market_id=int(owner) if kind == "pool" else None,
                )
            )
        LedgerAccount.objects.bulk_create(accounts, ignore_conflicts=True)
        found = dict(LedgerAccount.objects.filter(code__in=wanted).values_list("code", "pk"))
    return found


def post(entries: Iterable[Entry], *, at: datetime) -> None:
    """Book transfers, in the caller's transaction.

    Locks: the wallets moved, by id.
    Raises: django.db.IntegrityError, where a key is booked already, an amount is not positive or a wallet would go
    below zero; then nothing is booked.
    """
    booked = list(entries)
    if not booked:
        return
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("Transfers are booked inside a transaction.")
    accounts = open_accounts(code for entry in booked for code in (entry.debit, entry.credit))
    Transfer.objects.bulk_create(
        Transfer(
            key=entry.key,
            debit_id=accounts[entry.debit],
            credit_id=accounts[entry.credit],
            amount=entry.amount,
            code=entry.code,
            at=at,
            transaction_id=entry.transaction_id,
        )
        for entry in booked
    )


def balance(code: str) -> Decimal:
    """The balance of one account in shillings, positive on the side its kind grows by; 0.00 where it never opened."""
    account = LedgerAccount.objects.filter(code=code).first()
    if account is None:
        return ZERO
    debits: Decimal = Transfer.objects.filter(debit=account).aggregate(total=Coalesce(Sum("amount"), ZERO))["total"]
    credits: Decimal = Transfer.objects.filter(credit=account).aggregate(total=Coalesce(Sum("amount"), ZERO))["total"]
    return debits - credits if account.kind in LedgerAccount.GROWS_BY_DEBIT else credits - debits


def owed(transaction_id: int) -> Decimal:
    """What `payable` still owes on one transaction, in shillings: nothing of it is in flight, paid or redirected."""
    signed = Case(
        When(credit__code=PAYABLE, then=F("amount")),
        When(debit__code=PAYABLE, then=-F("amount")),
        default=ZERO,
        output_field=DecimalField(max_digits=16, decimal_places=2),
    )
    transfers = Transfer.objects.filter(transaction_id=transaction_id)
    total: Decimal = transfers.aggregate(owed=Coalesce(Sum(signed), ZERO))["owed"]
    return total


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


def trial_balance(*, at: datetime | None = None) -> list[TrialLine]:
    """Every kind of account with the sums of its debits and credits, of all or before `at`; the columns are equal."""
    lines: dict[str, list[Decimal]] = {}
    booked = Transfer.objects.all() if at is None else Transfer.objects.filter(at__lt=at)
    for side, place in (("debit", 0), ("credit", 1)):
        for kind, total in booked.values_list(f"{side}__kind").annotate(total=Sum("amount")).order_by():
            lines.setdefault(kind, [ZERO, ZERO])[place] = total
    counts = dict(LedgerAccount.objects.values_list("kind").annotate(count=Count("pk")).order_by())
    order = [kind.value for kind in LedgerAccount.Kind]
    return [
        TrialLine(kind=kind, accounts=counts.get(kind, 0), debits=debits, credits=credits)
        for kind, (debits, credits) in sorted(lines.items(), key=lambda line: order.index(line[0]))
    ]
