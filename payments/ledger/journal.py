"""Journal of the double-entry ledger: books transfers and sums them.

It never updates or deletes a transfer, and contains no rule of a market. A transfer moves one amount from a debit
account to a credit account, so debits and credits are always equal. An account has a code (`wallet:7`, `pool:3`,
`payable`) and is opened by its first transfer. A trigger keeps `CustomUser.balance` equal to the sum of the wallet's
transfers. Every other balance is computed from the transfers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import Case, DecimalField, F, Sum, When
from django.db.models.functions import Coalesce

from payments import named_sql
from payments.models import LedgerAccount, Transfer

PAYABLE = "payable"
IN_FLIGHT = "in_flight"
FEE_INCOME = "fee_income"
OPENING = "opening"
MPESA_UTILITY = "mpesa_utility"
MPESA_CHARGES_PAID = "mpesa_charges_paid"
CHARGE_EXPENSE = "charge_expense"
BAD_DEBT = "bad_debt"
MISDIRECTED = "misdirected"
SUSPENSE = "suspense"
ZERO = Decimal("0.00")
_POST_TRANSFERS = named_sql.beside(__file__)["post_transfers"]


def wallet(user_id: int) -> str:
    """Return the code of a member's wallet account."""
    return f"wallet:{user_id}"


def pool(market_id: int) -> str:
    """Return the code of a market's pool account."""
    return f"pool:{market_id}"


def receivable(user_id: int) -> str:
    """Return the code of the account that holds a member's debt to us."""
    return f"receivable:{user_id}"


@dataclass(frozen=True)
class Entry:
    """A transfer to book: `debit` and `credit` are account codes, `amount` is in shillings and above 0.

    `key` is unique, so the transfer is booked at most once. Its part before the first colon is `code`, the kind of
    transfer.
    """

    key: str
    debit: str
    credit: str
    amount: Decimal
    transaction_id: int | None = None

    @property
    def code(self) -> str:
        """The kind of transfer."""
        return self.key.partition(":")[0]


def open_accounts(codes: Iterable[str]) -> dict[str, int]:
    """Open the accounts that do not exist yet, and return the id of every account. Idempotent: by code."""
    wanted = sorted(set(codes))
    accounts = LedgerAccount.objects.filter(code__in=wanted)
    ids = dict(accounts.values_list("code", "pk"))
    missing = [code for code in wanted if code not in ids]
    if missing:
        LedgerAccount.objects.bulk_create([_new_account(code) for code in missing], ignore_conflicts=True)
        ids = dict(accounts.values_list("code", "pk"))
    return ids


def _new_account(code: str) -> LedgerAccount:
    kind, _, owner = code.partition(":")
    return LedgerAccount(
        code=code,
        kind=kind,
        user_id=int(owner) if kind in {"wallet", "receivable"} else None,
        market_id=int(owner) if kind == "pool" else None,
    )


def post(entries: Iterable[Entry], *, at: datetime) -> None:
    """Book any number of transfers in one statement, in the caller's transaction.

    Locks: the wallets whose balance changes, by id.
    Raises: django.db.IntegrityError, if a key is already booked, an amount is not positive or a wallet would go below
    zero. Then nothing is booked.
    """
    booked = list(entries)
    if not booked:
        return
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("Transfers are booked inside a transaction.")
    columns: dict[str, Any] = {
        "keys": [entry.key for entry in booked],
        "debits": [entry.debit for entry in booked],
        "credits": [entry.credit for entry in booked],
        "amounts": [entry.amount for entry in booked],
        "codes": [entry.code for entry in booked],
        "transactions": [entry.transaction_id for entry in booked],
        "at": at,
        "count": len(booked),
    }
    with connection.cursor() as cursor:
        cursor.execute(_POST_TRANSFERS, columns)
        if cursor.rowcount != len(booked):
            open_accounts(code for entry in booked for code in (entry.debit, entry.credit))
            cursor.execute(_POST_TRANSFERS, columns)


def balance(code: str) -> Decimal:
    """Return the balance of one account in shillings, or 0.00 if the account does not exist.

    The balance of an asset or an expense is its debits less its credits; of any other kind, credits less debits.
    """
    account = LedgerAccount.objects.filter(code=code).first()
    if account is None:
        return ZERO
    total = Coalesce(Sum("amount"), ZERO)
    debited: Decimal = Transfer.objects.filter(debit=account).aggregate(total=total)["total"]
    credited: Decimal = Transfer.objects.filter(credit=account).aggregate(total=total)["total"]
    return debited - credited if account.kind in LedgerAccount.GROWS_BY_DEBIT else credited - debited


def is_booked(key: str) -> bool:
    """Return True if the transfer with this key is booked."""
    return Transfer.objects.filter(key=key).exists()


def owed(transaction_id: int) -> Decimal:
    """Return the amount of one transaction that is still in `payable`, in shillings.

    Money in flight, paid money and redirected money are not included.
    """
    signed = Case(
        When(credit__code=PAYABLE, then=F("amount")),
        When(debit__code=PAYABLE, then=-F("amount")),
        default=ZERO,
        output_field=DecimalField(max_digits=16, decimal_places=2),
    )
    transfers = Transfer.objects.filter(transaction_id=transaction_id)
    total: Decimal = transfers.aggregate(owed=Coalesce(Sum(signed), ZERO))["owed"]
    return total
