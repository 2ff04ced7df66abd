"""Canary release of a settlement's payouts: one, then ten, then the rest.

A fault that would affect every payout then shows on one of them, not on a million. The progress of a release is counted
from its attempts, so no counter can be lost. An acknowledged or paid attempt fills a place; an attempt under way holds
one; an attempt that ended otherwise gives its place back. Acknowledgements and payments both widen the release, because
either message may be lost. The breakers decide when sending must stop.
"""

from collections.abc import Iterable
from datetime import datetime

from django.db import connection
from django.db.models import Count, Exists, OuterRef, Q

from payments.models import Attempt, Settlement, Transaction
from payments.payouts import eligibility
from payments.policy import Policy


def in_canary(*, at: datetime, policy: Policy) -> list[int]:
    """Return ids of released settlements that are still in their canary and have a place for one more payout."""
    settlements = Settlement.objects.filter(eligibility.standing(), release_open=False, release_at__lte=at)
    # A small market never fills its canary, so settlements without a pending payout are skipped.
    waiting = Transaction.objects.filter(settlement=OuterRef("pk"), status=Transaction.Status.PENDING)
    ids = list(settlements.filter(Exists(waiting)).order_by("pk").values_list("pk", flat=True))
    return [settlement_id for settlement_id, places in _free_places(ids, policy).items() if places != 0]


def within(payouts: list[Transaction], policy: Policy) -> list[Transaction]:
    """Return the payouts that have a place now, in the caller's transaction, which claims them.

    A settlement that was undone or stopped since the payouts were selected has no place.
    Locks: the Settlements that are in their canary, by id, and the others shared. Nothing waits for a Transaction while
    it holds one.
    """
    ids = {payout.settlement_id for payout in payouts if payout.settlement_id is not None}
    settlements = Settlement.objects.filter(pk__in=ids, release_open=False).order_by("pk")
    locked = list(settlements.select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True))
    standing = _lock_standing(ids)
    free = _free_places(locked, policy)
    allowed = []
    for payout in payouts:
        if payout.settlement_id is not None and payout.settlement_id not in standing:
            continue
        places = free.get(payout.settlement_id or 0)
        if places is None or places > 0:
            allowed.append(payout)
        if places is not None and payout.settlement_id is not None:
            free[payout.settlement_id] = places - 1
    return allowed


_LOCK_STANDING = f"""
    SELECT s.id FROM payments_settlement s WHERE s.id = ANY (%s) AND {eligibility.STANDING} ORDER BY s.id FOR SHARE
"""  # noqa: S608 - a fragment of eligibility


def _lock_standing(settlement_ids: Iterable[int]) -> set[int]:
    """Return the standing settlements, locked so that none is undone or stopped before the caller commits."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_STANDING, [sorted(settlement_ids)])
        return {settlement_id for (settlement_id,) in cursor.fetchall()}


def _free_places(settlement_ids: Iterable[int], policy: Policy) -> dict[int, int | None]:
    """Return the free places in each settlement's canary, or None once all are filled, which opens it for good."""
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
    complete = [settlement_id for settlement_id, places in free.items() if places is None]
    Settlement.objects.filter(pk__in=complete).update(release_open=True)
    return free


def _free(filled: int, under_way: int, policy: Policy) -> int | None:
    """Return the free places of the canary's current step, or None if every step is filled."""
    places = 0
    for size in policy.canary:
        places += size
        if filled < places:
            return max(0, places - filled - under_way)
    return None
