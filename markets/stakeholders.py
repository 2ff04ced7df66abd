"""Refusal of decisions by staff who have bet on the market.

The caller checks while it holds the market's lock, so the result is still true when the decision is written.
"""

from markets.models import Bet, Market
from users import audit
from users.refusal import Refusal


class StakeInMarket(Refusal):
    """A person who has bet on a market may not decide about it."""


def refuse_stakeholders(market: Market, by: audit.Actor) -> None:
    """Refuse anyone who has bet on the market. Raises: StakeInMarket."""
    if by.user_id is not None and Bet.objects.filter(user_id=by.user_id, market=market).exists():
        raise StakeInMarket("You have a stake in this market. Another member of staff must decide about it.")
