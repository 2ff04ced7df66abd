"""Steps of a settlement or an undo whose books disagree: the refusal, and its reason on the settlement's row."""

from django.db import transaction

from markets import locks
from payments.models import Settlement
from users.refusal import Refusal


class BooksDisagree(Refusal):
    """The amounts of a step do not add up. No part of the step was booked. An engineer must check the books."""


def record(market_id: int, reason: str) -> None:
    """Record why the last step of the market's unfinished settlement or undo failed.

    Locks: Market, Settlement.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        unfinished = [Settlement.State.PENDING, Settlement.State.DIVIDING, Settlement.State.UNDOING]
        settlements = Settlement.objects.filter(market=market, state__in=unfinished).order_by("number")
        settlement = settlements.select_for_update(no_key=True, of=("self",)).first()
        if settlement is not None and settlement.failure != reason[:300]:
            settlement.failure = reason[:300]
            settlement.save(update_fields=["failure"])
