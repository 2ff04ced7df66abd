"""What members owe back: money that reached them and is not theirs, after an undo or a payment that came twice.

Every shilling of a member's `receivable` account is in one of their recoveries. An operator decides on each: keep a
part of later dividends (set off), or bear the loss (write off). Nothing is taken from a wallet but by a set-off.
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

from payments.ledger import journal
from payments.models import Recovery, Transaction, Transfer
from users import audit
from users.refusal import Refusal

CENT = Decimal("0.01")


class RecoveryNotFound(Refusal):
    """There is no such recovery, or nobody owes anything from that market."""


class NothingOwed(Refusal):
    """All that was owed has come back, or has been written off."""


class OwnDebt(Refusal):
    """Nobody decides about what they owe themselves."""


class DebtsMoved(Refusal):
    """What is owed is not what was seen: nothing was decided."""


# --- owing -----------------------------------------------------------------------------------------------------------


def owe(*, settlement_id: int | None, user_id: int, amount: Decimal, at: datetime) -> None:
    """Add to what a member owes from a settlement, in the caller's transaction, which books the receivable.

    Locks: the Recovery.
    """
    row = Recovery(settlement_id=settlement_id, user_id=user_id, amount=journal.ZERO, created_at=at)
    Recovery.objects.bulk_create([row], ignore_conflicts=True)
    recovery = _locked(settlement_id, user_id)
    recovery.amount += amount
    if recovery.decision == Recovery.Decision.WRITTEN_OFF:
        recovery.decision = Recovery.Decision.OPEN
    recovery.save(update_fields=["amount", "decision"])


def repaid(*, settlement_id: int | None, user_id: int, amount: Decimal) -> tuple[Decimal, Decimal]:
    """Write down that so much has come back, in the caller's transaction, which books it.

    Returns what of it was still owed, and what had been written off; the rest had come back already, and is theirs.
    Locks: the Recovery.
    """
    recovery = _locked(settlement_id, user_id)
    owed = min(amount, recovery.outstanding)
    borne = min(amount - owed, recovery.written_off)
    recovery.recovered += owed + borne
    recovery.written_off -= borne
    recovery.save(update_fields=["recovered", "written_off"])
    return owed, borne


def not_owed_after_all(payout: Transaction, *, at: datetime) -> None:
    """A payment that an undo took for carried was not: the debt we still had to the member settles theirs to us.

    First what they still owe, then what was written off, and what they have paid back already goes to their wallet.
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
    """Whether an undo has made a receivable of this payout."""
    return Transfer.objects.filter(key=f"recall:{transaction_id}").exists()


# --- setting off -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetOff:
    """A part of one member's dividend, in shillings, that stays for one recovery."""

    recovery_id: int
    user_id: int
    amount: Decimal


def any_to_set_off() -> bool:
    return _to_set_off().exists()


def to_set_off(dividends: Mapping[int, Decimal], *, locked: bool = True) -> list[SetOff]:
    """What stays of these members' dividends (shillings by member's id): of each at most the percentage decided.

    Locks: the Recoveries, by id (a preview locks none).
    """
    rows = _to_set_off().filter(user_id__in=dividends).order_by("pk")
    if locked:
        rows = rows.select_for_update(no_key=True, of=("self",))
    left = dict(dividends)
    kept = []
    for recovery in rows:
        share = dividends[recovery.user_id] * (recovery.pct or 0) / 100
        part = min(share.quantize(CENT, ROUND_DOWN), recovery.outstanding, left[recovery.user_id])
        if part > 0:
            left[recovery.user_id] -= part
            kept.append(SetOff(recovery.pk, recovery.user_id, part))
    return kept


def by_member(kept: Sequence[SetOff]) -> dict[str, list[Any]]:
    """The parameters of division.due: each member's id, and what stays of their dividend."""
    total: dict[int, Decimal] = {}
    for one in kept:
        total[one.user_id] = total.get(one.user_id, journal.ZERO) + one.amount
    return {"debtors": list(total), "kept": list(total.values())}


def set_off(settlement_id: int, kept: Sequence[SetOff], *, at: datetime) -> None:
    """Move the parts that stay from the wallets, which the settlement has just credited with them, to the debts.

    In the caller's transaction, which has the Recoveries locked. Idempotent: by key.
    """
    if not kept:
        return
    rows = Transaction.objects.filter(
        settlement=settlement_id,
        user_id__in={one.user_id for one in kept},
        destination=Transaction.Destination.WALLET,
        type=Transaction.Type.PAYOUT,
    )
    wallet_parts = dict(rows.values_list("user_id", "pk"))
    journal.post(
        [
            journal.Entry(
                f"setoff:{wallet_parts[one.user_id]}:{one.recovery_id}",
                journal.wallet(one.user_id),
                journal.receivable(one.user_id),
                one.amount,
                wallet_parts[one.user_id],
            )
            for one in kept
        ],
        at=at,
    )
    for one in kept:
        Recovery.objects.filter(pk=one.recovery_id).update(recovered=F("recovered") + one.amount)


def _to_set_off() -> QuerySet[Recovery]:
    return Recovery.objects.filter(decision=Recovery.Decision.SET_OFF, amount__gt=F("recovered") + F("written_off"))


# --- deciding --------------------------------------------------------------------------------------------------------


def mark_of(owing: Iterable[tuple[int, Decimal]]) -> str:
    """What tells whether debts are still those that were seen: their ids in order, and what is owed on each."""
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
    """Have up to `pct` % of each later dividend kept, for one recovery or for all that are owed from a market.

    With `expected`, the mark_of what was seen, only if it is still that which is owed.
    Locks: the Recoveries, by id.
    Raises: RecoveryNotFound; NothingOwed; OwnDebt; DebtsMoved.
    """

    def keep(recovery: Recovery) -> None:
        recovery.decision, recovery.pct = Recovery.Decision.SET_OFF, pct

    after = {"decision": "SET_OFF", "pct": pct}
    return _decide("recovery.set_off", recovery_id, market_id, keep, after, by=by, at=at, reason="", expected=expected)


def write_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    reason: str,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery]:
    """Bear the loss of what is still owed, of one recovery or of all from a market: bad_debt → receivable.

    With `expected`, the mark_of what was seen, only if it is still that which is owed.
    Locks: the Recoveries, by id.
    Raises: RecoveryNotFound; NothingOwed; OwnDebt; DebtsMoved.
    """

    def bear(recovery: Recovery) -> None:
        loss = recovery.outstanding
        number = 1
        while Transfer.objects.filter(key=f"writeoff:{recovery.pk}:{number}").exists():
            number += 1
        owes = journal.receivable(recovery.user_id)
        journal.post([journal.Entry(f"writeoff:{recovery.pk}:{number}", journal.BAD_DEBT, owes, loss)], at=at)
        recovery.written_off += loss
        recovery.decision, recovery.pct, recovery.reason = Recovery.Decision.WRITTEN_OFF, None, reason

    after = {"decision": "WRITTEN_OFF"}
    return _decide(
        "recovery.write_off", recovery_id, market_id, bear, after, by=by, at=at, reason=reason, expected=expected
    )


def _decide(
    action: str,
    recovery_id: int | None,
    market_id: int | None,
    carry_out: Callable[[Recovery], None],
    after: dict[str, Any],
    *,
    by: audit.Actor,
    at: datetime,
    reason: str,
    expected: str | None,
) -> list[Recovery]:
    with transaction.atomic(durable=True):
        rows = Recovery.objects.order_by("pk").select_for_update(no_key=True, of=("self",))
        rows = rows.filter(pk=recovery_id) if recovery_id is not None else rows.filter(settlement__market=market_id)
        found = list(rows)
        if not found:
            raise RecoveryNotFound("Nothing is owed back under that id, or from that market.")
        if any(recovery.user_id == by.user_id for recovery in found):
            raise OwnDebt("What you owe yourself is another's to decide about.")
        open_ones = [recovery for recovery in found if recovery.outstanding > 0]
        if not open_ones:
            raise NothingOwed("All of it has come back, or has been written off.")
        if expected not in (None, mark_of((one.pk, one.outstanding) for one in open_ones)):
            raise DebtsMoved("What is owed has changed since you looked: look again.")
        before = {str(recovery.pk): [recovery.decision, recovery.outstanding] for recovery in open_ones}
        for recovery in open_ones:
            carry_out(recovery)
            recovery.decided_by_id, recovery.decided_at = by.user_id, at
            recovery.save()
        subject = f"recovery:{recovery_id}" if recovery_id is not None else f"market:{market_id}"
        audit.record(action=action, by=by, subject=subject, before=before, after=after, at=at, reason=reason)
    return open_ones


# --- looking ---------------------------------------------------------------------------------------------------------


def listed(*, before: int, limit: int, market_id: int | None = None) -> list[Recovery]:
    """What members owe or owed back, newest first."""
    rows = Recovery.objects.filter(pk__lt=before).select_related("user", "settlement").order_by("-pk")
    if market_id is not None:
        rows = rows.filter(settlement__market=market_id)
    return list(rows[:limit])


def still_owed(market_id: int | None = None) -> tuple[int, Decimal]:
    """How many debts are not paid back, and how much of them in shillings: from one market, or in all."""
    rows = Recovery.objects.filter(amount__gt=F("recovered") + F("written_off"))
    if market_id is not None:
        rows = rows.filter(settlement__market=market_id)
    left = Sum(F("amount") - F("recovered") - F("written_off"))
    found = rows.aggregate(count=Count("pk"), total=Coalesce(left, journal.ZERO))
    return found["count"], found["total"]


def owing(*, recovery_id: int | None = None, market_id: int | None = None) -> list[tuple[int, Decimal]]:
    """The debts that are not paid back, by id, with what is owed on each in shillings: of one, or of a market."""
    rows = Recovery.objects.filter(amount__gt=F("recovered") + F("written_off")).order_by("pk")
    rows = rows.filter(pk=recovery_id) if recovery_id is not None else rows.filter(settlement__market=market_id)
    return list(rows.values_list("pk", F("amount") - F("recovered") - F("written_off")))


@dataclass(frozen=True)
class UndoCost:
    """What the undoing of settlements has cost, in shillings: of one market, or one operator who had resolved them."""

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


# A charge is found by its key, which names the paid attempt: the settlement's attempts have an index, transfers a key.
_UNDONE = """
    SELECT s.market_id, s.resolved_by_id, coalesce(r.amount, 0), coalesce(r.recovered, 0), coalesce(r.written_off, 0),
        coalesce(c.charges, 0)
    FROM payments_settlement s
    LEFT JOIN LATERAL (SELECT sum(amount) AS amount, sum(recovered) AS recovered, sum(written_off) AS written_off
        FROM payments_recovery WHERE settlement_id = s.id) r ON true
    LEFT JOIN LATERAL (SELECT sum(f.amount) AS charges FROM payments_attempt a
        JOIN payments_transfer f ON f.key = 'charge:' || a.id WHERE a.settlement_id = s.id AND a.state = 'PAID') c
        ON true
    WHERE s.state IN ('UNDOING', 'UNDONE')"""


def undo_costs() -> tuple[list[UndoCost], list[UndoCost]]:
    """What undone settlements cost: debts, and charges for nothing. By market, and by the operator who resolved."""
    with connection.cursor() as cursor:
        cursor.execute(_UNDONE)
        rows = cursor.fetchall()
    by_market: dict[int, list[tuple[Any, ...]]] = {}
    by_operator: dict[int | None, list[tuple[Any, ...]]] = {}
    for market_id, operator_id, *sums in rows:
        by_market.setdefault(market_id, []).append(tuple(sums))
        by_operator.setdefault(operator_id, []).append(tuple(sums))
    return (
        [_cost(costs, market_id=market_id) for market_id, costs in sorted(by_market.items())],
        [_cost(by_operator[one], user_id=one) for one in sorted(by_operator, key=lambda one: (one is not None, one))],
    )


def _cost(costs: list[tuple[Any, ...]], *, market_id: int | None = None, user_id: int | None = None) -> UndoCost:
    amount, recovered, written_off, charges = (sum(column, journal.ZERO) for column in zip(*costs, strict=True))
    return UndoCost(market_id, user_id, len(costs), amount, recovered, written_off, charges)


def _locked(settlement_id: int | None, user_id: int) -> Recovery:
    rows = Recovery.objects.select_for_update(no_key=True, of=("self",))
    return rows.get(settlement=settlement_id, user=user_id)
