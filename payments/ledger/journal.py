"""The double-entry ledger: append transfers, sum them. It never updates, never deletes, and knows no market's rules.

A transfer moves one amount from a debit account to a credit account, so the books balance by shape. Accounts are named
by code (`wallet:7`, `pool:3`, `payable`) and open on need. A trigger keeps `CustomUser.balance` equal to the wallet's
sum; every other balance is a sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import Case, DecimalField, F, Sum, When
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


# All of the entries or none: where an account has not been opened yet, it inserts nothing.
_POST = """
    WITH booked AS MATERIALIZED (
        SELECT e.number, e.key, d.id AS debit_id, c.id AS credit_id, e.amount, e.code, e.transaction_id
        FROM unnest(%(keys)s::text[], %(debits)s::text[], %(credits)s::text[], %(amounts)s::numeric[],
                    %(codes)s::text[], %(transactions)s::bigint[])
            WITH ORDINALITY AS e (key, debit, credit, amount, code, transaction_id, number)
        JOIN payments_ledgeraccount d ON d.code = e.debit JOIN payments_ledgeraccount c ON c.code = e.credit
    )
    INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
    SELECT key, debit_id, credit_id, amount, code, %(at)s, transaction_id FROM booked
    WHERE (SELECT count(*) FROM booked) = %(count)s ORDER BY number
"""


def post(entries: Iterable[Entry], *, at: datetime) -> None:
    """Book transfers, in the caller's transaction: one statement, however many they are.

    Locks: the wallets moved, by id.
    Raises: django.db.IntegrityError, where a key is booked already, an amount is not positive or a wallet would go
    below zero; then nothing is booked.
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
        cursor.execute(_POST, columns)
        if cursor.rowcount != len(booked):
            open_accounts(code for entry in booked for code in (entry.debit, entry.credit))
            cursor.execute(_POST, columns)


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
