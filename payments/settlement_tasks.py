"""Celery tasks of payments: each calls one service with the clock and the settings.

A task may publish a message that starts the next task. A message is only a hint: if it is lost, a sweep finds the work
in the database. Beat runs the sweeps every few seconds. A repeated message does no harm. A task runs for about five
seconds at most.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from celery import shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django.conf import settings

from payments import dispute_holds, disputes, failpoints, wiring
from payments.payouts import breakers, float_balance
from payments.payouts.evidence import callbacks, orphans
from payments.payouts.operations import bulk_retries
from payments.payouts.restores import procedure
from payments.payouts.sending import claims
from payments.settlement import pacing, settling, task_results, undo
from payments.settlement.certificates import issuing
from payments.settlement.pacing import paced
from users import proposals

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

BATCH = 500


@shared_task(name="payments.settlement_tasks.settle_market")
def settle_market(market_id: int) -> None:
    """Settle one resolved market for a few seconds. Then publish a message to continue, or to send its payouts."""
    try:
        progress = settling.settle(
            market_id=market_id,
            at=wiring.now(),
            clock=wiring.now,
            policy=wiring.policy(),
            keep_going=paced(pacing.for_seconds(pacing.TASK_SECONDS)),
        )
    finally:
        _store_results()
    if progress.found and not progress.settled:
        wiring.hint(wiring.SETTLE_MARKET, market_id)
    elif progress.more_to_send:
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)
    else:
        for transaction_id in progress.to_send:
            wiring.hint(wiring.SEND_B2C_PAYOUT, transaction_id)


@shared_task(name="payments.settlement_tasks.undo_market")
def undo_market(market_id: int) -> None:
    """Continue an undo for a few seconds. If it is not complete, publish a message to continue."""
    at, keep_going = wiring.now(), paced(pacing.for_seconds(pacing.TASK_SECONDS))
    if not undo.carry_out(market_id=market_id, at=at, policy=wiring.policy(), keep_going=keep_going):
        wiring.hint(wiring.UNDO_MARKET, market_id)


@shared_task(name="payments.settlement_tasks.send_b2c_payout")
def send_b2c_payout(transaction_id: int) -> None:
    """Send one payout if it is due and no other worker has claimed it. Otherwise the sweep sends it later."""
    with _waiting_for_redis("Payouts"):
        if wiring.dispatcher().send_one(transaction_id) and claims.any_due(at=wiring.now(), policy=wiring.policy()):
            wiring.nudge(wiring.SEND_DUE_PAYOUTS)


@shared_task(name="payments.settlement_tasks.settle_resolved_markets")
def settle_resolved_markets() -> None:
    """Sweep: settle or undo the markets whose message was lost."""
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    for task, waiting in ((undo_market, undo.to_carry_out), (settle_market, settling.to_settle)):
        for market_id in waiting(limit=100):
            if not keep_going():
                return
            with _isolated(f"Market {market_id}"):
                task(market_id)
    _store_results()


@shared_task(name="payments.settlement_tasks.send_due_payouts")
def send_due_payouts() -> None:
    """Sweep: wake the dispatcher thread of this process, which sends due payouts until none is left."""
    wiring.sweep_began(wiring.SEND_DUE_PAYOUTS)
    wiring.dispatcher_thread().wake()


@shared_task(name="payments.settlement_tasks.apply_stored_callbacks")
def apply_stored_callbacks() -> None:
    """Sweep: apply the callbacks that are stored but not applied yet."""
    wiring.sweep_began(wiring.APPLY_STORED_CALLBACKS)
    keep_going = pacing.for_seconds(pacing.TASK_SECONDS)
    # First, so that the parked results of the orphans that find their payout are applied below.
    for orphan_id in orphans.to_place(limit=BATCH):
        with _isolated(f"Orphan {orphan_id}"):
            orphans.place(orphan_id=orphan_id, at=wiring.now(), policy=wiring.policy(), addresses=wiring.addresses())
    orphans.stop_for_unclaimed(at=wiring.now())
    last = 0
    while ids := callbacks.to_apply(after=last, limit=BATCH):
        last = ids[-1]
        one_by_one = ids
        with _isolated(f"Callbacks {ids[0]} to {last} together"):
            one_by_one = callbacks.apply_paid(callback_ids=ids, at=wiring.now(), policy=wiring.policy())
        for callback_id in one_by_one:
            if not keep_going():
                wiring.nudge(wiring.APPLY_STORED_CALLBACKS)
                return
            with _isolated(f"Callback {callback_id}"):
                callbacks.apply(callback_id=callback_id, at=wiring.now(), policy=wiring.policy())
            failpoints.hit("sweep between rows")
        if not keep_going():
            wiring.nudge(wiring.APPLY_STORED_CALLBACKS)
            return
    if last:
        breakers.judge(at=wiring.now(), policy=wiring.policy())
    if last and claims.any_due(at=wiring.now(), policy=wiring.policy()):
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)


@shared_task(name="payments.settlement_tasks.ask_about_doubts")
def ask_about_doubts() -> None:
    """Sweep: ask M-Pesa about requests whose result has been unknown for too long, or that a restore may have lost."""
    procedure.advance(
        at=wiring.now(),
        policy=wiring.policy(),
        addresses=wiring.addresses(),
        keep_going=pacing.for_seconds(pacing.TASK_SECONDS),
    )
    with _waiting_for_redis("Status queries"):
        wiring.dispatcher().ask_due(for_seconds=pacing.TASK_SECONDS)


@shared_task(name="payments.settlement_tasks.issue_certificates")
def issue_certificates() -> None:
    """Sweep: issue the certificates of settlements, for a few seconds."""
    keep_going = paced(pacing.for_seconds(pacing.TASK_SECONDS))
    for settlement_id in issuing.to_issue(limit=100):
        if not keep_going():
            break
        with _isolated(f"The certificate of settlement {settlement_id}"):
            issuing.issue(settlement_id=settlement_id, at=wiring.now(), keep_going=keep_going)


@shared_task(name="payments.settlement_tasks.close_remedied_disputes")
def close_remedied_disputes() -> None:
    """Sweep: record each finished remedy of an upheld dispute, and tell the member."""
    for dispute_id in disputes.ids_to_close(limit=100):
        with _isolated(f"Dispute {dispute_id}"):
            disputes.close_remedied(dispute_id=dispute_id, at=wiring.now())
    with _isolated("Deadlines of disputes"):
        dispute_holds.alarm_overdue(at=wiring.now(), limit=100)


@shared_task(name="payments.settlement_tasks.expire_proposals")
def expire_proposals() -> None:
    """Sweep: close the proposals that nobody has decided in time."""
    for proposal_id in proposals.to_expire(at=wiring.now(), limit=100):
        with _isolated(f"Proposal {proposal_id}"):
            proposals.expire(proposal_id=proposal_id, at=wiring.now(), acts=wiring.acts())


@shared_task(name="payments.settlement_tasks.continue_bulk_retries")
def continue_bulk_retries() -> None:
    """Sweep: continue the bulk retries of failed payouts, for a few seconds."""
    wiring.sweep_began(wiring.CONTINUE_BULK_RETRIES)
    keep_going = paced(pacing.for_seconds(pacing.TASK_SECONDS))
    retried = 0
    for bulk_id in bulk_retries.to_continue(limit=100):
        with _isolated(f"Bulk retry {bulk_id}"):
            retried += bulk_retries.carry_on(bulk_id=bulk_id, at=wiring.now(), keep_going=keep_going)
    wiring.after_bulk_retry(retried=retried, remaining=len(bulk_retries.to_continue(limit=1)))


@shared_task(name="payments.settlement_tasks.ask_for_the_float")
def ask_for_the_float() -> None:
    """Ask M-Pesa for the balance of our Utility account. Previews show the answer with its age."""
    asked_at = wiring.now()
    question = float_balance.ask(at=asked_at, addresses=wiring.addresses())
    if float_balance.post(question, gateway=wiring.gateway(), addresses=wiring.addresses()):
        breakers.reached(asked_at, at=wiring.now())


@worker_process_shutdown.connect
@worker_shutdown.connect
def finish_requests(**_: object) -> None:
    """Wait for the answers to requests under way and record them, before the worker process ends. Idempotent."""
    if wiring.dispatcher_thread.cache_info().currsize:
        wiring.dispatcher_thread().end(float(settings.MPESA_TIMEOUT_SECONDS) + 2)
        wiring.dispatcher_thread.cache_clear()
    if wiring.bulk_gateway.cache_info().currsize:
        wiring.bulk_gateway().close()
        wiring.bulk_gateway.cache_clear()


def _store_results() -> None:
    """Store the results of settlements that are not in Celery's result backend yet. Stop at the first failure."""
    if wiring.keeps_results():
        for result in task_results.unstored(at=wiring.now(), limit=BATCH):
            if not wiring.store_result(result):
                return
            task_results.mark_stored(result)


@contextmanager
def _isolated(subject: str) -> Iterator[None]:
    """Catch the failure of one item, so that the sweep continues with the other items. The next sweep tries it again.

    The failure is logged with its traceback and raises an alarm.
    """
    try:
        yield
    except Exception:
        alarm.exception("%s failed; the sweep continues and will try it again", subject)


@contextmanager
def _waiting_for_redis(subject: str) -> Iterator[None]:
    """End the task quietly if Redis fails. Without Redis no worker knows the shared pace, so nothing may leave.

    Nothing was sent, and the work stays due in the database. The next sweep tries again.
    """
    try:
        yield
    except redis.RedisError as error:
        log.warning("%s wait until Redis answers: %s", subject, error)
