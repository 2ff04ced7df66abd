"""What dividing a market's pool comes to, read from its bets: what a preview shows and a settlement freezes.

Both use this and nothing else, so that what was seen is what is paid. Nothing here writes.

A dividend is stake × fund ÷ stakes on the outcome, floored to the cent; the left-over cents go to the largest
remainders, ties to the lowest bet id. `funds` keeps, for each outcome, the last bet that gets such a cent (its
remainder and id: the cutoff), so each bet's dividend can be computed by itself, in any chunk, after any crash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

from django.db import connection
from django.db.models import Count, Max, Sum

from markets import parimutuel
from markets.models import Bet, Market

# The dividend of a winning bet `b` by its outcome's row `f` of FUNDS, in shillings. Numeric throughout: stake × fund
# overflows bigint for pools that one rich member can make.
DIVIDEND = """(
    div(b.amount * 100 * f.fund, f.stakes) + CASE
        WHEN mod(b.amount * 100 * f.fund, f.stakes) > f.cutoff_remainder THEN 1
        WHEN mod(b.amount * 100 * f.fund, f.stakes) = f.cutoff_remainder AND b.id <= f.cutoff_bet THEN 1
        ELSE 0 END) / 100"""
FUNDS = """unnest(%(outcomes)s::text[], %(won)s::bool[], %(stakes)s::numeric[], %(fund)s::numeric[],
    %(cutoff_remainder)s::numeric[], %(cutoff_bet)s::bigint[])
    AS f (outcome, won, stakes, fund, cutoff_remainder, cutoff_bet)"""
# A losing outcome has a fund of nothing: every floor and every remainder is 0, and no cutoff is reached.
_LOST = {"stakes": 1, "fund": 0, "cutoff_remainder": 1, "cutoff_bet": 0}


Staked: TypeAlias = Mapping[str, tuple[Decimal, int]]


@dataclass(frozen=True)
class Division:
    """The figures of one division, in cents. `funds` maps each outcome that is paid to its stakes, fund and cutoff.

    `bet_count` bets are decided by it, of which `late_count` with stakes of `late_refund` came too late: these go back
    whole and are not in the pool. `stakes` are the pool's, by outcome.
    """

    bet_count: int
    last_bet_id: int
    stakes: Mapping[str, int]
    pool: int
    winning_pool: int
    fee: int
    net: int
    refund: bool
    funds: Mapping[str, dict[str, Any]]
    late_count: int
    late_refund: int


def divide(
    market: Market,
    found: Staked,
    *,
    rule: parimutuel.Rule,
    weights: Mapping[str, Decimal],
    fee_pct: Decimal,
    protect_stake: bool,
    effective_close_at: datetime | None,
) -> Division:
    """Compute the figures of dividing a market's pool now, of which `found` is staked. Scratched outcomes have no part.

    Units: weights are percentages that sum to 100, empty for VOID.
    """
    running = market.running_outcomes
    found = {outcome: found[outcome] for outcome in running if outcome in found}
    late: Staked = {}
    if effective_close_at is not None:
        late = staked(market, outcome__in=running, placed_at__gt=effective_close_at)
    last = Bet.objects.filter(market=market).aggregate(last=Max("pk"))["last"] or 0
    none = (Decimal(0), 0)
    stakes = {name: cents(found.get(name, none)[0] - late.get(name, none)[0]) for name in running}
    divided = parimutuel.funds(
        rule=rule, stakes_by_outcome=stakes, weights=weights, fee_pct=fee_pct, protect_stake=protect_stake
    )
    closed_at = effective_close_at if late else None
    return Division(
        bet_count=sum(bets for _, bets in found.values()),
        last_bet_id=last,
        stakes=stakes,
        pool=divided.pool,
        winning_pool=divided.winning_pool,
        fee=divided.fee,
        net=divided.net,
        refund=divided.refund,
        funds={
            outcome: {
                "stakes": stakes[outcome],
                "fund": fund,
                **_cutoff(market.pk, outcome, stakes[outcome], fund, closed_at),
            }
            for outcome, fund in divided.by_outcome.items()
        },
        late_count=sum(bets for _, bets in late.values()),
        late_refund=cents(sum((total for total, _ in late.values()), Decimal(0))),
    )


def scratch(found: Staked, outcome: str) -> Division:
    """The figures of giving back the stakes on one outcome."""
    total, bets = found.get(outcome, (Decimal(0), 0))
    pool = cents(total)
    return Division(
        bet_count=bets,
        last_bet_id=0,
        stakes={outcome: pool},
        pool=pool,
        winning_pool=0,
        fee=0,
        net=pool,
        refund=True,
        funds={},
        late_count=0,
        late_refund=0,
    )


def fund_rows(funds: Mapping[str, Mapping[str, Any]], outcomes: Sequence[str]) -> dict[str, list[Any]]:
    """The parameters of FUNDS for these outcomes, of which those without a fund have lost."""
    rows = [funds.get(outcome, _LOST) for outcome in outcomes]
    return {
        "outcomes": list(outcomes),
        "won": [outcome in funds for outcome in outcomes],
        **{name: [row[name] for row in rows] for name in _LOST},
    }


def staked(market: Market, **having: Any) -> Staked:
    """The stakes in shillings and the number of the bets on each outcome that has any."""
    rows = Bet.objects.filter(market=market, **having).values_list("outcome").annotate(total=Sum("amount"))
    return {outcome: (total, bets) for outcome, total, bets in rows.annotate(bets=Count("pk")).order_by()}


def _cutoff(market_id: int, outcome: str, stakes: int, fund: int, closed_at: datetime | None) -> dict[str, Any]:
    """The remainder and the id of the last bet on `outcome` that gets a left-over cent.

    Without left-over cents the remainder is one that no bet can have: remainders are less than the stakes' sum. A
    remainder is less than the stakes in cents, and sorts faster as a bigint.
    """
    numbers = {"market": market_id, "outcome": outcome, "stakes": stakes, "fund": fund, "closed_at": closed_at}
    in_time = "" if closed_at is None else "AND placed_at <= %(closed_at)s"
    (floors,) = _row(
        f"""
        SELECT coalesce(sum(div(amount * 100 * %(fund)s, %(stakes)s)), 0) FROM markets_bet
        WHERE market_id = %(market)s AND outcome = %(outcome)s {in_time}
        """,  # noqa: S608 - our own words
        numbers,
    )
    left_over = fund - int(floors)
    if left_over == 0:
        return {"cutoff_remainder": stakes, "cutoff_bet": 0}
    remainder, bet_id = _row(
        f"""
        SELECT mod(amount * 100 * %(fund)s, %(stakes)s)::bigint, id FROM markets_bet
        WHERE market_id = %(market)s AND outcome = %(outcome)s {in_time}
        ORDER BY 1 DESC, id LIMIT 1 OFFSET %(before)s
        """,  # noqa: S608 - our own words
        {**numbers, "before": left_over - 1},
    )
    return {"cutoff_remainder": int(remainder), "cutoff_bet": bet_id}


def cents(amount: Decimal) -> int:
    return int(amount * 100)


def _row(sql: str, numbers: dict[str, Any]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
        return cursor.fetchone()
