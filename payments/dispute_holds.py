"""Payouts that disputes keep back, and the deadlines of disputes.

A dispute that a member opens before the payouts of the settlement leave keeps the member's own payouts back, and nobody
else's. They leave after the decision, unless the remedy says otherwise. A dispute that is not decided by its deadline
raises an alarm, because money may not wait unnoticed.
Lock order: Dispute, Transactions by id.
"""

import logging
from datetime import datetime
from decimal import Decimal

from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum

from payments.models import Dispute, Transaction
from payments.payouts import attempts
from payments.payouts.operations import actions
from users import audit

alarm = logging.getLogger("kasoko.alarm")

Status = Transaction.Status
_ZERO = Decimal("0.00")


def keep_back(dispute: Dispute, *, at: datetime) -> list[Transaction]:
    """Hold the pending payouts of a new dispute if they are still within the hold of their settlement. Return them.

    Runs in the caller's transaction. The caller records the holds (`record`).
    Locks: the Transactions by id.
    """
    settlement = dispute.settlement
    if settlement is None or settlement.release_at is None or settlement.release_at <= at:
        return []
    pending = _payouts(dispute).filter(status=Status.PENDING, destination=Transaction.Destination.MPESA)
    held = list(pending.order_by("pk").select_for_update(no_key=True, of=("self",)))
    for payout in held:
        attempts.hold(payout, reason=actions.DISPUTED)
    return held


def let_go(dispute: Dispute, *, at: datetime) -> list[Transaction]:
    """Make the payouts pending again that only this dispute keeps back, and return them. A person's hold stays.

    Runs in the caller's transaction, which has locked the dispute and decides it. The caller records the releases.
    Locks: the Transactions by id.
    """
    kept = list(kept_back(dispute).order_by("pk").select_for_update(no_key=True, of=("self",)))
    # The payouts are locked. So the later one of two decisions made at once sees the earlier one.
    others = Dispute.objects.filter(user=dispute.user_id, settlement=dispute.settlement_id).exclude(pk=dispute.pk)
    to_undo = Q(remedy=Dispute.Remedy.RE_RESOLVE, remedy_state=Dispute.RemedyState.DUE)
    if not kept or others.filter(Q(state__in=Dispute.LIVE) | to_undo).exists():
        return []
    for payout in kept:
        attempts.make_pending(payout, due_at=at)
    return kept


def record(action: str, payouts: list[Transaction], before: Status, dispute: Dispute, *, at: datetime) -> None:
    """Record the holds or releases of payouts in the audit trail, as the last statements of the transaction."""
    reason = f"Dispute {dispute.public_id}"
    for payout in payouts:
        actions.record(action, payout, {"status": before}, by=audit.MACHINE, at=at, reason=reason)


def kept_back(dispute: Dispute) -> QuerySet[Transaction]:
    """Return the payouts that the dispute keeps back, and that no person holds."""
    return _payouts(dispute).filter(status=Status.HELD, reason=actions.DISPUTED, held_by_person=False)


def alarm_overdue(*, at: datetime, limit: int) -> int:
    """Raise an alarm for each dispute that passed its deadline undecided, once for each deadline. Return their number.

    An answered dispute raises it only if it keeps money back.
    Locks: these Disputes. Another worker's are skipped.
    """
    with transaction.atomic(durable=True):
        due = Dispute.objects.filter(state__in=Dispute.LIVE, due_at__lte=at)
        due = due.filter(Q(alarmed_at=None) | Q(alarmed_at__lt=F("due_at"))).order_by("due_at", "pk")
        rows = list(due.select_for_update(no_key=True, skip_locked=True, of=("self",))[:limit])
        count = 0
        for dispute in rows:
            kept = kept_back(dispute).aggregate(total=Sum("amount"))["total"] or _ZERO
            if dispute.state == Dispute.State.OPEN or kept:
                count += 1
                alarm.error(
                    "Dispute %s is not decided by its deadline, %s. It keeps KES %s back. Decide it in the console.",
                    dispute.public_id, dispute.due_at.isoformat(), kept,
                )  # fmt: skip
        Dispute.objects.filter(pk__in=[dispute.pk for dispute in rows]).update(alarmed_at=at)
    return count


def _payouts(dispute: Dispute) -> QuerySet[Transaction]:
    """Return the disputed payout, or the payouts that the member has from the disputed settlement."""
    if dispute.transaction_id is not None:
        return Transaction.objects.filter(pk=dispute.transaction_id, type=Transaction.Type.PAYOUT)
    return Transaction.objects.filter(
        settlement=dispute.settlement_id, user=dispute.user_id, type=Transaction.Type.PAYOUT
    )
