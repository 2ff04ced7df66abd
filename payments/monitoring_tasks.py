"""The Celery tasks behind the console's home page: beat sends them, none is urgent, doubling one does no harm."""

from datetime import datetime
from decimal import Decimal
from typing import cast

from celery import Task, shared_task
from django.utils import timezone

from markets import parimutuel
from markets.models import Market
from payments import wiring
from payments.monitoring import overview
from payments.settlement import pacing, preview_cache


@shared_task(name="payments.overview_tasks.heartbeat", bind=True)
def heartbeat(self: Task) -> None:
    """Beat lives, for it sent this, and so does the worker that runs it."""
    overview.beat(worker=self.request.hostname or "here", at=timezone.now())


@shared_task(name="payments.overview_tasks.measure")
def measure() -> None:
    """Take the figures of the home page."""
    overview.measure(at=timezone.now())


@shared_task(name="payments.overview_tasks.check_books")
def check_books() -> None:
    """Check the invariants that are due, for a few seconds."""
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    overview.check_books(at=timezone.now(), keep_going=keep_going)


@shared_task(name="payments.overview_tasks.sum_up")
def sum_up() -> None:
    """Add what was bet and booked since to the sums that pools and trial balances are read from."""
    overview.sum_up(keep_going=pacing.for_seconds(pacing.TASK_SECONDS))


@shared_task(name="payments.overview_tasks.look")
def look(market_id: int, rule: str, weights: dict[str, str], ended: str) -> None:
    """Compute what a decision would do, for a page that waits for it; `ended` is a moment of ISO 8601, or empty."""
    market = Market.objects.get(pk=market_id)
    if ended:
        market.effective_close_at = datetime.fromisoformat(ended)
    decision = preview_cache.Decision(
        cast(parimutuel.Rule, rule), {outcome: Decimal(weight) for outcome, weight in weights.items()}
    )
    preview_cache.compute(market, decision, at=timezone.now(), policy=wiring.policy())
