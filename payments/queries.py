"""Reading payments: where a market's money is."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Case, Count, QuerySet, Sum, Value, When
from django.db.models.functions import Coalesce

from markets.models import Market
from payments import ledger
from payments.models import Attempt, Settlement, Transaction

SIX = ("pending", "processing", "in_doubt", "held", "completed", "failed")


@dataclass(frozen=True)
class SettlementStatus:
    """Where a market's money is: amounts in shillings and counts by state; `by_state` has exactly the keys of SIX."""

    market_id: int
    status: str
    outcome: str | None
    resolved_at: datetime | None
    settled_at: datetime | None
    pool: Decimal
    platform_fee: Decimal
    by_state: dict[str, tuple[Decimal, int]]

    @property
    def total_payouts(self) -> Decimal:
        return sum((amount for amount, _ in self.by_state.values()), ledger.ZERO)


def settlement_status(market_id: int) -> SettlementStatus | None:
    """A market's settlement as it stands, or None where there is no such market."""
    market = Market.objects.filter(pk=market_id).first()
    if market is None:
        return None
    run = market.settlements.exclude(
        state__in=[Settlement.State.WITHDRAWN, Settlement.State.UNDONE]
    ).order_by("-number").first()  # fmt: skip
    by_state = dict.fromkeys(SIX, (ledger.ZERO, 0))
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
        pool=pool,
        platform_fee=(run.fee if run is not None else None) or ledger.ZERO,
        by_state=by_state,
    )


def _in_doubt(run: Settlement) -> QuerySet[Attempt, Any]:
    return Attempt.objects.filter(state=Attempt.State.IN_DOUBT, transaction__settlement=run).values("transaction")


def _stakes(market: Market) -> Decimal:
    return market.bets.aggregate(total=Coalesce(Sum("amount"), ledger.ZERO))["total"]
