"""Figures of the division of a market's pool, computed from its bets.

A preview shows these figures and a settlement freezes them, so the amounts seen are the amounts paid. This module
writes nothing.

A dividend is stake × fund ÷ stakes on the outcome, floored to the cent. The left-over cents go to the bets with the
largest remainders; among equal remainders, the lower bet id comes first. `funds` holds the cutoff of each outcome: the
remainder and the id of the last bet that gets a left-over cent. With the cutoff each dividend can be computed alone, in
any chunk and after any crash.
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
from payments.models import Settlement

# The dividend of a bet `b` by its outcome's row `f` of FUNDS, in shillings. Every value is numeric, because
# stake × fund can overflow bigint, even in a pool with the bets of one rich member.
DIVIDEND = """(
    div(b.amount * 100 * f.fund, f.stakes) + CASE
        WHEN mod(b.amount * 100 * f.fund, f.stakes) > f.cutoff_remainder THEN 1
        WHEN mod(b.amount * 100 * f.fund, f.stakes) = f.cutoff_remainder AND b.id <= f.cutoff_bet THEN 1
        ELSE 0 END) / 100"""
FUNDS = """unnest(%(outcomes)s::text[], %(won)s::bool[], %(stakes)s::numeric[], %(fund)s::numeric[],
    %(cutoff_remainder)s::numeric[], %(cutoff_bet)s::bigint[])
    AS f (outcome, won, stakes, fund, cutoff_remainder, cutoff_bet)"""
# A losing outcome has a fund of 0, so all its dividends and remainders are 0. No remainder reaches the cutoff of 1.
_LOST = {"stakes": 1, "fund": 0, "cutoff_remainder": 1, "cutoff_bet": 0}


Staked: TypeAlias = Mapping[str, tuple[Decimal, int]]


@dataclass(frozen=True)
class Division:
    """The figures of one division, in cents. `funds` maps each paid outcome to its stakes, fund and cutoff.

    `bet_count` is the number of bets that it decides. `late_count` of these bets came after the event's end. Their
    stakes, `late_refund`, go back whole and are not in the pool. `stakes` maps each outcome to its stakes in the pool.
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
    all_stakes: Staked,
    *,
    rule: parimutuel.Rule,
    weights: Mapping[str, Decimal],
    fee_pct: Decimal,
    protect_stake: bool,
    effective_close_at: datetime | None,
) -> Division:
    """Compute the figures of a division of a market's pool now, without the stakes on scratched outcomes.

    `all_stakes` is the result of `staked` for the market.
    Units: weights are percentages that sum to 100, empty for VOID.
    """
    running = market.running_outcomes
    stakes_now = {outcome: all_stakes[outcome] for outcome in running if outcome in all_stakes}
    late: Staked = {}
    if effective_close_at is not None:
        late = staked(market, outcome__in=running, placed_at__gt=effective_close_at)
    last = Bet.objects.filter(market=market).aggregate(last=Max("pk"))["last"] or 0
    none = (Decimal(0), 0)
    stakes = {name: cents(stakes_now.get(name, none)[0] - late.get(name, none)[0]) for name in running}
    divided = parimutuel.funds(
        rule=rule, stakes_by_outcome=stakes, weights=weights, fee_pct=fee_pct, protect_stake=protect_stake
    )
    closed_at = effective_close_at if late else None
    return Division(
        bet_count=sum(bets for _, bets in stakes_now.values()),
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


def scratch(all_stakes: Staked, outcome: str) -> Division:
    """Compute the figures of giving back the stakes on one outcome."""
    total, bets = all_stakes.get(outcome, (Decimal(0), 0))
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
    """Return the parameters of FUNDS for these outcomes. An outcome without a fund has lost."""
    rows = [funds.get(outcome, _LOST) for outcome in outcomes]
    return {
        "outcomes": list(outcomes),
        "won": [outcome in funds for outcome in outcomes],
        **{name: [row[name] for row in rows] for name in _LOST},
    }


def staked(market: Market, **having: Any) -> Staked:
    """Sum up the stakes in shillings and count the bets, for each outcome with bets. Leaves out stakes taken back."""
    rows = (
        Bet.objects.filter(market=market, taken_back_at=None, **having)
        .values_list("outcome")
        .annotate(total=Sum("amount"))
    )
    return {outcome: (total, bets) for outcome, total, bets in rows.annotate(bets=Count("pk")).order_by()}


def _cutoff(market_id: int, outcome: str, stakes: int, fund: int, closed_at: datetime | None) -> dict[str, Any]:
    """Find the remainder and the id of the last bet on `outcome` that gets a left-over cent.

    Without left-over cents it returns the sum of the stakes as the remainder, which no bet can reach. The query sorts
    remainders as bigint, which is faster than numeric. They fit, because each is less than the stakes in cents.
    """
    parameters = {"market": market_id, "outcome": outcome, "stakes": stakes, "fund": fund, "closed_at": closed_at}
    in_time = "" if closed_at is None else "AND placed_at <= %(closed_at)s"
    (floors,) = _row(
        f"""
        SELECT coalesce(sum(div(amount * 100 * %(fund)s, %(stakes)s)), 0) FROM markets_bet
        WHERE market_id = %(market)s AND outcome = %(outcome)s AND taken_back_at IS NULL {in_time}
        """,  # noqa: S608 - fixed text
        parameters,
    )
    left_over = fund - int(floors)
    if left_over == 0:
        return {"cutoff_remainder": stakes, "cutoff_bet": 0}
    remainder, bet_id = _row(
        f"""
        SELECT mod(amount * 100 * %(fund)s, %(stakes)s)::bigint, id FROM markets_bet
        WHERE market_id = %(market)s AND outcome = %(outcome)s AND taken_back_at IS NULL {in_time}
        ORDER BY 1 DESC, id LIMIT 1 OFFSET %(before)s
        """,  # noqa: S608 - fixed text
        {**parameters, "before": left_over - 1},
    )
    return {"cutoff_remainder": int(remainder), "cutoff_bet": bet_id}


def cents(amount: Decimal) -> int:
    """Convert shillings to cents."""
    return int(amount * 100)


def _row(sql: str, parameters: dict[str, Any]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()


def stakes_held(market: Market, staked: Staked) -> Decimal:
    """Return the amount that the pool must hold before the division: all stakes except scratched and returned ones."""
    scratches = market.settlements.filter(rule=Settlement.Rule.SCRATCH, state=Settlement.State.SETTLED)
    given_back = set(scratches.values_list("scratched", flat=True))
    return sum((total for outcome, (total, _) in staked.items() if outcome not in given_back), Decimal("0.00"))


def outcomes_of(settlement: Settlement) -> list[str]:
    """Return the outcomes whose bets this settlement decides.

    A scratch decides the bets on one outcome; the other bets stay open. Any other settlement decides the bets on all
    outcomes that are not scratched.
    """
    if settlement.rule == Settlement.Rule.SCRATCH:
        return [settlement.scratched]
    return list(settlement.market.running_outcomes)


def equation(divided: Division, *, rule: parimutuel.Rule, backed: str, fee_pct: Decimal) -> str:
    """Write a division as one line that a person can check with a calculator. `backed` names the winning outcomes."""
    pool, fee, net = (f"{_shillings(part):,.2f}" for part in (divided.pool, divided.fee, divided.net))
    late = ""
    if divided.late_count:
        late = f" Stakes of {_shillings(divided.late_refund):,.2f} came after the event's end and go back first."
    if rule == "VOID":
        return f"Void: every stake goes back whole, {pool} in all, without a fee.{late}"
    if divided.refund:
        return f"Nobody backed {backed}: every stake goes back whole, {pool} in all, without a fee.{late}"
    shares = "; ".join(
        f"{_shillings(fund['fund']):,.2f} ÷ stakes of {_shillings(fund['stakes']):,.2f} on {outcome}"
        f" = {Decimal(fund['fund']) / fund['stakes']:.6f} for each shilling"
        for outcome, fund in divided.funds.items()
    )
    return f"Pool {pool} − platform fee {fee} ({fee_pct} %) = {net}; {shares}.{late}"


def _shillings(cents: int) -> Decimal:
    return Decimal(cents) / 100
