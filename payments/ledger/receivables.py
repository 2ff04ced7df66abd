"""Receivables: money that members owe back after an undo or a double payment.

Each shilling of a member's `receivable` account is in one of their recoveries. An operator decides on each recovery:
set it off against later dividends, or write it off as a loss. Only a set-off takes money from a wallet.
Lock order: Transaction, Attempt, Recoveries by id, then wallets (ledger), then the end of the audit trail.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import Coalesce

from payments import named_sql, own_affairs
from payments.ledger import journal
from payments.models import Recovery, Transaction, Transfer
from users import audit
from users.refusal import Refusal

CENT = Decimal("0.01")
_UNDO_COSTS = named_sql.beside(__file__)["undo_costs"]


class RecoveryNotFound(Refusal):
    """The recovery does not exist, or nobody owes anything from that market."""


class NothingOwed(Refusal):
    """The whole receivable has been paid back or written off already."""


class DebtsMoved(Refusal):
    """The receivables changed after the operator saw them, so nothing was decided."""


# --- owing -----------------------------------------------------------------------------------------------------------


def owe(*, settlement_id: int | None, user_id: int, amount: Decimal, at: datetime) -> None:
    """Add an amount to a member's recovery from a settlement, in the caller's transaction, which books the receivable.

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

    Return the part that was still owed and the part that had been written off. Any rest had been paid back before, so
    it belongs to the member.
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
    """Settle a receivable with the payout it came from, because that payout never reached the member.

    The undo had assumed that M-Pesa paid it. Our debt to the member first covers what they still owe, then what was
    written off. What they had already paid back goes to their wallet.
    In the caller's transaction. Locks: the Recovery, the wallet.
    """
    recovery = _locked(payout.settlement_id, payout.user_id)
    owed = min(payout.amount, recovery.outstanding)
    borne = min(payout.amount - owed, recovery.written_off)
    back = payout.amount - owed - borne
    recovery.amount -= payout.amount
    recovery.written_off -= borne
    recovery.recovered -= back
    recovery.save(update_fields=["amount", "written_off", "recovered"])
    parts = [
        journal.Entry(f"unrecall:{payout.pk}", journal.PAYABLE, journal.receivable(payout.user_id), owed, payout.pk),
        journal.Entry(f"unwrite:{payout.pk}", journal.PAYABLE, journal.BAD_DEBT, borne, payout.pk),
        journal.Entry(f"repay:{payout.pk}", journal.PAYABLE, journal.wallet(payout.user_id), back, payout.pk),
    ]
    journal.post([part for part in parts if part.amount > 0], at=at)


def was_recalled(transaction_id: int) -> bool:
    """Return whether an undo turned this payout into a receivable."""
    return Transfer.objects.filter(key=f"recall:{transaction_id}").exists()


# --- setting off -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetOff:
    """The part of one member's dividend, in shillings, that goes to one recovery."""

    recovery_id: int
    user_id: int
    amount: Decimal


def any_to_set_off() -> bool:
    """Return whether any recovery is to be set off against later dividends."""
    return _to_set_off().exists()


def to_set_off(dividends: Mapping[int, Decimal], *, locked: bool = True) -> list[SetOff]:
    """Compute the set-offs from these members' dividends (shillings by member's id).

    Each recovery takes at most its decided percentage of the dividend.
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
    """Sum set-offs by member, as the parameters of allocation.due: members' ids, and the sum of each."""
    total: dict[int, Decimal] = {}
    for part in set_offs:
        total[part.user_id] = total.get(part.user_id, journal.ZERO) + part.amount
    return {"debtors": list(total), "kept": list(total.values())}


def set_off(settlement_id: int, set_offs: Sequence[SetOff], *, at: datetime) -> None:
    """Move the set-offs from the wallets, which the settlement has just credited, to the receivables.

    In the caller's transaction, which has the Recoveries locked. Idempotent: by key.
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


# --- deciding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Act:
    """A decision on receivables: the action that the audit trail names, its change of a row, and the state after it."""

    action: str
    change: Callable[[Recovery], None]
    after: dict[str, Any]
    reason: str = ""


def fingerprint(owing: Iterable[tuple[int, Decimal]]) -> str:
    """Return a hash of receivables (ids in order, shillings owed on each), to tell later whether they changed."""
    return hashlib.sha256(repr([(pk, f"{owed:.2f}") for pk, owed in owing]).encode()).hexdigest()


def decide_set_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    pct: int,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery]:
    """Set off up to `pct` % of each later dividend, against one recovery or all that are owed from a market.

    `expected` is the fingerprint of the receivables that the operator saw. If it no longer fits, nothing is decided.
    Locks: the Recoveries, by id.
    Raises: RecoveryNotFound; NothingOwed; own_affairs.OwnDebt; DebtsMoved.
    """

    def change(recovery: Recovery) -> None:
        recovery.decision, recovery.pct = Recovery.Decision.SET_OFF, pct

    act = _Act("recovery.set_off", change, {"decision": "SET_OFF", "pct": pct})
    return _decide(act, recovery_id, market_id, by=by, at=at, expected=expected)


def write_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    reason: str,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery]:
    """Write off the amount still owed on one recovery or on all from a market, and book it: bad_debt → receivable.

    `expected` is the fingerprint of the receivables that the operator saw. If it no longer fits, nothing is decided.
    Locks: the Recoveries, by id.
    Raises: RecoveryNotFound; NothingOwed; own_affairs.OwnDebt; DebtsMoved.
    """

    def change(recovery: Recovery) -> None:
        loss = recovery.outstanding
        number = 1
        while Transfer.objects.filter(key=f"writeoff:{recovery.pk}:{number}").exists():
            number += 1
        owes = journal.receivable(recovery.user_id)
        journal.post([journal.Entry(f"writeoff:{recovery.pk}:{number}", journal.BAD_DEBT, owes, loss)], at=at)
        recovery.written_off += loss
        recovery.decision, recovery.pct, recovery.reason = Recovery.Decision.WRITTEN_OFF, None, reason

    act = _Act("recovery.write_off", change, {"decision": "WRITTEN_OFF"}, reason)
    return _decide(act, recovery_id, market_id, by=by, at=at, expected=expected)


def _decide(
    act: _Act,
    recovery_id: int | None,
    market_id: int | None,
    *,
    by: audit.Actor,
    at: datetime,
    expected: str | None,
) -> list[Recovery]:
    with transaction.atomic(durable=True):
        rows = Recovery.objects.order_by("pk").select_for_update(no_key=True, of=("self",))
        rows = rows.filter(pk=recovery_id) if recovery_id is not None else rows.filter(settlement__market=market_id)
        recoveries = list(rows)
        if not recoveries:
            raise RecoveryNotFound("Nothing is owed under this id or from this market. Nothing was changed.")
        own_affairs.refuse_own_debt(recoveries, by)
        still_open = [recovery for recovery in recoveries if recovery.outstanding > 0]
        if not still_open:
            raise NothingOwed("Everything was paid back or written off already. Nothing was changed.")
        if expected not in (None, fingerprint((recovery.pk, recovery.outstanding) for recovery in still_open)):
            raise DebtsMoved("The amount owed has changed since you saw it. Nothing was decided: check it again.")
        before = {str(recovery.pk): [recovery.decision, recovery.outstanding] for recovery in still_open}
        for recovery in still_open:
            act.change(recovery)
            recovery.decided_by_id, recovery.decided_at = by.user_id, at
            recovery.save()
        audit.record(
            action=act.action,
            by=by,
            subject=f"recovery:{recovery_id}" if recovery_id is not None else f"market:{market_id}",
            before=before,
            after=act.after,
            at=at,
            reason=act.reason,
        )
    return still_open


# --- reading ---------------------------------------------------------------------------------------------------------


def listed(*, before: int, limit: int, market_id: int | None = None) -> list[Recovery]:
    """Return a page of recoveries, newest first: those with ids below `before`."""
    rows = Recovery.objects.filter(pk__lt=before).select_related("user", "settlement").order_by("-pk")
    if market_id is not None:
        rows = rows.filter(settlement__market=market_id)
    return list(rows[:limit])


def still_owed(market_id: int | None = None) -> tuple[int, Decimal]:
    """Return the number and the sum in shillings of recoveries not paid back yet, of one market or of all."""
    rows = Recovery.objects.filter(amount__gt=F("recovered") + F("written_off"))
    if market_id is not None:
        rows = rows.filter(settlement__market=market_id)
    left = Sum(F("amount") - F("recovered") - F("written_off"))
    sums = rows.aggregate(count=Count("pk"), total=Coalesce(left, journal.ZERO))
    return sums["count"], sums["total"]


def owing(*, recovery_id: int | None = None, market_id: int | None = None) -> list[tuple[int, Decimal]]:
    """Return (id, shillings still owed) of one recovery or of a market's, without those that are paid back."""
    rows = Recovery.objects.filter(amount__gt=F("recovered") + F("written_off")).order_by("pk")
    rows = rows.filter(pk=recovery_id) if recovery_id is not None else rows.filter(settlement__market=market_id)
    return list(rows.values_list("pk", F("amount") - F("recovered") - F("written_off")))


@dataclass(frozen=True)
class UndoCost:
    """The cost of undone settlements in shillings, for one market or for one operator who resolved markets."""

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
