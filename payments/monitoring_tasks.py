"""Celery tasks behind the console's home page.

Beat sends these tasks. No task is urgent, and running a task twice does no harm.
"""

from datetime import datetime
from decimal import Decimal
from typing import cast

from celery import Task, shared_task
from django.conf import settings

from markets import parimutuel
from markets.models import Market
from payments import wiring
from payments.monitoring import overview
from payments.settlement import pacing, preview_cache
from payments.settlement.decision import Decision
from users import audit_heads


@shared_task(name="payments.overview_tasks.heartbeat", bind=True)
def heartbeat(self: Task) -> None:
    """Record that beat, this worker and the database are alive. Notice if the database has lost commits."""
    wiring.restore_watch()()
    overview.beat(worker=self.request.hostname or "unknown", at=wiring.now())


@shared_task(name="payments.overview_tasks.measure")
def measure() -> None:
    """Compute the figures of the home page."""
    overview.measure(at=wiring.now())


@shared_task(name="payments.overview_tasks.check_books")
def check_books() -> None:
    """Check the invariants that are due. After a few seconds start no further check."""
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    overview.check_books(at=wiring.now(), keep_going=keep_going)


@shared_task(name="payments.overview_tasks.keep_audit_head")
def keep_audit_head() -> None:
    """Write the head of the audit trail to a file that the database cannot reach."""
    audit_heads.keep(settings.AUDIT_HEADS_FILE, at=wiring.now())


@shared_task(name="payments.overview_tasks.sum_up")
def sum_up() -> None:
    """Add new bets to the pools and new transfers to the trial balance. Delete day totals that nothing reads."""
    overview.sum_up(keep_going=pacing.for_seconds(pacing.TASK_SECONDS))


@shared_task(name="payments.overview_tasks.look")
def compute_preview(market_id: int, rule: str, weights: dict[str, str], ended: str) -> None:
    """Compute the preview of a decision for a page that waits for it. `ended` is an ISO 8601 time, or empty."""
    market = Market.objects.get(pk=market_id)
    decision = Decision(
        rule=cast(parimutuel.Rule, rule),
        weights={outcome: Decimal(weight) for outcome, weight in weights.items()},
        effective_close_at=datetime.fromisoformat(ended) if ended else None,
    )
    preview_cache.compute(market, decision, at=wiring.now(), policy=wiring.policy())
