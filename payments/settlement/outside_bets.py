"""Stakes of bets that were made straight through the ORM: booked from `opening` before their market is divided.

In production a trigger refuses such a bet, so a difference between the bets and the pool is an error there.
"""

from datetime import datetime
from typing import Any

from django.db import connection

from markets.models import Bet, Market
from payments import named_sql
from payments.ledger import journal
from payments.settlement import division, failures

# Maximum number of bets whose stakes one statement books, so that no statement exceeds its time limit.
BETS_PER_STATEMENT = 100_000
LARGEST_ID = 2**62
_SQL = named_sql.beside(__file__)


def book(market: Market, staked: division.Staked, at: datetime) -> None:
    """Book the stakes that the market's pool account does not hold yet.

    Raises: failures.BooksDisagree if the pool still holds another sum than the bets.
    """
    account = journal.pool(market.pk)
    held = division.stakes_held(market, staked)
    if journal.balance(account) == held:
        return
    ids = journal.open_accounts([journal.OPENING, account])
    parameters = {"opening": ids[journal.OPENING], "pool": ids[account], "market": market.pk, "at": at}
    # The planner's statistics do not know these rows yet. It would choose a nested loop, which reads the whole ledger
    # for each bet and takes hours.
    _execute("SET LOCAL enable_nestloop = off", {})
    low: int | None = 0
    while low is not None:
        next_ids = Bet.objects.filter(market=market, pk__gt=low).order_by("pk").values_list("pk", flat=True)
        high = next(iter(next_ids[BETS_PER_STATEMENT - 1 : BETS_PER_STATEMENT]), None)
        _execute(_SQL["book_outside_stakes"], parameters | {"low": low, "high": high or LARGEST_ID})
        low = high
    _execute("SET LOCAL enable_nestloop = DEFAULT", {})
    booked = journal.balance(account)
    if booked != held:
        raise failures.BooksDisagree(f"Market {market.pk}: its bets sum to {held}, its pool account holds {booked}.")


def _execute(sql: str, parameters: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
