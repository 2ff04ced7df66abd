"""The Celery tasks: each reads the clock and the settings, calls one service, and hints at what comes next.

A message is a hint: the sweeps (beat runs them every few seconds) find in the database whatever a lost one was about,
and doubling one does no harm. No task runs for more than about five seconds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from celery import shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django.conf import settings
from django.utils import timezone

from payments import disputes, failpoints, wiring
from payments.payouts import float_balance
from payments.payouts.evidence import callbacks
from payments.payouts.sending import claims
from payments.settlement import pacing, settling, undo
from payments.settlement.certificates import issuing
from payments.settlement.pacing import giving_way

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

BATCH = 500


@shared_task(name="payments.settlement_tasks.settle_market")
def settle_market(market_id: int) -> None:
    """Settle one resolved market as far as a few seconds allow, then hint at sending its payouts."""
    progress = settling.settle(
        market_id=market_id,
        at=timezone.now(),
        policy=wiring.policy(),
        keep_going=giving_way(pacing.for_seconds(pacing.TASK_SECONDS)),
    )
    if progress.found and not progress.settled:
        wiring.hint(wiring.SETTLE_MARKET, market_id)
    elif progress.more_to_send:
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)
    else:
        for transaction_id in progress.to_send:
            wiring.hint(wiring.SEND_B2C_PAYOUT, transaction_id)


@shared_task(name="payments.settlement_tasks.undo_market")
def undo_market(market_id: int) -> None:
    """Go on with an undo as far as a few seconds allow, then hint at what is left."""
    at, keep_going = timezone.now(), giving_way(pacing.for_seconds(pacing.TASK_SECONDS))
    if not undo.carry_out(market_id=market_id, at=at, policy=wiring.policy(), keep_going=keep_going):
        wiring.hint(wiring.UNDO_MARKET, market_id)


@shared_task(name="payments.settlement_tasks.send_b2c_payout")
def send_b2c_payout(transaction_id: int) -> None:
    """Send one payout, if it is due and no other worker has it; otherwise the sweep will."""
    if wiring.dispatcher().send_one(transaction_id) and claims.any_due(at=timezone.now(), policy=wiring.policy()):
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)


@shared_task(name="payments.settlement_tasks.settle_resolved_markets")
def settle_resolved_markets() -> None:
    """Sweep: settle, or undo, the markets whose message was lost."""
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    for task, waiting in ((undo_market, undo.to_carry_out), (settle_market, settling.to_settle)):
        for market_id in waiting(limit=100):
            if not keep_going():
                return
            with _apart(f"Market {market_id}"):
                task(market_id)


@shared_task(name="payments.settlement_tasks.send_due_payouts")
def send_due_payouts() -> None:
    """Sweep: wake this process's dispatcher thread, which sends due payouts until none is left."""
    wiring.began(wiring.SEND_DUE_PAYOUTS)
    wiring.dispatcher_thread().wake()


@shared_task(name="payments.settlement_tasks.apply_stored_callbacks")
def apply_stored_callbacks() -> None:
    """Sweep: apply the callbacks that are stored and not applied."""
    wiring.began(wiring.APPLY_STORED_CALLBACKS)
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    last = 0
    while ids := callbacks.to_apply(after=last, limit=BATCH):
        last = ids[-1]
        one_by_one = ids
        with _apart(f"Callbacks {ids[0]} to {last} together"):
            one_by_one = callbacks.apply_paid(callback_ids=ids, at=timezone.now(), policy=wiring.policy())
        for callback_id in one_by_one:
            if not keep_going():
                wiring.nudge(wiring.APPLY_STORED_CALLBACKS)
                return
            with _apart(f"Callback {callback_id}"):
                callbacks.apply(callback_id=callback_id, at=timezone.now(), policy=wiring.policy())
            failpoints.hit("sweep between rows")
        if not keep_going():
            wiring.nudge(wiring.APPLY_STORED_CALLBACKS)
            return
    if last and claims.any_due(at=timezone.now(), policy=wiring.policy()):
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)


@shared_task(name="payments.settlement_tasks.ask_about_doubts")
def ask_about_doubts() -> None:
    """Sweep: ask M-Pesa about the requests that have gone without proof for too long."""
    wiring.dispatcher().ask_due(for_seconds=pacing.TASK_SECONDS)


@shared_task(name="payments.settlement_tasks.issue_certificates")
def issue_certificates() -> None:
    """Sweep: issue the certificates of what is settled, for a few seconds."""
    keep_going = giving_way(pacing.for_seconds(pacing.TASK_SECONDS))
    for settlement_id in issuing.to_issue(limit=100):
        if not keep_going():
            break
        with _apart(f"The certificate of settlement {settlement_id}"):
            issuing.issue(settlement_id=settlement_id, at=timezone.now(), keep_going=keep_going)


@shared_task(name="payments.settlement_tasks.close_remedied_disputes")
def close_remedied_disputes() -> None:
    """Sweep: tell the members whose dispute was upheld that what was promised has been done."""
    for dispute_id in disputes.remedied(limit=100):
        with _apart(f"Dispute {dispute_id}"):
            disputes.close_remedied(dispute_id=dispute_id, at=timezone.now())


@shared_task(name="payments.settlement_tasks.ask_for_the_float")
def ask_for_the_float() -> None:
    """Ask M-Pesa what our Utility account holds; previews show the answer with its age."""
    question = float_balance.ask(at=timezone.now(), addresses=wiring.addresses())
    float_balance.put(question, gateway=wiring.gateway(), addresses=wiring.addresses())


@worker_process_shutdown.connect
@worker_shutdown.connect
def hear_out(**_: object) -> None:
    """A worker that is asked to end still hears, and writes down, what its requests come to. Idempotent."""
    if wiring.dispatcher_thread.cache_info().currsize:
        wiring.dispatcher_thread().end(float(settings.MPESA_TIMEOUT_SECONDS) + 2)
        wiring.dispatcher_thread.cache_clear()
    if wiring.bulk_gateway.cache_info().currsize:
        wiring.bulk_gateway().close()
        wiring.bulk_gateway.cache_clear()


@contextmanager
def _apart(subject: str) -> Iterator[None]:
    """Keep one item's failure from stopping the sweep for all that come after it; the next sweep tries it again.

    The one place that catches everything: what it is, nobody foresaw, so it goes to the log whole and raises the alarm.
    """
    try:
        yield
    except Exception:
        alarm.exception("%s could not be dealt with; the sweep goes on and will try it again", subject)
