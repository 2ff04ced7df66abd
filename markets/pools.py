"""Pools of markets: the sum of the tallies and of the bets in no tally yet, less the bets that were taken back.

A tally is the sum of the stakes placed on one outcome within a slot of five minutes. A pool is therefore read without
reading every bet. A tally also counts bets that were taken back later; a pool subtracts them by their own index.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

from django.db import connection

from markets import watermarks

TABLE = "markets_bet"
_ADD = """
    INSERT INTO markets_tally (market_id, outcome, slot, stakes, bets)
    SELECT market_id, outcome, date_bin('5 minutes', placed_at, '2000-01-01 00:00Z'), sum(amount), count(*)
    FROM markets_bet WHERE id > %s AND id <= %s GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (market_id, outcome, slot) DO UPDATE
    SET stakes = markets_tally.stakes + excluded.stakes, bets = markets_tally.bets + excluded.bets"""
# A single statement has one snapshot of the tallies, the watermark and the later bets, so it counts each bet once.
_STAKED = """
    SELECT market_id, outcome, slot AS at, stakes, bets FROM markets_tally WHERE market_id = ANY (%(markets)s)
    UNION ALL
    SELECT market_id, outcome, placed_at, amount, 1 FROM markets_bet WHERE market_id = ANY (%(markets)s)
      AND id > coalesce((SELECT up_to FROM markets_watermark WHERE "table" = 'markets_bet'), 0)
    UNION ALL
    SELECT market_id, outcome, taken_back_at, -amount, -1 FROM markets_bet
    WHERE market_id = ANY (%(markets)s) AND taken_back_at IS NOT NULL"""


def advance(*, keep_going: Callable[[], bool]) -> int:
    """Add new bets to the tallies, and return the id of the last bet in the tallies (the watermark).

    Idempotent: the watermark moves in the same transaction, so each bet is added once.
    Locks: the Watermark.
    """

    def add(low: int, high: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_ADD, [low, high])

    return watermarks.advance(TABLE, add, keep_going=keep_going)


def pools(market_ids: list[int]) -> dict[int, dict[str, tuple[Decimal, int]]]:
    """Return (stakes in shillings, number of bets) of each outcome with bets, by market and outcome name.

    The figures are exact and current.
    """
    by_market: dict[int, dict[str, tuple[Decimal, int]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT market_id, outcome, sum(stakes), sum(bets) FROM ({_STAKED}) s GROUP BY 1, 2",  # noqa: S608 - ours
            {"markets": market_ids},
        )
        for market_id, outcome, stakes, bets in cursor.fetchall():
            by_market.setdefault(market_id, {})[outcome] = (stakes, int(bets))
    return by_market


def steps(market_id: int, *, points: int) -> list[tuple[datetime, str, Decimal]]:
    """Return a market's stakes by time: (end of step, outcome, stakes placed in the step), the earliest step first.

    The time from the first stake to the last is divided into `points` equal steps. Steps without stakes are left out.
    All stakes of a tally count as placed at the start of its five minutes.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH staked AS MATERIALIZED ({_STAKED}),
            period AS (SELECT min(at) AS first, max(at) AS last FROM staked),
            steps AS (
                SELECT outcome, sum(stakes) AS stakes, least(%(points)s, width_bucket(
                    extract(epoch FROM at), extract(epoch FROM period.first),
                    extract(epoch FROM period.last) + 1, %(points)s)) AS step
                FROM staked, period GROUP BY 1, 3)
            SELECT period.first + (period.last - period.first) * steps.step / %(points)s, steps.outcome, steps.stakes
            FROM steps, period ORDER BY steps.step
            """,  # noqa: S608 - ours
            {"markets": [market_id], "points": points},
        )
        return list(cursor.fetchall())
