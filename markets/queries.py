"""Reading markets: lists, pools, one member's bets."""

from uuid import UUID

from django.db.models import Prefetch, QuerySet

from markets.models import Bet, Market, Outcome


def listed(status: str | None = None) -> QuerySet[Market]:
    """Markets, newest first, with their outcomes ready to read."""
    markets = Market.objects.prefetch_related(Prefetch("outcomes", Outcome.objects.order_by("pk"))).order_by("-pk")
    return markets.filter(status=status) if status else markets


def bets_of(*, user_id: int, market_id: int) -> QuerySet[Bet]:
    """A member's own bets on a market, newest first."""
    return Bet.objects.filter(user_id=user_id, market_id=market_id).order_by("-pk")


def bet(*, public_id: UUID, market_id: int, user_id: int | None) -> Bet | None:
    """One bet of a market with its market; only if it is this member's, where one is named."""
    found = Bet.objects.select_related("market").filter(public_id=public_id, market_id=market_id)
    return (found if user_id is None else found.filter(user_id=user_id)).first()
