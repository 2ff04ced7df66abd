"""Figures of the market page: pools, shares over time, latest bets, progress of a settlement."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db.models import Count, Max, Sum

from markets import pools as markets_pools
from markets.models import Bet, Market
from payments.ledger import journal
from payments.models import Settlement, Transaction
from payments.settlement import status as settlement_status

POINTS = 60
FINISHED = ("completed", "failed", "held")


@dataclass(frozen=True)
class Pool:
    """The stakes on one outcome. `share` is in percent of the pool; `dividend` is per shilling, before the fee."""

    outcome: str
    stakes: Decimal
    bets: int
    share: Decimal
    dividend: Decimal | None


@dataclass(frozen=True)
class Curve:
    """Each outcome's share of the pool over time, in percent: `shares[outcome][n]` is the share at `moments[n]`."""

    moments: list[datetime]
    shares: dict[str, list[float]]


@dataclass(frozen=True)
class Progress:
    """Progress of a settlement. `by_state` is as in status.SettlementStatus. `ends_at` is an estimate."""

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
    """Return the pool of each outcome, in the market's order."""
    sums = markets_pools.pools([market.pk]).get(market.pk, {})
    total = sum((stakes for stakes, _ in sums.values()), journal.ZERO)
    result = []
    for outcome in market.outcome_names:
        stakes, bets = sums.get(outcome, (journal.ZERO, 0))
        share = round(100 * stakes / total, 1) if total else Decimal(0)
        result.append(Pool(outcome, stakes, bets, share, round(total / stakes, 2) if stakes else None))
    return result


def curve(market: Market) -> Curve:
    """Return each outcome's share over time, in at most POINTS steps between the first and the last bet."""
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
    """Return the progress of the settlement that decides a market, or None if there is none."""
    settlement = settlement_status.deciding_settlement(market.pk)
    status = settlement_status.settlement_status(market.pk) if settlement is not None else None
    if settlement is None or status is None:
        return None
    bets = settlement.bet_count if settlement.bet_count is not None else market.bets.count()
    done = bets if settlement.bets_divided or settlement.state == Settlement.State.SETTLED else _bets_done(settlement)
    by_state = status.by_state
    count = sum(number for _, number in by_state.values())
    unfinished = sum(by_state[name][1] for name in ("pending", "processing", "in_doubt"))
    paid_last_minute = Transaction.objects.filter(
        settlement=settlement, status="COMPLETED", destination="mpesa", completed_at__gte=at - timedelta(minutes=1)
    ).count()
    settled = settlement.state == Settlement.State.SETTLED
    ends_at = None
    if settled and paid_last_minute and unfinished:
        ends_at = at + timedelta(minutes=unfinished / paid_last_minute)
    return Progress(
        settlement=settlement,
        bets=bets,
        bets_done=done,
        by_state=by_state,
        count=count,
        amount=status.total_payouts,
        per_minute=Decimal(paid_last_minute),
        ends_at=ends_at,
        finished=settled and unfinished == 0,
    )


def _bets_done(settlement: Settlement) -> int:
    if not settlement.last_bet_id:
        return 0
    return Bet.objects.filter(market_id=settlement.market_id, pk__lte=settlement.last_bet_id).count()


def latest_bets(market: Market, *, limit: int = 20) -> list[Bet]:
    """Return the latest bets on a market, newest first."""
    return list(market.bets.select_related("user").order_by("-pk")[:limit])


@dataclass(frozen=True)
class Listed:
    """A market in the list, with its pool. `overdue` is true if it has ended and is not resolved yet."""

    market: Market
    pool: Decimal
    bets: int
    overdue: bool


def listed(markets: list[Market], *, at: datetime) -> list[Listed]:
    """Return these markets with their pools."""
    sums = markets_pools.pools([market.pk for market in markets])
    rows = []
    for market in markets:
        outcomes = sums.get(market.pk, {}).values()
        rows.append(
            Listed(
                market,
                sum((stakes for stakes, _ in outcomes), journal.ZERO),
                sum(bets for _, bets in outcomes),
                market.status in (Market.Status.OPEN, Market.Status.CLOSED) and market.end_date < at,
            )
        )
    return rows


def member_totals(user_id: int) -> dict[str, object]:
    """Sum up the stakes and dividends of a member over all bets, in shillings."""
    return Bet.objects.filter(user_id=user_id).aggregate(
        bets=Count("pk"), stakes=Sum("amount"), dividends=Sum("payout"), last=Max("placed_at")
    )
