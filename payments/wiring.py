"""Wiring: objects built from settings, and messages that wake the workers."""

import logging
import threading
import time
from datetime import datetime
from functools import cache

import redis
from celery import current_app, states
from celery.backends.base import DisabledBackend
from celery.exceptions import BackendError
from django.conf import settings
from kombu.exceptions import OperationalError

from markets import terms_proposals
from payments import disputes
from payments.ledger import debt_decisions
from payments.mpesa import access_tokens, client
from payments.mpesa.bulk_client import BulkGateway
from payments.mpesa.callback_urls import Addresses
from payments.mpesa.credentials import Credentials
from payments.mpesa.rate_limit import Limiter
from payments.mpesa.sealing import Seal
from payments.payouts.operations import actions, starting
from payments.payouts.restores import detection
from payments.payouts.restores.copies import Copies
from payments.payouts.sending.dispatcher import QUERIES_AT_ONCE, Dispatcher
from payments.payouts.sending.dispatcher_thread import DispatcherThread
from payments.policy import Policy
from payments.settlement import approvals, failures, market_sending
from payments.settlement.resolutions import Resolved, Withdrawn
from payments.settlement.task_results import TaskResult
from payments.settlement.undo import Undoing
from users import accounts, figure_changes
from users.clock import DatabaseClock
from users.proposals import Acts

log = logging.getLogger(__name__)
# Tasks are published by name, because the modules that define the tasks import this module.
SETTLE_MARKET = "payments.settlement_tasks.settle_market"
UNDO_MARKET = "payments.settlement_tasks.undo_market"
SEND_B2C_PAYOUT = "payments.settlement_tasks.send_b2c_payout"
SEND_DUE_PAYOUTS = "payments.settlement_tasks.send_due_payouts"
APPLY_STORED_CALLBACKS = "payments.settlement_tasks.apply_stored_callbacks"
CONTINUE_BULK_RETRIES = "payments.settlement_tasks.continue_bulk_retries"
ASK_ABOUT_DOUBTS = "payments.settlement_tasks.ask_about_doubts"
COMPUTE_PREVIEW = "payments.overview_tasks.look"

NUDGE_INTERVAL_SECONDS = 0.05
BROKER_RETRY_SECONDS = 5.0
_broker_retry_at = 0.0
_nudge_retry_at = 0.0


# --- after a decision or a retry ------------------------------------------------------------------------------------


def after_approval(done: object) -> None:
    """Wake the workers that go on with an approved act. `done` is what the act's procedure returned."""
    if isinstance(done, Resolved | Undoing):
        after_decision(done)
    elif isinstance(done, starting.Started | starting.Resumed):
        nudge(SEND_DUE_PAYOUTS)


def after_decision(decided: Resolved | Undoing | Withdrawn) -> None:
    """Wake the worker that carries out a decision on a market. A withdrawal needs it only if payouts must be undone."""
    if isinstance(decided, Resolved):
        hint(SETTLE_MARKET, decided.market_id, task_id=decided.public_id)
    elif isinstance(decided, Undoing) or decided.undoing:
        hint(UNDO_MARKET, decided.market_id)


def after_retry(*transaction_ids: int) -> None:
    """Wake the workers that send these payouts, or all due payouts if no id is given.

    The task that asks M-Pesa about open requests comes first, because M-Pesa may already have accepted a request.
    """
    hint(ASK_ABOUT_DOUBTS)
    for transaction_id in transaction_ids:
        hint(SEND_B2C_PAYOUT, transaction_id)
    if not transaction_ids:
        nudge(SEND_DUE_PAYOUTS)


def after_bulk_retry(*, retried: int, remaining: int) -> None:
    """Wake the workers after the first part of a bulk retry: one sends, and one retries the rest."""
    if retried:
        after_retry()
    if remaining:
        nudge(CONTINUE_BULK_RETRIES)


# --- hints -----------------------------------------------------------------------------------------------------------


def hint(task_name: str, *arguments: object, task_id: str | None = None) -> None:
    """Publish a task message if the broker answers. If it does not, a sweep does the work within half a minute.

    After a failure no message is published for BROKER_RETRY_SECONDS. Otherwise each of many hints would wait for a
    timeout.
    """
    global _broker_retry_at
    if time.monotonic() < _broker_retry_at:
        return
    try:
        current_app.send_task(task_name, arguments, task_id=task_id, ignore_result=True)
    except (OperationalError, redis.RedisError) as error:
        _broker_retry_at = time.monotonic() + BROKER_RETRY_SECONDS
        log.warning("Broker does not answer; the sweep will run %s: %s", task_name, error)


def nudge(task_name: str) -> None:
    """Publish a sweep, unless an earlier message for the same sweep is still waiting. So the queue stays short.

    After a failure no sweep is nudged for BROKER_RETRY_SECONDS, as in `hint`.
    """
    global _nudge_retry_at
    if time.monotonic() < _nudge_retry_at:
        return
    try:
        if broker().set(f"kasoko:nudged:{task_name}", 1, nx=True, ex=30):
            hint(task_name)
    except redis.RedisError as error:
        _nudge_retry_at = time.monotonic() + BROKER_RETRY_SECONDS
        log.warning("Redis does not answer; the sweep will run %s: %s", task_name, error)


class _ThrottledNudges:
    """A throttle for frequent nudges: at most one per NUDGE_INTERVAL_SECONDS, and always one after the last event.

    A nudge is delayed by one interval at most. Redis gets at most twenty nudges a second from this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._timer: threading.Timer | None = None

    def nudge(self, task_name: str) -> None:
        """Nudge the task now. If a nudge was already sent in this interval, nudge once at the end of the interval."""
        with self._lock:
            monotonic = time.monotonic()
            if monotonic < self._next_at:
                if self._timer is None:
                    self._timer = threading.Timer(self._next_at - monotonic, self._nudge_after_interval, [task_name])
                    self._timer.daemon = True
                    self._timer.start()
                return
            self._next_at = monotonic + NUDGE_INTERVAL_SECONDS
        nudge(task_name)

    def _nudge_after_interval(self, task_name: str) -> None:
        with self._lock:
            self._timer, self._next_at = None, time.monotonic() + NUDGE_INTERVAL_SECONDS
        nudge(task_name)


_callback_nudges = _ThrottledNudges()


def after_callback() -> None:
    """Wake the worker that applies stored callbacks."""
    _callback_nudges.nudge(APPLY_STORED_CALLBACKS)


def sweep_began(task_name: str) -> None:
    """Allow the next nudge to publish a message, because this sweep may miss rows committed from now on.

    Without Redis the sweep goes on: it needs only the database. The mark of an earlier nudge expires by itself.
    """
    try:
        broker().delete(f"kasoko:nudged:{task_name}")
    except redis.RedisError as error:
        log.warning("Redis does not answer; %s goes on: %s", task_name, error)


def store_result(result: TaskResult) -> bool:
    """Store a settlement's result for `AsyncResult(settlement_task_id)`, and return True.

    Returns False if the result backend does not answer. A later sweep tries again. Celery never replaces a stored
    SUCCESS.
    """
    try:
        if result.failure:
            error = failures.BooksDisagree(result.failure)
            current_app.backend.store_result(str(result.task_id), error, states.FAILURE)
        else:
            words = {"market_id": result.market_id, "settlement": result.number, "state": "SETTLED"}
            current_app.backend.store_result(str(result.task_id), words, states.SUCCESS)
    except (redis.RedisError, OperationalError, BackendError) as error:
        log.warning("Result of settlement %s is not stored yet: %s", result.settlement_id, error)
        return False
    return True


def keeps_results() -> bool:
    """Return True if a result backend is configured."""
    return not isinstance(current_app.backend, DisabledBackend)


# --- the clock --------------------------------------------------------------------------------------------------------


_clock = DatabaseClock()


def now() -> datetime:
    """Return the time of the database's clock, which all hosts share. Usually without a query (users/clock.py)."""
    return _clock.now()


# --- objects built from settings ------------------------------------------------------------------------------------


@cache
def policy() -> Policy:
    """Return the policy of payments."""
    return Policy.from_settings(settings)


@cache
def acts() -> Acts:
    """Return the procedures of all acts that a second person approves, by the act's name in users.authority."""
    return {
        **approvals.procedures(policy()),
        **terms_proposals.acts(policy().terms_notice),
        **figure_changes.procedures(),
        **actions.procedures(),
        **debt_decisions.procedures(),
        **starting.procedures(),
        **market_sending.procedures(),
        **disputes.procedures(),
        **accounts.procedures(hold=policy().phone_change_hold),
    }


@cache
def addresses() -> Addresses:
    """Return the builder of callback URLs."""
    return Addresses(callback_url=settings.MPESA_CALLBACK_URL, key=settings.CALLBACK_TOKEN_KEY)


@cache
def broker() -> redis.Redis:
    """Return the connection to Redis."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=2)


@cache
def message_broker() -> redis.Redis:
    """Return a connection to the Redis that carries Celery's messages."""
    return redis.Redis.from_url(settings.CELERY_BROKER_URL, socket_connect_timeout=2, socket_timeout=2)


@cache
def credentials() -> Credentials:
    """Return our credentials at M-Pesa."""
    return Credentials(
        base_url=settings.MPESA_BASE_URL,
        consumer_key=settings.MPESA_CONSUMER_KEY,
        consumer_secret=settings.MPESA_CONSUMER_SECRET,
        initiator_name=settings.MPESA_INITIATOR_NAME,
        security_credential=settings.MPESA_SECURITY_CREDENTIAL_ENCRYPTED,
        shortcode=settings.MPESA_PAYBILL,
        passkey=settings.MPESA_PASSKEY,
        transaction_command=settings.MPESA_COMMAND_ID,
    )


@cache
def tokens() -> access_tokens.SharedTokens:
    """Return the access token that all workers share."""
    seal = Seal(settings.SECRET_KEY, purpose="daraja access token")
    return access_tokens.SharedTokens(broker(), name=credentials().token_name, seal=seal)


@cache
def gateway() -> client.Gateway:
    """Return the client of M-Pesa's API."""
    return client.Gateway(
        credentials(),
        tokens=tokens(),
        timeout_seconds=float(settings.MPESA_TIMEOUT_SECONDS),
        pool_size=QUERIES_AT_ONCE,
    )


@cache
def bulk_gateway() -> BulkGateway:
    """Return the client that sends many payouts at once."""
    return BulkGateway(gateway(), in_flight=settings.PAYOUT_IN_FLIGHT)


@cache
def restore_watch() -> detection.Watch:
    """Return the watch that notices a database that has lost commits. It wakes the worker that lists the payouts."""
    copies = Copies(connection=broker(), path=settings.STATE_DIR / "database-heartbeat")
    return detection.Watch(copies=copies, policy=policy(), clock=now, noticed=lambda _: hint(ASK_ABOUT_DOUBTS))


@cache
def dispatcher() -> Dispatcher:
    """Return the dispatcher of due payouts."""
    return Dispatcher(
        gateway=gateway(),
        bulk_gateway=bulk_gateway(),
        limiter=Limiter(connection=broker(), name="b2c", per_second=settings.PAYOUT_TPS),
        query_limiter=Limiter(connection=broker(), name="status", per_second=settings.PAYOUT_TPS),
        addresses=addresses(),
        policy=policy(),
        clock=now,
        before_claim=restore_watch(),
        in_flight=settings.PAYOUT_IN_FLIGHT,
        age_of_news=tokens().age_of_news,
    )


@cache
def dispatcher_thread() -> DispatcherThread:
    """Return this process's thread that runs the dispatcher."""
    return DispatcherThread(dispatcher)
