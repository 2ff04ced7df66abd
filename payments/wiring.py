"""What edges build from settings, and how they wake the workers."""

import logging
import threading
import time
from functools import cache

import redis
from celery import current_app
from django.conf import settings
from django.utils import timezone
from kombu.exceptions import OperationalError

from payments.mpesa import client
from payments.mpesa.bulk_client import BulkGateway
from payments.mpesa.callback_urls import Addresses
from payments.mpesa.rate_limit import Limiter
from payments.payouts.sending.dispatcher import QUESTIONS, Dispatcher
from payments.payouts.sending.dispatcher_thread import DispatcherThread
from payments.policy import Policy
from payments.settlement.resolutions import Resolved, Withdrawn
from payments.settlement.undo import Undoing

log = logging.getLogger(__name__)
# Tasks are published by name: this module is below the modules that define them.
SETTLE_MARKET = "payments.settlement_tasks.settle_market"
UNDO_MARKET = "payments.settlement_tasks.undo_market"
SEND_B2C_PAYOUT = "payments.settlement_tasks.send_b2c_payout"
SEND_DUE_PAYOUTS = "payments.settlement_tasks.send_due_payouts"
APPLY_STORED_CALLBACKS = "payments.settlement_tasks.apply_stored_callbacks"
ASK_ABOUT_DOUBTS = "payments.settlement_tasks.ask_about_doubts"
COMPUTE_PREVIEW = "payments.overview_tasks.look"

NUDGE_REST_SECONDS = 0.05
BROKER_REST_SECONDS = 5.0
_broker_gone_until = 0.0


# --- after an act ----------------------------------------------------------------------------------------------------


def after_decision(decided: Resolved | Undoing | Withdrawn) -> None:
    """Wake the worker that carries out a decision on a market. A resolution without payouts to undo needs none."""
    if isinstance(decided, Resolved):
        hint(SETTLE_MARKET, decided.market_id, task_id=decided.public_id)
    elif isinstance(decided, Undoing) or decided.undoing:
        hint(UNDO_MARKET, decided.market_id)


def after_retry(*transaction_ids: int) -> None:
    """Wake the worker that sends payouts again: those named one by one, or all due payouts where none is named.

    M-Pesa is asked first about requests that it had taken.
    """
    hint(ASK_ABOUT_DOUBTS)
    for transaction_id in transaction_ids:
        hint(SEND_B2C_PAYOUT, transaction_id)
    if not transaction_ids:
        nudge(SEND_DUE_PAYOUTS)


# --- hints -----------------------------------------------------------------------------------------------------------


def hint(task_name: str, *arguments: object, task_id: str | None = None) -> None:
    """Publish a message if the broker can be reached; if not, a sweep does the same within half a minute.

    A broker that did not answer is left alone for a few seconds, so that many hints do not each wait for it.
    """
    global _broker_gone_until
    if time.monotonic() < _broker_gone_until:
        return
    try:
        current_app.send_task(task_name, arguments, task_id=task_id, ignore_result=True)
    except (OperationalError, redis.RedisError) as error:
        _broker_gone_until = time.monotonic() + BROKER_REST_SECONDS
        log.warning("Broker not reached, the sweep will run %s: %s", task_name, error)


def nudge(task_name: str) -> None:
    """Hint at a sweep that takes no argument, unless one hinted at has not begun yet: the queue stays short."""
    try:
        if broker().set(f"kasoko:nudged:{task_name}", 1, nx=True, ex=30):
            hint(task_name)
    except redis.RedisError as error:
        log.warning("Redis not reached, the sweep will run %s: %s", task_name, error)


class _Echo:
    """Nudges for events that come by the thousand: at once after a rest, and one more when the next rest is over.

    So nobody waits for more than a rest, what came last is never missed, and Redis hears of it twenty times a second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._timer: threading.Timer | None = None

    def nudge(self, task_name: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                if self._timer is None:
                    self._timer = threading.Timer(self._until - now, self._once_more, [task_name])
                    self._timer.daemon = True
                    self._timer.start()
                return
            self._until = now + NUDGE_REST_SECONDS
        nudge(task_name)

    def _once_more(self, task_name: str) -> None:
        with self._lock:
            self._timer, self._until = None, time.monotonic() + NUDGE_REST_SECONDS
        nudge(task_name)


_callbacks_came = _Echo()


def callback_came() -> None:
    """A callback is stored: have it applied."""
    _callbacks_came.nudge(APPLY_STORED_CALLBACKS)


def began(task_name: str) -> None:
    """From here on a nudge is a new one: whatever was committed before it, this run may have missed."""
    broker().delete(f"kasoko:nudged:{task_name}")


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
def dispatcher() -> Dispatcher:
    return Dispatcher(
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
def dispatcher_thread() -> DispatcherThread:
    return DispatcherThread(dispatcher)
