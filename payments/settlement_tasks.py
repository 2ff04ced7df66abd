"""The Celery tasks: each reads the clock and the settings, calls one service, and hints at what comes next.

A message is a hint: the sweeps (beat runs them every few seconds) find in the database whatever a lost one was about,
and doubling one does no harm. No task runs for more than about five seconds.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import redis
from celery import Task, shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django.conf import settings
from django.utils import timezone
from kombu.exceptions import OperationalError

from payments import disputes, failpoints
from payments.mpesa import client
from payments.mpesa.bulk_client import BulkGateway
from payments.mpesa.callback_urls import Addresses
from payments.mpesa.rate_limit import Limiter
from payments.payouts import float_balance
from payments.payouts.evidence import callbacks
from payments.payouts.sending import claims
from payments.payouts.sending.dispatcher import QUESTIONS, Pump
from payments.payouts.sending.dispatcher_thread import Sender
from payments.policy import Policy
from payments.settlement import settling, undo
from payments.settlement.certificates import issuing
from payments.settlement.pacing import giving_way

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

FOR_SECONDS = 4.0
BATCH = 500
NUDGE_REST_SECONDS = 0.05
BROKER_REST_SECONDS = 5.0
_broker_gone_until = 0.0


@shared_task(name="payments.settlement_tasks.settle_market")
def settle_market(market_id: int) -> None:
    """Settle one resolved market as far as a few seconds allow, then hint at sending its payouts."""
    progress = settling.settle(
        market_id=market_id, at=timezone.now(), policy=policy(), keep_going=giving_way(for_seconds(FOR_SECONDS))
    )
    if progress.found and not progress.settled:
        hint(settle_market, market_id)
    elif progress.more_to_send:
        nudge(send_due_payouts)
    else:
        for transaction_id in progress.to_send:
            hint(send_b2c_payout, transaction_id)


@shared_task(name="payments.settlement_tasks.undo_market")
def undo_market(market_id: int) -> None:
    """Go on with an undo as far as a few seconds allow, then hint at what is left."""
    at, keep_going = timezone.now(), giving_way(for_seconds(FOR_SECONDS))
    if not undo.carry_out(market_id=market_id, at=at, policy=policy(), keep_going=keep_going):
        hint(undo_market, market_id)


@shared_task(name="payments.settlement_tasks.send_b2c_payout")
def send_b2c_payout(transaction_id: int) -> None:
    """Send one payout, if it is due and no other worker has it; otherwise the sweep will."""
    if pump().send_one(transaction_id) and claims.any_due(at=timezone.now(), policy=policy()):
        nudge(send_due_payouts)


@shared_task(name="payments.settlement_tasks.settle_resolved_markets")
def settle_resolved_markets() -> None:
    """Sweep: settle, or undo, the markets whose message was lost."""
    keep_going = for_seconds(FOR_SECONDS)
    for task, waiting in ((undo_market, undo.to_carry_out), (settle_market, settling.to_settle)):
        for market_id in waiting(limit=100):
            if not keep_going():
                return
            with _apart(f"Market {market_id}"):
                task(market_id)


@shared_task(name="payments.settlement_tasks.send_due_payouts")
def send_due_payouts() -> None:
    """Sweep: wake this process's sender, which sends what is due at the shared pace, for as long as something is."""
    began(send_due_payouts)
    sender().wake()


@shared_task(name="payments.settlement_tasks.apply_stored_callbacks")
def apply_stored_callbacks() -> None:
    """Sweep: apply the callbacks that are stored and not applied."""
    began(apply_stored_callbacks)
    keep_going = for_seconds(FOR_SECONDS)
    last = 0
    while ids := callbacks.to_apply(after=last, limit=BATCH):
        last = ids[-1]
        one_by_one = ids
        with _apart(f"Callbacks {ids[0]} to {last} together"):
            one_by_one = callbacks.apply_paid(callback_ids=ids, at=timezone.now(), policy=policy())
        for callback_id in one_by_one:
            if not keep_going():
                nudge(apply_stored_callbacks)
                return
            with _apart(f"Callback {callback_id}"):
                callbacks.apply(callback_id=callback_id, at=timezone.now(), policy=policy())
            failpoints.reach("sweep between rows")
        if not keep_going():
            nudge(apply_stored_callbacks)
            return
    if last and claims.any_due(at=timezone.now(), policy=policy()):
        nudge(send_due_payouts)


@shared_task(name="payments.settlement_tasks.ask_about_doubts")
def ask_about_doubts() -> None:
    """Sweep: ask M-Pesa about the requests that have gone without proof for too long."""
    pump().ask_due(for_seconds=FOR_SECONDS)


@shared_task(name="payments.settlement_tasks.issue_certificates")
def issue_certificates() -> None:
    """Sweep: issue the certificates of what is settled, for a few seconds."""
    keep_going = giving_way(for_seconds(FOR_SECONDS))
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
    question = float_balance.ask(at=timezone.now(), addresses=addresses())
    float_balance.put(question, gateway=gateway(), addresses=addresses())


# --- hints -----------------------------------------------------------------------------------------------------------


def hint(task: Task, *arguments: object, task_id: str | None = None) -> None:
    """Publish a message if the broker can be reached; if not, a sweep does the same within half a minute.

    A broker that did not answer is left alone for a few seconds, so that many hints do not each wait for it.
    """
    global _broker_gone_until
    if time.monotonic() < _broker_gone_until:
        return
    try:
        task.apply_async(arguments, task_id=task_id)
    except (OperationalError, redis.RedisError) as error:
        _broker_gone_until = time.monotonic() + BROKER_REST_SECONDS
        log.warning("Broker not reached, the sweep will run %s: %s", task.name, error)


def nudge(task: Task) -> None:
    """Hint at a sweep that takes no argument, unless one hinted at has not begun yet: the queue stays short."""
    try:
        if broker().set(f"kasoko:nudged:{task.name}", 1, nx=True, ex=30):
            hint(task)
    except redis.RedisError as error:
        log.warning("Redis not reached, the sweep will run %s: %s", task.name, error)


class _Echo:
    """Nudges for events that come by the thousand: at once after a rest, and one more when the next rest is over.

    So nobody waits for more than a rest, what came last is never missed, and Redis hears of it twenty times a second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._timer: threading.Timer | None = None

    def nudge(self, task: Task) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                if self._timer is None:
                    self._timer = threading.Timer(self._until - now, self._once_more, [task])
                    self._timer.daemon = True
                    self._timer.start()
                return
            self._until = now + NUDGE_REST_SECONDS
        nudge(task)

    def _once_more(self, task: Task) -> None:
        with self._lock:
            self._timer, self._until = None, time.monotonic() + NUDGE_REST_SECONDS
        nudge(task)


_callbacks_came = _Echo()


def callback_came() -> None:
    """A callback is stored: have it applied."""
    _callbacks_came.nudge(apply_stored_callbacks)


def began(task: Task) -> None:
    """From here on a nudge is a new one: whatever was committed before it, this run may have missed."""
    broker().delete(f"kasoko:nudged:{task.name}")


# --- what the edges build from the settings --------------------------------------------------------------------------


@cache
def policy() -> Policy:
    return Policy.from_settings(settings)


@cache
def addresses() -> Addresses:
    return Addresses(callback_url=settings.MPESA_CALLBACK_URL, key=settings.SECRET_KEY)


@cache
def broker() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=2)


@cache
def gateway() -> client.Gateway:
    credentials = client.Credentials(
        base_url=settings.MPESA_BASE_URL,
        consumer_key=settings.MPESA_CONSUMER_KEY,
        consumer_secret=settings.MPESA_CONSUMER_SECRET,
        initiator_name=settings.MPESA_INITIATOR_NAME,
        security_credential=settings.MPESA_SECURITY_CREDENTIAL_ENCRYPTED,
        shortcode=settings.MPESA_PAYBILL,
        passkey=settings.MPESA_PASSKEY,
        transaction_command=settings.MPESA_COMMAND_ID,
    )
    return client.Gateway(
        credentials,
        tokens=client.SharedTokens(broker(), name=credentials.token_name),
        timeout_seconds=float(settings.MPESA_TIMEOUT_SECONDS),
        pool_size=QUESTIONS,
    )


@cache
def bulk_gateway() -> BulkGateway:
    return BulkGateway(gateway(), in_flight=settings.PAYOUT_IN_FLIGHT)


@cache
def pump() -> Pump:
    return Pump(
        gateway=gateway(),
        calls=bulk_gateway(),
        limiter=Limiter(connection=broker(), name="b2c", per_second=settings.PAYOUT_TPS),
        query_limiter=Limiter(connection=broker(), name="status", per_second=settings.PAYOUT_TPS),
        addresses=addresses(),
        policy=policy(),
        clock=timezone.now,
        in_flight=settings.PAYOUT_IN_FLIGHT,
    )


@cache
def sender() -> Sender:
    return Sender(pump)


@worker_process_shutdown.connect
@worker_shutdown.connect
def hear_out(**_: object) -> None:
    """A worker that is asked to end still hears, and writes down, what its requests come to. Idempotent."""
    if sender.cache_info().currsize:
        sender().end(float(settings.MPESA_TIMEOUT_SECONDS) + 2)
        sender.cache_clear()
    if bulk_gateway.cache_info().currsize:
        bulk_gateway().close()
        bulk_gateway.cache_clear()


@contextmanager
def _apart(subject: str) -> Iterator[None]:
    """Keep one item's failure from stopping the sweep for all that come after it; the next sweep tries it again.

    The one place that catches everything: what it is, nobody foresaw, so it goes to the log whole and raises the alarm.
    """
    try:
        yield
    except Exception:
        alarm.exception("%s could not be dealt with; the sweep goes on and will try it again", subject)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """What says whether so many seconds have not passed yet."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until
