"""Whose own affair an act is; asked under lock."""

from markets.models import Bet, Market
from users import audit
from users.refusal import Refusal


class StakeInMarket(Refusal):
    """Who has bet on a market decides nothing about it."""


def refuse_stakeholders(market: Market, by: audit.Actor) -> None:
    """Raises: StakeInMarket."""
    if by.user_id is not None and Bet.objects.filter(user_id=by.user_id, market=market).exists():
        raise StakeInMarket("You have a stake in this market: another member of staff must decide about it.")
