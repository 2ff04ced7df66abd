"""The Celery tasks behind the console's home page: beat sends them, none is urgent, doubling one does no harm."""

from celery import Task, shared_task
from django.utils import timezone

from payments import overview, settlement_tasks


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
    keep_going = settlement_tasks.for_seconds(settlement_tasks.FOR_SECONDS)
    overview.check_books(at=timezone.now(), keep_going=keep_going)


@shared_task(name="payments.overview_tasks.sum_up")
def sum_up() -> None:
    """Add what was bet and booked since to the sums that pools and trial balances are read from."""
    overview.sum_up(keep_going=settlement_tasks.for_seconds(settlement_tasks.FOR_SECONDS))
