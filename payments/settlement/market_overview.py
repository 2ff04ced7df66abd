"""What the market page shows: pools, how the odds moved, the latest bets, and how far a settlement has come."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db.models import Count, Max, Sum

from markets import pools as markets_pools
from markets.models import Bet, Market
from payments.ledger import journal
from payments.models import Settlement, Transaction
from payments.settlement import status as settlement_status
from payments.settlement import undo

POINTS = 60
FINISHED = ("completed", "failed", "held")


@dataclass(frozen=True)
class Pool:
    """The stakes on one outcome; `share` is its part of the pool in percent, which is what the market thinks of it."""

    outcome: str
    stakes: Decimal
    bets: int
    share: Decimal
    dividend: Decimal | None


@dataclass(frozen=True)
class Curve:
    """Each outcome's share of the pool over time: `shares[outcome][n]` in percent at `moments[n]`."""

    moments: list[datetime]
    shares: dict[str, list[float]]


@dataclass(frozen=True)
class Progress:
    """How far a settlement has come; `by_state` as queries.SettlementStatus has it, `ends_at` an estimate."""

    settlement: Settlement
    bets: int
    bets_done: int
    by_state: dict[str, tuple[Decimal, int]]
    count: int
    amount: Decimal
    per_minute: Decimal
    ends_at: datetime | None
    finished: bool


def pools(market: Market) -> list[Pool]:
    """The pool of each outcome, in the market's order. `dividend` is what one shilling would bring, before the fee."""
    found = markets_pools.pools([market.pk]).get(market.pk, {})
    total = sum((stakes for stakes, _ in found.values()), journal.ZERO)
    result = []
    for outcome in market.outcome_names:
        stakes, bets = found.get(outcome, (journal.ZERO, 0))
        share = round(100 * stakes / total, 1) if total else Decimal(0)
        result.append(Pool(outcome, stakes, bets, share, round(total / stakes, 2) if stakes else None))
    return result


def curve(market: Market) -> Curve:
    """How the shares moved, in at most POINTS steps between the first and the last bet; summed up in the database."""
    names = list(market.outcome_names)
    sums = dict.fromkeys(names, journal.ZERO)
    moments: list[datetime] = []
    shares: dict[str, list[float]] = {name: [] for name in names}
    steps: dict[datetime, dict[str, Decimal]] = {}
    for moment, outcome, stakes in markets_pools.steps(market.pk, points=POINTS):
        steps.setdefault(moment, {})[outcome] = stakes
    for moment, stakes_of in steps.items():
        for outcome, stakes in stakes_of.items():
            sums[outcome] = sums.get(outcome, journal.ZERO) + stakes
        total = sum(sums.values(), journal.ZERO)
        moments.append(moment)
        for name in names:
            shares[name].append(float(round(100 * sums[name] / total, 1)))
    return Curve(moments, shares)


def progress(market: Market, *, at: datetime) -> Progress | None:
    """The live settlement of a market, or None where there is none."""
    run = undo.deciding_run(market)
    status = settlement_status.settlement_status(market.pk) if run is not None else None
    if run is None or status is None:
        return None
    bets = run.bet_count if run.bet_count is not None else market.bets.count()
    done = bets if run.bets_divided or run.state == Settlement.State.SETTLED else _bets_done(run)
    by_state = status.by_state
    count = sum(number for _, number in by_state.values())
    to_come = sum(by_state[name][1] for name in ("pending", "processing", "in_doubt"))
    lately = Transaction.objects.filter(
        settlement=run, status="COMPLETED", destination="mpesa", completed_at__gte=at - timedelta(minutes=1)
    ).count()
    settled = run.state == Settlement.State.SETTLED
    return Progress(
        settlement=run,
        bets=bets,
        bets_done=done,
        by_state=by_state,
        count=count,
        amount=status.total_payouts,
        per_minute=Decimal(lately),
        ends_at=at + timedelta(minutes=to_come / lately) if lately and to_come and settled else None,
        finished=settled and to_come == 0,
    )


def _bets_done(run: Settlement) -> int:
    return Bet.objects.filter(market_id=run.market_id, pk__lte=run.last_bet_id).count() if run.last_bet_id else 0


def latest_bets(market: Market, *, limit: int = 20) -> list[Bet]:
    return list(market.bets.select_related("user").order_by("-pk")[:limit])


@dataclass(frozen=True)
class Listed:
    """A market in the list: its pool, and whether it waits to be resolved."""

    market: Market
    pool: Decimal
    bets: int
    overdue: bool


def listed(markets: list[Market], *, at: datetime) -> list[Listed]:
    """These markets with their pools."""
    sums = markets_pools.pools([market.pk for market in markets])
    found = []
    for market in markets:
        mine = sums.get(market.pk, {}).values()
        found.append(
            Listed(
                market,
                sum((stakes for stakes, _ in mine), journal.ZERO),
                sum(bets for _, bets in mine),
                market.status in (Market.Status.OPEN, Market.Status.CLOSED) and market.end_date < at,
            )
        )
    return found


def member_totals(user_id: int) -> dict[str, object]:
    """How much a member has bet and won in all, in shillings."""
    return Bet.objects.filter(user_id=user_id).aggregate(
        bets=Count("pk"), stakes=Sum("amount"), dividends=Sum("payout"), last=Max("placed_at")
    )
