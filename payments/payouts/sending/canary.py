"""Canary of a settlement's payouts: one is sent, then ten, then the rest.

A fault that would affect every payout then shows on one payout, not on a million. A step of the canary has one slot for
each payout that it sends:
- An accepted or paid attempt fills a slot for good. Either message is enough, because one of them may be lost.
- An attempt under way occupies a slot until it ends.
- An attempt that ends in any other way frees its slot.

The filled slots are counted from the attempts, so no counter can be lost. The breakers decide when sending must stop.
"""

from collections.abc import Iterable
from datetime import datetime

from django.db.models import Count, Exists, OuterRef, Q

from payments.models import Attempt, Settlement, Transaction
from payments.payouts import eligibility
from payments.policy import Policy


def in_canary(*, at: datetime, policy: Policy) -> list[int]:
    """Return ids of settlements whose hold is over, whose canary is not complete and has a free slot."""
    settlements = Settlement.objects.filter(eligibility.active(), release_open=False, release_at__lte=at)
    # A settlement with few payouts never completes its canary, so settlements without a pending payout are skipped.
    waiting = Transaction.objects.filter(settlement=OuterRef("pk"), status=Transaction.Status.PENDING)
    ids = list(settlements.filter(Exists(waiting)).order_by("pk").values_list("pk", flat=True))
    return [settlement_id for settlement_id, slots in _free_slots(ids, policy).items() if slots != 0]


def with_free_slot(payouts: list[Transaction], policy: Policy) -> list[Transaction]:
    """Return the payouts that may leave now. The caller claims them in the same transaction.

    A settlement that was undone or stopped since the payouts were selected has no free slot.
    Locks: the Settlements whose canary is not complete, by id, FOR NO KEY UPDATE; then all Settlements that are neither
    undone nor stopped, by id, FOR SHARE. No transaction that holds a Settlement's row waits for a Transaction's row.
    """
    ids = {payout.settlement_id for payout in payouts if payout.settlement_id is not None}
    settlements = Settlement.objects.filter(pk__in=ids, release_open=False).order_by("pk")
    locked = list(settlements.select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True))
    active = eligibility.lock_active(ids)
    free = _free_slots(locked, policy)
    allowed = []
    for payout in payouts:
        if payout.settlement_id is not None and payout.settlement_id not in active:
            continue
        slots = free.get(payout.settlement_id or 0)
        if slots is None or slots > 0:
            allowed.append(payout)
        if slots is not None and payout.settlement_id is not None:
            free[payout.settlement_id] = slots - 1
    return allowed


def _free_slots(settlement_ids: Iterable[int], policy: Policy) -> dict[int, int | None]:
    """Return the free slots of each settlement's canary, or None if the canary is complete.

    Also stores that a complete canary is open for good (`release_open`).
    """
    ids = list(settlement_ids)
    if not ids:
        return {}
    State = Attempt.State
    counts = {
        settlement_id: (filled, under_way)
        for settlement_id, filled, under_way in Attempt.objects.filter(settlement__in=ids)
        .values_list("settlement")
        .annotate(
            filled=Count("pk", filter=~Q(conversation_id="") | Q(state=State.PAID)),
            under_way=Count("pk", filter=Q(conversation_id="", state=State.SENDING, doubted_at=None)),
        )
        .order_by()
    }
    free = {settlement_id: _free(*counts.get(settlement_id, (0, 0)), policy) for settlement_id in ids}
    complete = [settlement_id for settlement_id, slots in free.items() if slots is None]
    Settlement.objects.filter(pk__in=complete).update(release_open=True)
    return free


def _free(filled: int, under_way: int, policy: Policy) -> int | None:
    """Return the free slots of the canary's current step, or None if every step is filled."""
    slots = 0
    for size in policy.canary:
        slots += size
        if filled < slots:
            return max(0, slots - filled - under_way)
    return None
