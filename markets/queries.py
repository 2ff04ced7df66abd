"""Queries of markets and of members' bets."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from django.db.models import Prefetch, QuerySet

from markets.models import Bet, Market, Outcome, Terms


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


def fee_pct_at(market: Market, closes_at: datetime | None) -> Decimal:
    """Return the fee of the terms that were in force at a stated close, in percent of the pool.

    Without a stated close it is the fee of the present terms. A version is in force from its approval.
    """
    if closes_at is None or market.terms_version == 1:
        return market.platform_fee_pct
    versions = Terms.objects.filter(market=market, version__lte=market.terms_version)
    in_force = versions.filter(made_at__lte=closes_at).order_by("-version").first()
    version = in_force or versions.order_by("version").first()
    return market.platform_fee_pct if version is None else version.platform_fee_pct
