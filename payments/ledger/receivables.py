"""Receivables: money that members owe back after an undo or a double payment.

A recovery is one member's debt from one settlement. The recoveries of a member add up to their `receivable` account.
Staff decide on each recovery (debt_decisions). Only a set-off takes money from a wallet.
Lock order: Transaction, Attempt, Recoveries by id, then wallets (ledger), then the end of the audit trail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from typing import Any

from django.db import connection
from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import Coalesce

from payments import named_sql
from payments.ledger import journal
from payments.models import Recovery, Transaction, Transfer

CENT = Decimal("0.01")
_UNDO_COSTS = named_sql.beside(__file__)["undo_costs"]


# --- owing -----------------------------------------------------------------------------------------------------------


def owe(*, settlement_id: int | None, user_id: int, amount: Decimal, at: datetime) -> None:
    """Add an amount to a member's recovery from a settlement.

    Runs in the caller's transaction, which books the receivable. A written-off recovery becomes open again.
    Locks: the Recovery.
    """
    row = Recovery(settlement_id=settlement_id, user_id=user_id, amount=journal.ZERO, created_at=at)
    Recovery.objects.bulk_create([row], ignore_conflicts=True)
    recovery = _locked(settlement_id, user_id)
    recovery.amount += amount
    if recovery.decision == Recovery.Decision.WRITTEN_OFF:
        recovery.decision = Recovery.Decision.OPEN
    recovery.save(update_fields=["amount", "decision"])


def record_repayment(*, settlement_id: int | None, user_id: int, amount: Decimal) -> tuple[Decimal, Decimal]:
    """Record that a member paid an amount back, in the caller's transaction, which books it.

    Returns the part that was still owed and the part that had been written off. If a rest remains, the debt was already
    paid, so the rest belongs to the member.
    Locks: the Recovery.
    """
    recovery = _locked(settlement_id, user_id)
    owed = min(amount, recovery.outstanding)
    borne = min(amount - owed, recovery.written_off)
    recovery.recovered += owed + borne
    recovery.written_off -= borne
    recovery.save(update_fields=["recovered", "written_off"])
    return owed, borne


def reverse_recall(payout: Transaction, *, at: datetime) -> None:
    """Cancel a receivable that an undo booked for a payout, because the payout never reached the member.

    The undo had assumed that M-Pesa paid the payout. We now owe its amount to the member. That amount first covers the
    member's open debt, then the part that was written off. The part that the member had already paid back goes to the
    wallet.
    Runs in the caller's transaction.
    Locks: the Recovery, the wallet.
    """
    owed, borne, back = _cancel(payout, payout.amount)
    parts = [
        journal.Entry(f"unrecall:{payout.pk}", journal.PAYABLE, journal.receivable(payout.user_id), owed, payout.pk),
        journal.Entry(f"unwrite:{payout.pk}", journal.PAYABLE, journal.BAD_DEBT, borne, payout.pk),
        journal.Entry(f"repay:{payout.pk}", journal.PAYABLE, journal.wallet(payout.user_id), back, payout.pk),
    ]
    journal.post([part for part in parts if part.amount > 0], at=at)


def reverse_late(payout: Transaction, *, key: str, amount: Decimal, at: datetime) -> None:
    """Cancel the receivable of a late payment that M-Pesa has reversed, and book the money into the M-Pesa account.

    The amount covers the member's open debt, then the part that was written off. The part that the member had already
    paid back goes to the wallet.
    Runs in the caller's transaction. `key` is the beginning of the keys.
    Locks: the Recovery, the wallet.
    """
    owed, borne, back = _cancel(payout, amount)
    utility, tx = journal.MPESA_UTILITY, payout.pk
    parts = [
        journal.Entry(key, utility, journal.receivable(payout.user_id), owed, tx),
        journal.Entry(f"{key}:loss", utility, journal.BAD_DEBT, borne, tx),
        journal.Entry(f"{key}:wallet", utility, journal.wallet(payout.user_id), back, tx),
    ]
    journal.post([part for part in parts if part.amount > 0], at=at)


def _cancel(payout: Transaction, amount: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """Take an amount out of a payout's recovery. Return its parts: still owed, written off, already paid back.

    Locks: the Recovery.
    """
    recovery = _locked(payout.settlement_id, payout.user_id)
    owed = min(amount, recovery.outstanding)
    borne = min(amount - owed, recovery.written_off)
    back = amount - owed - borne
    recovery.amount -= amount
    recovery.written_off -= borne
    recovery.recovered -= back
    recovery.save(update_fields=["amount", "written_off", "recovered"])
    return owed, borne, back


def was_recalled(transaction_id: int) -> bool:
    """Return True if an undo turned this payout into a receivable."""
    return Transfer.objects.filter(key=f"recall:{transaction_id}").exists()


# --- setting off -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetOff:
    """The part of a member's dividend, in shillings, that pays one recovery."""

    recovery_id: int
    user_id: int
    amount: Decimal


def any_to_set_off() -> bool:
    """Return True if a recovery is to be set off against later dividends."""
    return _to_set_off().exists()


def to_set_off(dividends: Mapping[int, Decimal], *, locked: bool = True) -> list[SetOff]:
    """Compute the set-offs from members' dividends (shillings by member's id).

    Each recovery takes at most the percentage of the dividend that the operator decided.
    Locks: the Recoveries, by id (none with `locked=False`, for a preview).
    """
    rows = _to_set_off().filter(user_id__in=dividends).order_by("pk")
    if locked:
        rows = rows.select_for_update(no_key=True, of=("self",))
    left = dict(dividends)
    set_offs = []
    for recovery in rows:
        share = dividends[recovery.user_id] * (recovery.pct or 0) / 100
        part = min(share.quantize(CENT, ROUND_DOWN), recovery.outstanding, left[recovery.user_id])
        if part > 0:
            left[recovery.user_id] -= part
            set_offs.append(SetOff(recovery.pk, recovery.user_id, part))
    return set_offs


def by_member(set_offs: Sequence[SetOff]) -> dict[str, list[Any]]:
    """Sum set-offs by member. Return the parameters of allocation.due: members' ids, and each member's sum."""
    total: dict[int, Decimal] = {}
    for part in set_offs:
        total[part.user_id] = total.get(part.user_id, journal.ZERO) + part.amount
    return {"debtors": list(total), "kept": list(total.values())}


def set_off(settlement_id: int, set_offs: Sequence[SetOff], *, at: datetime) -> None:
    """Move the set-offs from the wallets, which the settlement has just credited, to the receivables.

    Runs in the caller's transaction, which has locked the Recoveries.
    Raises: django.db.IntegrityError, if a set-off is already booked.
    """
    if not set_offs:
        return
    rows = Transaction.objects.filter(
        settlement=settlement_id,
        user_id__in={part.user_id for part in set_offs},
        destination=Transaction.Destination.WALLET,
        type=Transaction.Type.PAYOUT,
    )
    wallet_parts = dict(rows.values_list("user_id", "pk"))
    journal.post(
        [
            journal.Entry(
                f"setoff:{wallet_parts[part.user_id]}:{part.recovery_id}",
                journal.wallet(part.user_id),
                journal.receivable(part.user_id),
                part.amount,
                wallet_parts[part.user_id],
            )
            for part in set_offs
        ],
        at=at,
    )
    for part in set_offs:
        Recovery.objects.filter(pk=part.recovery_id).update(recovered=F("recovered") + part.amount)


def _to_set_off() -> QuerySet[Recovery]:
    return Recovery.objects.filter(decision=Recovery.Decision.SET_OFF, amount__gt=F("recovered") + F("written_off"))


# --- reading ---------------------------------------------------------------------------------------------------------


def listed(*, before: int, limit: int, market_id: int | None = None) -> list[Recovery]:
    """Return a page of recoveries with ids below `before`, newest first."""
    rows = Recovery.objects.filter(pk__lt=before).select_related("user", "settlement").order_by("-pk")
    if market_id is not None:
        rows = rows.filter(settlement__market=market_id)
    return list(rows[:limit])


def still_owed(market_id: int | None = None) -> tuple[int, Decimal]:
    """Return the number of open recoveries and their sum in shillings, for one market or for all markets."""
    rows = Recovery.objects.filter(amount__gt=F("recovered") + F("written_off"))
    if market_id is not None:
        rows = rows.filter(settlement__market=market_id)
    left = Sum(F("amount") - F("recovered") - F("written_off"))
    sums = rows.aggregate(count=Count("pk"), total=Coalesce(left, journal.ZERO))
    return sums["count"], sums["total"]


def owing(*, recovery_id: int | None = None, market_id: int | None = None) -> list[tuple[int, Decimal]]:
    """Return (id, shillings still owed) for each open recovery, of one recovery or of one market."""
    rows = Recovery.objects.filter(amount__gt=F("recovered") + F("written_off")).order_by("pk")
    rows = rows.filter(pk=recovery_id) if recovery_id is not None else rows.filter(settlement__market=market_id)
    return list(rows.values_list("pk", F("amount") - F("recovered") - F("written_off")))


@dataclass(frozen=True)
class UndoCost:
    """The cost of undone settlements in shillings, of one market or of one operator who resolved the markets."""

    market_id: int | None
    user_id: int | None
    undone: int
    wrongly_paid: Decimal
    recovered: Decimal
    written_off: Decimal
    charges: Decimal

    @property
    def outstanding(self) -> Decimal:
        return self.wrongly_paid - self.recovered - self.written_off


def undo_costs() -> tuple[list[UndoCost], list[UndoCost]]:
    """Sum the receivables and the lost M-Pesa charges of undone settlements, by market and by resolving operator."""
    with connection.cursor() as cursor:
        cursor.execute(_UNDO_COSTS)
        rows = cursor.fetchall()
    by_market: dict[int, list[tuple[Any, ...]]] = {}
    by_operator: dict[int | None, list[tuple[Any, ...]]] = {}
    for market_id, operator_id, *sums in rows:
        by_market.setdefault(market_id, []).append(tuple(sums))
        by_operator.setdefault(operator_id, []).append(tuple(sums))
    operators = sorted(by_operator, key=lambda operator_id: (operator_id is not None, operator_id))
    return (
        [_cost(costs, market_id=market_id) for market_id, costs in sorted(by_market.items())],
        [_cost(by_operator[operator_id], user_id=operator_id) for operator_id in operators],
    )


def _cost(costs: list[tuple[Any, ...]], *, market_id: int | None = None, user_id: int | None = None) -> UndoCost:
    amount, recovered, written_off, charges = (sum(column, journal.ZERO) for column in zip(*costs, strict=True))
    return UndoCost(market_id, user_id, len(costs), amount, recovered, written_off, charges)


def _locked(settlement_id: int | None, user_id: int) -> Recovery:
    rows = Recovery.objects.select_for_update(no_key=True, of=("self",))
    return rows.get(settlement=settlement_id, user=user_id)
