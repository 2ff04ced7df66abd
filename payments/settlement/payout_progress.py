"""Progress of a settlement: bets divided, payouts by state, pace, and the expected end or the causes of a wait."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import Count, Max, Min

from markets.models import Bet, Market
from payments.models import Settlement, Transaction
from payments.payouts import waiting
from payments.policy import Policy
from payments.settlement import status as settlement_status

MINUTE = timedelta(minutes=1)
ASKED_FIRST: dict[str, Any] = {"ask_first__isnull": False, "ask_first__ended_at": None}


@dataclass(frozen=True)
class Later:
    """The payouts that are due later, mostly because of M-Pesa's limit of the day."""

    count: int
    first_at: datetime | None
    last_at: datetime | None


@dataclass(frozen=True)
class Progress:
    """Progress of a settlement. `by_state` is as in status.SettlementStatus.

    `asked_first` is the number of pending payouts that may have left before a restore, and wait for M-Pesa's answer.
    `waits` are the causes for which no payout leaves now. `ends_at` is an estimate for the payouts that are due now. It
    is None while a cause exists, while the canary runs, and while no payout was paid in the last minute.
    `in_canary`: only the first payouts may leave, as a test.
    """

    settlement: Settlement
    bets: int
    bets_done: int
    by_state: dict[str, tuple[Decimal, int]]
    count: int
    amount: Decimal
    per_minute: int
    due_now: int
    later: Later
    asked_first: int
    waits: list[waiting.Wait]
    in_canary: bool
    ends_at: datetime | None
    finished: bool


def progress(market: Market, *, at: datetime, policy: Policy) -> Progress | None:
    """Return the progress of the settlement that decides a market, or None if there is none."""
    settlement = settlement_status.deciding_settlement(market.pk)
    status = settlement_status.settlement_status(market.pk) if settlement is not None else None
    if settlement is None or status is None:
        return None
    by_state = status.by_state
    settled = settlement.state == Settlement.State.SETTLED
    payouts = Transaction.objects.filter(settlement=settlement, destination=Transaction.Destination.MPESA)
    later, asked_first = Later(0, None, None), 0
    if by_state["pending"][1]:
        asked_first = payouts.filter(status=Transaction.Status.PENDING, due_at__lte=at, **ASKED_FIRST).count()
        postponed = payouts.filter(status=Transaction.Status.PENDING, due_at__gt=at)
        later = Later(**postponed.aggregate(count=Count("pk"), first_at=Min("due_at"), last_at=Max("due_at")))
    due_now = by_state["pending"][1] + by_state["processing"][1] - later.count - asked_first
    paid = payouts.filter(status=Transaction.Status.COMPLETED, redirected_at=None, completed_at__gte=at - MINUTE)
    per_minute = paid.count()
    waits = waiting.of_settlement(settlement, at=at, policy=policy) if settled and by_state["pending"][1] else []
    in_canary = settled and by_state["pending"][1] > 0 and not settlement.release_open
    ends_at = None
    if settled and due_now and per_minute and not waits and not in_canary:
        ends_at = at + MINUTE * due_now / per_minute
    bets, bets_done = _bets(settlement, market)
    return Progress(
        settlement=settlement,
        bets=bets,
        bets_done=bets_done,
        by_state=by_state,
        count=sum(number for _, number in by_state.values()),
        amount=status.total_payouts,
        per_minute=per_minute,
        due_now=due_now,
        later=later,
        asked_first=asked_first,
        waits=waits,
        in_canary=in_canary,
        ends_at=ends_at,
        finished=settled and due_now + later.count + asked_first + by_state["in_doubt"][1] == 0,
    )


def _bets(settlement: Settlement, market: Market) -> tuple[int, int]:
    """Return the number of bets that the settlement decides, and the number that are divided or taken back already."""
    running = Bet.objects.filter(market=market, outcome__in=market.running_outcomes, taken_back_at=None)
    total = settlement.bet_count if settlement.bet_count is not None else running.count()
    if settlement.state == Settlement.State.UNDOING:
        taken_back = running.filter(pk__lte=settlement.last_bet_id).count() if settlement.last_bet_id else 0
        return total, taken_back
    return total, total if settlement.bets_divided else settlement.bets_done
