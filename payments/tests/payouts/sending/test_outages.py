"""Outages of M-Pesa in the middle of an open release: the real dispatcher, the simulator and our callback view."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.db import OperationalError
from django.utils import timezone

from payments import wiring
from payments.models import Attempt, Breaker, Settlement, Transaction
from payments.mpesa import access_tokens, client
from payments.mpesa.bulk_client import BulkGateway
from payments.mpesa.credentials import Credentials
from payments.mpesa.rate_limit import Limiter
from payments.mpesa.simulator.server import Options, Simulator
from payments.mpesa.simulator.terms import Terms
from payments.payouts import breakers
from payments.payouts.evidence import callbacks
from payments.payouts.sending.dispatcher import Dispatcher
from testing import builders
from testing.gateways import SEAL

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.long]

PACE, WINNERS, BEFORE = 30, 200, 40
QUERY_AFTER = 2
LATENCY = 0.05
TIMEOUT_SECONDS = 4.0
DEADLINE_SECONDS = 240.0
# A status query that is not answered is asked again long after the outage of a test.
POLICY = builders.policy(
    query_after=timedelta(seconds=QUERY_AFTER),
    query_gap=timedelta(seconds=10),
    retry_after=timedelta(seconds=1),
)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition is true. Raises: AssertionError, after a generous deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"No {what} within {DEADLINE_SECONDS:.0f} s."
        time.sleep(0.02)


def probes() -> int:
    """Return the largest number of probes of an open breaker."""
    return max(Breaker.objects.filter(opened_at__isnull=False).values_list("probes", flat=True), default=0)


def opened() -> set[str]:
    return set(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True))


@dataclass
class Release:
    """An open release that a dispatcher and a worker carry on in two threads."""

    simulator: Simulator
    payouts: list[int]

    def requests(self) -> int:
        """Return the number of payment requests that the simulator has booked."""
        return sum(self.simulator.book.requests_of(ocid) for ocid in self.ids())

    def ids(self) -> list[str]:
        return list(Attempt.objects.values_list("originator_conversation_id", flat=True))

    def paid_once(self) -> None:
        """Assert that each winner was paid once, in our books and in the simulator's."""
        statuses = Transaction.objects.filter(pk__in=self.payouts)
        wait_until(lambda: not statuses.exclude(status="COMPLETED").exists(), "end of the release")
        times = Counter(payment.phone for payment in self.simulator.book.payments.values() if payment.state == "paid")
        phones = statuses.values_list("phone_number", flat=True)
        assert times == dict.fromkeys(phones, 1)
        assert self.simulator.book.summary()["double_paid"] == []


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(Options(latency=LATENCY, terms=Terms(callback_delay=0.1))) as simulator:
        yield simulator


@pytest.fixture
def dispatcher(simulator: Simulator, live_server: Any, settings: Any) -> Iterator[Dispatcher]:
    settings.MPESA_CALLBACK_URL = f"{live_server.url}/api/payments/b2c-callback/"
    wiring.addresses.cache_clear()
    credentials = Credentials(
        base_url=simulator.base_url,
        consumer_key="key",
        consumer_secret="secret",
        initiator_name="testapi",
        security_credential="credential==",
        shortcode="600000",
    )
    with redis.Redis.from_url(django_settings.REDIS_URL) as connection:
        tokens = access_tokens.SharedTokens(connection, name=credentials.token_name, seal=SEAL)
        gateway = client.Gateway(credentials, tokens=tokens, timeout_seconds=TIMEOUT_SECONDS, pool_size=16)
        bulk = BulkGateway(gateway, in_flight=400)
        yield Dispatcher(
            gateway=gateway,
            bulk_gateway=bulk,
            limiter=Limiter(connection=connection, name="b2c", per_second=Decimal(PACE)),
            query_limiter=Limiter(connection=connection, name="status", per_second=Decimal(PACE)),
            addresses=wiring.addresses(),
            policy=POLICY,
            clock=timezone.now,
            before_claim=lambda: None,
            in_flight=400,
        )
        bulk.close()
        gateway.close()


def apply_stored() -> None:
    """Apply the stored callbacks, as a worker does."""
    waiting = callbacks.to_apply(after=0, limit=200)
    for pk in callbacks.apply_paid(callback_ids=waiting, at=timezone.now(), policy=POLICY):
        callbacks.apply(callback_id=pk, at=timezone.now(), policy=POLICY)


@contextmanager
def release(dispatcher: Dispatcher, simulator: Simulator) -> Iterator[Release]:
    """Open a release, and carry it on until the block ends."""
    members = [builders.member() for _ in range(WINNERS)]
    market = builders.settled_market([(member, "Yes", 100) for member in members], fee_pct=0)
    Settlement.objects.filter(market=market).update(release_open=True)
    payouts = list(Transaction.objects.filter(settlement__market=market).values_list("pk", flat=True))
    ended = threading.Event()
    asking = replace(dispatcher)

    def repeat(act: Callable[[], Any]) -> None:
        while not ended.is_set():
            with suppress(OperationalError):
                act()
            ended.wait(0.05)

    threads = [
        builders.begin(lambda: repeat(lambda: dispatcher.run(keep_going=lambda: not ended.is_set()))),
        builders.begin(lambda: repeat(apply_stored)),
        builders.begin(lambda: repeat(lambda: asking.ask_due(for_seconds=1.0))),
    ]
    try:
        yield Release(simulator, payouts)
    finally:
        simulator.outages.end()
        ended.set()
        for thread in threads:
            thread.result(DEADLINE_SECONDS)


def under_way(simulator: Simulator) -> None:
    """Wait until the release is well under way, and its first results are known."""
    wait_until(lambda: len(simulator.book.payments) >= BEFORE, "release under way")
    wait_until(lambda: Transaction.objects.filter(status="COMPLETED").count() >= BEFORE // 2, "first results")


@pytest.mark.parametrize("kind", ["silent", "unanswered"])
def test_unanswered_requests_leave_only_probes(dispatcher: Dispatcher, simulator: Simulator, kind: str) -> None:
    # Doubts are learned only after the pause must have come, so the silence alone pauses sending.
    policy = replace(POLICY, query_after=timedelta(seconds=2 * TIMEOUT_SECONDS))
    with release(replace(dispatcher, policy=policy), simulator) as open_release:
        # given
        under_way(simulator)
        usual = dispatcher.answers.usual
        simulator.schedule.set_rate(1, ("callback_lost",))

        # when
        simulator.outages.begin(kind)
        wait_until(lambda: probes() >= 3, "third probe")
        seen, arrived = probes(), simulator.outages.arrived

        # then
        assert arrived <= 20 + PACE * max(4 * usual, 1.0) + seen
        simulator.schedule.set_rate(0, ())
        simulator.outages.end()
        open_release.paid_once()


def test_requests_refused_for_our_field_fail_nobody(dispatcher: Dispatcher, simulator: Simulator) -> None:
    with release(dispatcher, simulator) as open_release:
        # given
        under_way(simulator)

        # when
        simulator.outages.begin("refused")
        wait_until(lambda: probes() >= 3, "third probe")
        arrived, seen = simulator.outages.arrived, probes()

        # then
        assert opened() == {"credentials"}
        assert arrived <= 20 + PACE + seen
        assert not Transaction.objects.filter(status__in=["FAILED", "HELD"]).exists()
        simulator.outages.end()
        open_release.paid_once()
        assert not Attempt.objects.filter(state="FAILED").exists()


@pytest.mark.parametrize(("pace", "query_after"), [(10, 2), (5, 20)], ids=["fast", "defaults"])
def test_acknowledged_requests_without_results_pause_sending(
    dispatcher: Dispatcher, simulator: Simulator, pace: int, query_after: int
) -> None:
    # Each doubt counts from its POST, so the time until an acknowledgement is recorded needs no room in the bound.
    limiter = replace(dispatcher.limiter, name="slow", per_second=Decimal(pace))
    policy = replace(POLICY, query_after=timedelta(seconds=query_after))
    with release(replace(dispatcher, limiter=limiter, policy=policy), simulator) as open_release:
        # given
        under_way(simulator)
        before = open_release.requests()

        # when: requests are acknowledged, and neither results nor answers to the first queries come
        simulator.schedule.set_rate(2, ("callback_lost", "status_lost"))
        wait_until(lambda: breakers.any_open(), "pause")
        wait_until(lambda: probes() >= 2, "second probe")
        left, seen = open_release.requests() - before, probes()

        # then
        assert left <= pace * query_after + 20 + seen
        assert "doubt" in opened()
        simulator.schedule.set_rate(0, ())
        open_release.paid_once()
