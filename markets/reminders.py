"""Reminders to staff: a market closes soon, or it is closed and waits for its outcome."""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q, QuerySet

from markets import locks
from markets.models import Market
from users import authority, notifications
from users.models import CustomUser

ACT = "market.resolve"
KIND = "MARKET"


def due(*, at: datetime, before: timedelta, every: timedelta, limit: int) -> list[int]:
    """Return the ids of the markets about which staff must be reminded now.

    `before`: the time before the close at which the first reminder is due. `every`: the time between two reminders
    after the close.
    """
    return list(_due(at, before, every).order_by("end_date", "pk").values_list("pk", flat=True)[:limit])


def remind(*, market_id: int, at: datetime, before: timedelta, every: timedelta) -> int:
    """Write a notice to each member of staff who may resolve a market, and return their number.

    Idempotent: does nothing if no reminder about the market is due.
    Locks: Market.
    Raises: locks.MarketNotFound.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        if not _due(at, before, every).filter(pk=market_id).exists():
            return 0
        staff = CustomUser.objects.filter(is_staff=True, is_active=True).order_by("pk")
        people = [person.pk for person in staff if authority.may(person, ACT)]
        for user_id in people:
            notifications.tell(
                user_id=user_id,
                kind=KIND,
                subject=f"market:{market.pk}",
                event=f"{at:%Y%m%d%H%M%S}:{user_id}",
                text=_text(market, at),
                at=at,
            )
        market.reminded_at = at
        market.save(update_fields=["reminded_at"])
    return len(people)


def closing_soon(*, at: datetime, within: timedelta) -> int:
    """Return the number of open markets that close within this time."""
    return Market.objects.filter(status=Market.Status.OPEN, end_date__gt=at, end_date__lte=at + within).count()


def closed_at(market: Market) -> datetime:
    """Return the moment at which a market stopped taking bets, or will stop."""
    return market.closed_at or market.end_date


def _due(at: datetime, before: timedelta, every: timedelta) -> QuerySet[Market]:
    """Return open markets that close soon, if they were made earlier, and closed markets without an outcome.

    A closed market is due once at its close, and again each time that `every` has passed. A market that a shell made
    with a past end counts only from its close by a person.
    """
    Status = Market.Status
    soon = Q(status=Status.OPEN, reminded_at=None, end_date__gt=at, end_date__lte=at + before)
    soon &= Q(created_at__lt=F("end_date") - before)
    waits = Q(status=Status.CLOSED) | Q(status=Status.OPEN, end_date__gt=F("created_at"))
    closed = Q(closed_at__lte=at) | Q(closed_at=None, end_date__lte=at)
    unheard = Q(reminded_at__lt=F("closed_at")) | Q(closed_at=None, reminded_at__lt=F("end_date"))
    return Market.objects.filter(
        soon | waits & closed & (Q(reminded_at=None) | unheard | Q(reminded_at__lte=at - every))
    )


def _text(market: Market, at: datetime) -> str:
    question = market.question if len(market.question) <= 120 else f"{market.question[:119]}…"
    close = closed_at(market)
    if close > at:
        return f"Market {market.pk} closes soon and then needs its outcome: {question}"
    hours = int((at - close).total_seconds() // 3600)
    waits = "It has just closed." if hours == 0 else f"It has waited for {hours} hours."
    return f"Market {market.pk} is closed and needs its outcome. {waits} {question}"
