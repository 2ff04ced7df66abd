"""Locks of markets, and the registry of advisory lock numbers."""

from django.db import connection

from markets.models import Market
from users.refusal import Refusal


def market_lock(market_id: int) -> int:
    """The number of a market's advisory lock; the trigger that guards bets has the same."""
    return (7 << 56) + market_id % (1 << 56)


class MarketNotFound(Refusal):
    """There is no market with that id."""


class MarketNotOpen(Refusal):
    """The market takes no bets any more."""


class OutcomeNotInMarket(Refusal):
    """The outcome is none of the market's."""


def locked_market(market_id: int) -> Market:
    """The market under lock. Bets share its advisory lock: it queues fairly, where a stream of sharers of the row's own
    lock would keep us waiting for as long as they bet.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [market_lock(market_id)])
    market = Market.objects.select_for_update(no_key=True, of=("self",)).filter(pk=market_id).first()
    if market is None:
        raise MarketNotFound(f"There is no market {market_id}.")
    return market
