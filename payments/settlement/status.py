"""Reading payments: where a market's money is, and what of it is in limbo."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Case, Count, Q, QuerySet, Sum, Value, When

from markets import pools as markets_pools
from markets.models import Bet, Market
from payments.ledger import journal
from payments.models import Attempt, Settlement, Transaction

SIX = ("pending", "processing", "in_doubt", "held", "completed", "failed")


@dataclass(frozen=True)
class SettlementProgress:
    """How far the division has come: bets with their verdict, of how many, and members whose dividend is booked.

    All 0 until the totals are frozen. Each chunk moves them when it commits; verdicts come first, then the members.
    """

    bets_done: int = 0
    bets_total: int = 0
    members_done: int = 0


@dataclass(frozen=True)
class SettlementStatus:
    """Where a market's money is: amounts in shillings and counts by state; `by_state` has exactly the keys of SIX."""

    market_id: int
    status: str
    outcome: str | None
    resolved_at: datetime | None
    settled_at: datetime | None
    release_at: datetime | None
    pool: Decimal
    platform_fee: Decimal
    by_state: dict[str, tuple[Decimal, int]]
    progress: SettlementProgress = SettlementProgress()

    @property
    def total_payouts(self) -> Decimal:
        return sum((amount for amount, _ in self.by_state.values()), journal.ZERO)


def settlement_status(market_id: int) -> SettlementStatus | None:
    """A market's settlement as it stands, or None where there is no such market."""
    market = Market.objects.filter(pk=market_id).first()
    if market is None:
        return None
    run = market.settlements.exclude(
        Q(state__in=[Settlement.State.WITHDRAWN, Settlement.State.UNDONE]) | Q(rule=Settlement.Rule.SCRATCH)
    ).order_by("-number").first()  # fmt: skip
    by_state = dict.fromkeys(SIX, (journal.ZERO, 0))
    if run is not None:
        rows = (
            Transaction.objects.filter(settlement=run, type__in=["PAYOUT", "REFUND"])
            .exclude(status="CANCELLED")
            .annotate(
                state=Case(
                    When(status="PROCESSING", pk__in=_in_doubt(run), then=Value("in_doubt")),
                    *(When(status=name.upper(), then=Value(name)) for name in SIX if name != "in_doubt"),
                )
            )
            .values_list("state")
            .annotate(total=Sum("amount"), count=Count("pk"))
            .order_by()
        )
        by_state.update({name: (total, count) for name, total, count in rows})
    pool = run.pool if run is not None and run.pool is not None else _stakes(market)
    return SettlementStatus(
        market_id=market.pk,
        status=market.status,
        outcome=market.resolved_outcome,
        resolved_at=market.resolved_at,
        settled_at=market.settled_at,
        release_at=run.release_at if run is not None else None,
        pool=pool,
        platform_fee=(run.fee if run is not None else None) or journal.ZERO,
        by_state=by_state,
        progress=SettlementProgress() if run is None else _progress(run),
    )


def settlement_progress(market_id: int) -> SettlementProgress:
    """How far the latest settlement of a market has come; one row is read, so it may be asked for all the time."""
    run = Settlement.objects.filter(market=market_id).order_by("-number").first()
    return SettlementProgress() if run is None else _progress(run)


def standing(market_id: int) -> Settlement | None:
    """The run that has decided a market and stands; one that gave back the stakes on a single outcome is none."""
    runs = Settlement.objects.filter(market=market_id, state=Settlement.State.SETTLED)
    return runs.exclude(rule=Settlement.Rule.SCRATCH).first()


def run_of(bet: Bet) -> Settlement | None:
    """The run that gave a bet its result: its market's, or the one that scratched its outcome."""
    scratch = Settlement.objects.filter(market=bet.market_id, scratched=bet.outcome).first()
    if scratch is None:
        return standing(bet.market_id)
    return scratch if scratch.state == Settlement.State.SETTLED else None


def provisional(market_ids: Iterable[int], at: datetime) -> set[int]:
    """Of these markets, those whose result may still be withdrawn: resolved and not settled, held, or being undone."""
    State = Settlement.State
    runs = Settlement.objects.filter(market__in=list(market_ids)).exclude(rule=Settlement.Rule.SCRATCH)
    unsettled = Q(state__in=[State.PENDING, State.DIVIDING, State.UNDOING])
    return set(runs.filter(unsettled | Q(state=State.SETTLED, release_at__gt=at)).values_list("market_id", flat=True))


def _progress(run: Settlement) -> SettlementProgress:
    return SettlementProgress(run.bets_done, run.bet_count or 0, run.members_done)


def _in_doubt(run: Settlement) -> QuerySet[Attempt, Any]:
    # A doubtful request that is being sent again is as doubtful as before.
    doubtful = Q(state=Attempt.State.IN_DOUBT) | Q(state__in=Attempt.OPEN, doubted_at__isnull=False)
    return Attempt.objects.filter(doubtful, transaction__settlement=run).values("transaction")


def _stakes(market: Market) -> Decimal:
    scratched = market.outcomes.exclude(scratched_at=None).values_list("name", flat=True)
    pools = markets_pools.pools([market.pk]).get(market.pk, {})
    return sum((stakes for outcome, (stakes, _) in pools.items() if outcome not in set(scratched)), journal.ZERO)
