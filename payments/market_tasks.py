"""Celery tasks of markets: the clock that closes them, and notices about changed terms.

Beat sends these tasks every few seconds. Running a task twice does no harm.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from celery import shared_task

from markets import lifecycle, reminders, terms_notices
from payments import wiring
from payments.settlement import fallback, pacing

alarm = logging.getLogger("kasoko.alarm")


@shared_task(name="payments.market_tasks.tell_members_of_new_terms")
def tell_members_of_new_terms() -> None:
    """Sweep: write the notices about changed terms, for a few seconds."""
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    for terms_id in terms_notices.to_tell(limit=100):
        if not keep_going():
            return
        with _isolated(f"The notice about terms {terms_id}"):
            terms_notices.tell(terms_id=terms_id, at=wiring.now(), keep_going=keep_going)


@shared_task(name="payments.market_tasks.close_ended_markets")
def close_ended_markets() -> None:
    """Sweep: close the markets whose end has come."""
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    for market_id in lifecycle.ended(at=wiring.now(), limit=500):
        if not keep_going():
            return
        with _isolated(f"Market {market_id}"):
            lifecycle.close_ended(market_id=market_id, at=wiring.now())


@shared_task(name="payments.market_tasks.remind_staff_of_markets")
def remind_staff_of_markets() -> None:
    """Remind staff of markets that close soon, and of closed markets that wait for their outcome."""
    policy, keep_going = wiring.policy(), pacing.for_seconds(pacing.TASK_SECONDS)
    times = {"before": policy.close_reminder, "every": policy.outcome_reminder}
    for market_id in reminders.due(at=wiring.now(), limit=100, **times):
        if not keep_going():
            return
        with _isolated(f"The reminder of market {market_id}"):
            reminders.remind(market_id=market_id, at=wiring.now(), **times)


@shared_task(name="payments.market_tasks.propose_to_void_markets")
def propose_to_void_markets() -> None:
    """Propose to void the markets that nobody has resolved for too long. Two people decide each proposal."""
    policy, keep_going = wiring.policy(), pacing.for_seconds(pacing.TASK_SECONDS)
    if policy.void_proposal is None:
        return
    for market_id in fallback.due(at=wiring.now(), after=policy.void_proposal, limit=100):
        if not keep_going():
            return
        with _isolated(f"The proposal to void market {market_id}"):
            fallback.propose_void(market_id=market_id, at=wiring.now(), after=policy.void_proposal, policy=policy)


@contextmanager
def _isolated(subject: str) -> Iterator[None]:
    """Catch the failure of one item, so that the sweep continues. The failure is logged and raises an alarm."""
    try:
        yield
    except Exception:
        alarm.exception("%s failed; the sweep continues and will try it again", subject)
