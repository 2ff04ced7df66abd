"""Releasing a settlement's payouts: a canary first (one, then ten), then the rest.

What is wrong for everyone then shows on one payout, not on a million. How far a release is follows from its attempts,
so there is no count that could be lost: those acknowledged or paid have filled their places, those under way hold
theirs, and whatever ended otherwise has given its place to another. Acknowledgements widen it, so a lost callback
cannot stall it; payments do too, so a lost acknowledgement cannot either. The breakers decide when sending must stop.
"""

from datetime import datetime

from django.db.models import Q

from payments.models import Attempt, Settlement, Transaction
from payments.policy import Policy


def in_canary(*, at: datetime, policy: Policy) -> list[int]:
    """Ids of the released settlements that are still in their canary and have a place for one more payout."""
    runs = Settlement.objects.filter(
        state=Settlement.State.SETTLED, release_open=False, release_at__lte=at, stopped_at=None
    )
    return [run for run in runs.order_by("pk").values_list("pk", flat=True) if _room(run, policy) != 0]


def within(payouts: list[Transaction], policy: Policy) -> list[Transaction]:
    """Those of the payouts that have a place now, in the caller's transaction, which claims them.

    Locks: the Settlements that are in their canary, by id; nothing waits for a Transaction while it holds one.
    """
    room: dict[int | None, int | None] = {None: None}
    for settlement_id in sorted({payout.settlement_id for payout in payouts if payout.settlement_id is not None}):
        run = Settlement.objects.filter(pk=settlement_id, release_open=False)
        locked = run.select_for_update(no_key=True, of=("self",)).first()
        room[settlement_id] = None if locked is None else _room(settlement_id, policy)
    allowed = []
    for payout in payouts:
        left = room[payout.settlement_id]
        if left is None or left > 0:
            allowed.append(payout)
            room[payout.settlement_id] = None if left is None else left - 1
    return allowed


def _room(settlement_id: int, policy: Policy) -> int | None:
    """How many more payouts the canary has places for; None once all are filled, which opens the release for good."""
    attempts = Attempt.objects.filter(transaction__settlement=settlement_id)
    filled = attempts.filter(~Q(conversation_id="") | Q(state=Attempt.State.PAID)).count()
    under_way = attempts.filter(conversation_id="", state=Attempt.State.SENDING, doubted_at=None).count()
    places = 0
    for size in policy.canary:
        places += size
        if filled < places:
            return max(0, places - filled - under_way)
    Settlement.objects.filter(pk=settlement_id).update(release_open=True)
    return None
