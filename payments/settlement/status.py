"""Status of a market's settlement: its money by state, and its progress."""

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

PAYOUT_STATES = ("pending", "processing", "in_doubt", "held", "completed", "failed")


@dataclass(frozen=True)
class SettlementProgress:
    """Progress of a division: bets with their result, and members whose dividend is booked.

    All counts are 0 until the totals are frozen. Each chunk increases one count when it commits: first `bets_done`,
    then `members_done`.
    """

    bets_done: int = 0
    bets_total: int = 0
    members_done: int = 0


@dataclass(frozen=True)
class SettlementStatus:
    """A market's money. `by_state` maps each of PAYOUT_STATES to an amount in shillings and a number of payouts."""

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
    """Return the status of a market's settlement, or None if there is no such market."""
    market = Market.objects.filter(pk=market_id).first()
    if market is None:
        return None
    settlement = deciding_settlement(market_id)
    return SettlementStatus(
        market_id=market.pk,
        status=market.status,
        outcome=market.resolved_outcome,
        resolved_at=market.resolved_at,
        settled_at=market.settled_at,
        release_at=settlement.release_at if settlement else None,
        pool=settlement.pool if settlement and settlement.pool is not None else _stakes(market),
        platform_fee=(settlement.fee if settlement else None) or journal.ZERO,
        by_state=_by_state(settlement),
        progress=_progress(settlement),
    )


def settlement_progress(market_id: int) -> SettlementProgress:
    """Return the progress of a market's latest settlement. Callers may poll this, because it reads one row."""
    return _progress(Settlement.objects.filter(market=market_id).order_by("-number").first())


def deciding_settlement(market_id: int, *, settled_only: bool = False) -> Settlement | None:
    """Return the settlement that decides a market, or None.

    The settlement may be unfinished or being undone, unless `settled_only` is true. A withdrawn or undone settlement
    decides nothing. A scratch does not decide either, because it only gives back the stakes on one outcome. A
    constraint allows a market one settlement that decides.
    """
    State = Settlement.State
    states = [State.SETTLED] if settled_only else [State.PENDING, State.DIVIDING, State.SETTLED, State.UNDOING]
    settlements = Settlement.objects.filter(market=market_id, state__in=states)
    return settlements.exclude(rule=Settlement.Rule.SCRATCH).first()


def failed_scratch(market_id: int) -> Settlement | None:
    """Return the unfinished scratch of a market whose refunds found the books wrong, or None. It may be withdrawn."""
    scratches = Settlement.objects.filter(market=market_id, rule=Settlement.Rule.SCRATCH)
    unfinished = scratches.filter(state__in=[Settlement.State.PENDING, Settlement.State.DIVIDING])
    return unfinished.exclude(failure="").order_by("number").first()


def settlement_of(bet: Bet) -> Settlement | None:
    """Return the settlement that gave a bet its result: the scratch of its outcome, or else its market's settlement.

    A stake that was taken back is in no settlement.
    """
    if bet.taken_back_at is not None:
        return None
    scratches = Settlement.objects.filter(market=bet.market_id, scratched=bet.outcome)
    scratch = scratches.exclude(state__in=[Settlement.State.WITHDRAWN, Settlement.State.UNDONE]).first()
    if scratch is None:
        return deciding_settlement(bet.market_id, settled_only=True)
    return scratch if scratch.state == Settlement.State.SETTLED else None


def provisional(market_ids: Iterable[int], at: datetime) -> set[int]:
    """Return the ids of those markets whose result may still change: not settled yet, held, or being undone."""
    State = Settlement.State
    settlements = Settlement.objects.filter(market__in=list(market_ids)).exclude(rule=Settlement.Rule.SCRATCH)
    unsettled = Q(state__in=[State.PENDING, State.DIVIDING, State.UNDOING])
    held = Q(state=State.SETTLED, release_at__gt=at)
    return set(settlements.filter(unsettled | held).values_list("market_id", flat=True))


def _by_state(settlement: Settlement | None) -> dict[str, tuple[Decimal, int]]:
    by_state = dict.fromkeys(PAYOUT_STATES, (journal.ZERO, 0))
    if settlement is None:
        return by_state
    rows = (
        Transaction.objects.filter(settlement=settlement, type__in=["PAYOUT", "REFUND"])
        .exclude(status="CANCELLED")
        .annotate(
            state=Case(
                When(status="PROCESSING", pk__in=_in_doubt(settlement), then=Value("in_doubt")),
                *(When(status=name.upper(), then=Value(name)) for name in PAYOUT_STATES if name != "in_doubt"),
            )
        )
        .values_list("state")
        .annotate(total=Sum("amount"), count=Count("pk"))
        .order_by()
    )
    return by_state | {name: (total, count) for name, total, count in rows}


def _progress(settlement: Settlement | None) -> SettlementProgress:
    if settlement is None:
        return SettlementProgress()
    return SettlementProgress(settlement.bets_done, settlement.bet_count or 0, settlement.members_done)


def _in_doubt(settlement: Settlement) -> QuerySet[Attempt, Any]:
    return Attempt.objects.in_doubt().filter(transaction__settlement=settlement).values("transaction")


def _stakes(market: Market) -> Decimal:
    scratched = set(market.outcomes.exclude(scratched_at=None).values_list("name", flat=True))
    pools = markets_pools.pools([market.pk]).get(market.pk, {})
    return sum((stakes for outcome, (stakes, _) in pools.items() if outcome not in scratched), journal.ZERO)
