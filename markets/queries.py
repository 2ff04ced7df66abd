"""Queries of markets and of members' bets."""

from uuid import UUID

from django.db.models import Prefetch, QuerySet

from markets.models import Bet, Market, Outcome


def listed(status: str | None = None) -> QuerySet[Market]:
    """Return all markets, or the markets with one status, with their outcomes, newest first."""
    markets = Market.objects.prefetch_related(Prefetch("outcomes", Outcome.objects.order_by("pk"))).order_by("-pk")
    return markets.filter(status=status) if status else markets


def bets_of(*, user_id: int, market_id: int) -> QuerySet[Bet]:
    """Return a member's bets on a market, newest first."""
    return Bet.objects.filter(user_id=user_id, market_id=market_id).order_by("-pk")


def bet(*, public_id: UUID, market_id: int, user_id: int | None) -> Bet | None:
    """Return one bet with its market, or None. If `user_id` is given, return only that member's bet."""
    bets = Bet.objects.select_related("market").filter(public_id=public_id, market_id=market_id)
    return (bets if user_id is None else bets.filter(user_id=user_id)).first()
