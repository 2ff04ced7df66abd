"""Releasing a settlement's payouts: a canary first (one, then ten), then the rest.

What is wrong for everyone then shows on one payout, not on a million. How far a release is follows from its attempts,
so there is no count that could be lost: those acknowledged or paid have filled their places, those under way hold
theirs, and whatever ended otherwise has given its place to another. Acknowledgements widen it, so a lost callback
cannot stall it; payments do too, so a lost acknowledgement cannot either. The breakers decide when sending must stop.
"""

from collections.abc import Iterable
from datetime import datetime

from django.db import connection
from django.db.models import Count, Exists, OuterRef, Q

from payments.models import Attempt, Settlement, Transaction
from payments.policy import Policy


def in_canary(*, at: datetime, policy: Policy) -> list[int]:
    """Ids of the released settlements that are still in their canary and have a place for one more payout."""
    runs = Settlement.objects.filter(
        state=Settlement.State.SETTLED, release_open=False, release_at__lte=at, stopped_at=None
    )
    # A small market never fills its canary: once nothing of it waits, it is not looked at any more.
    waiting = Transaction.objects.filter(settlement=OuterRef("pk"), status=Transaction.Status.PENDING)
    ids = list(runs.filter(Exists(waiting)).order_by("pk").values_list("pk", flat=True))
    return [run for run, room in _rooms(ids, policy).items() if room != 0]


def within(payouts: list[Transaction], policy: Policy) -> list[Transaction]:
    """Those of the payouts that have a place now, in the caller's transaction, which claims them.

    What is undone or stopped while it was being claimed has none.
    Locks: the Settlements that are in their canary, by id, and the others shared; nothing waits for a Transaction while
    it holds one.
    """
    ids = {payout.settlement_id for payout in payouts if payout.settlement_id is not None}
    runs = Settlement.objects.filter(pk__in=ids, release_open=False).order_by("pk")
    locked = list(runs.select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True))
    standing = _standing(ids)
    rooms = _rooms(locked, policy)
    allowed = []
    for payout in payouts:
        if payout.settlement_id is not None and payout.settlement_id not in standing:
            continue
        room = rooms.get(payout.settlement_id or 0)
        if room is None or room > 0:
            allowed.append(payout)
        if room is not None and payout.settlement_id is not None:
            rooms[payout.settlement_id] = room - 1
    return allowed


def _standing(settlement_ids: Iterable[int]) -> set[int]:
    """Those that are settled and not stopped, and stay so until the caller's transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM payments_settlement WHERE id = ANY (%s) AND state = 'SETTLED' AND stopped_at IS NULL"
            " ORDER BY id FOR SHARE",
            [sorted(settlement_ids)],
        )
        return {settlement_id for (settlement_id,) in cursor.fetchall()}


def _rooms(settlement_ids: Iterable[int], policy: Policy) -> dict[int, int | None]:
    """How many more payouts each one's canary has places for; None once all are filled, which opens it for good."""
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
    rooms = {settlement_id: _room(*counts.get(settlement_id, (0, 0)), policy) for settlement_id in ids}
    Settlement.objects.filter(pk__in=[run for run, room in rooms.items() if room is None]).update(release_open=True)
    return rooms


def _room(filled: int, under_way: int, policy: Policy) -> int | None:
    places = 0
    for size in policy.canary:
        places += size
        if filled < places:
            return max(0, places - filled - under_way)
    return None
