"""The dispatcher against the simulator over HTTP and a real Redis."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db.models import QuerySet

from payments.models import Attempt, Breaker, StatusQuery, Transaction
from payments.mpesa import access_tokens, client, gateway_errors
from payments.mpesa.bulk_client import BulkGateway, Ended, Payment
from payments.mpesa.callback_urls import Addresses
from payments.mpesa.credentials import Credentials
from payments.mpesa.rate_limit import Limiter
from payments.mpesa.simulator.server import Options, Simulator
from payments.mpesa.simulator.terms import Terms
from payments.payouts import breakers
from payments.payouts.sending import claims
from payments.payouts.sending.dispatcher import Dispatcher, _last_served
from testing import builders, payout_steps
from testing.builders import AT, nothing_moved
from testing.gateways import SEAL
from testing.payout_steps import after

pytestmark = pytest.mark.django_db

# Nothing listens at this address, and the simulator's results are due long after each test. Only sending is tested.
ADDRESSES = Addresses(callback_url="http://127.0.0.1:9/api/payments/b2c-callback/", key="k" * 40)
FOR_SECONDS = 60.0
# An open breaker allows one probe at a time. With these pauses the next probe may follow at once.
PROBING = replace(payout_steps.POLICY, breaker_pause=timedelta(0), breaker_longest_pause=timedelta(0))


class Clock:
    """A clock that a test moves. Each reading adds a millisecond."""

    def __init__(self) -> None:
        self.now = after(1)

    def __call__(self) -> Any:
        self.now += timedelta(milliseconds=1)
        return self.now


class CountingCalls(BulkGateway):
    """The real bulk gateway, which counts the requests under way at once."""

    under_way = most = 0

    def start(self, payments: Iterable[Payment]) -> None:
        due = list(payments)
        self.under_way += len(due)
        self.most = max(self.most, self.under_way)
        super().start(due)

    def collect(self, *, patience_seconds: float, at_least: int) -> list[Ended]:
        ended = super().collect(patience_seconds=patience_seconds, at_least=at_least)
        self.under_way -= len(ended)
        return ended


class LimiterThatLosesRedis(Limiter):
    """A limiter that reserves `left` slots and then cannot reach Redis."""

    left = 5

    def reserve(self, count: int = 1, *, longest_wait_seconds: float) -> list[float]:
        if self.left < 1:
            raise redis.ConnectionError("Connection refused.")
        slots = super().reserve(min(count, self.left), longest_wait_seconds=longest_wait_seconds)
        object.__setattr__(self, "left", self.left - len(slots))
        return slots


@pytest.fixture
def connection() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.REDIS_URL) as connection:
        yield connection


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(Options(latency=0.02, terms=Terms(callback_delay=600))) as simulator:
        yield simulator


@pytest.fixture
def gateway(simulator: Simulator, connection: redis.Redis) -> Iterator[client.Gateway]:
    credentials = Credentials(
        base_url=simulator.base_url,
        consumer_key="key",
        consumer_secret="secret",
        initiator_name="testapi",
        security_credential="credential==",
        shortcode="600000",
    )
    tokens = access_tokens.SharedTokens(connection, name=credentials.token_name, seal=SEAL)
    gateway = client.Gateway(credentials, tokens=tokens, timeout_seconds=20.0, pool_size=32)
    yield gateway
    gateway.close()


@pytest.fixture
def calls(gateway: client.Gateway) -> Iterator[CountingCalls]:
    calls = CountingCalls(gateway, in_flight=8)
    yield calls
    calls.close()


@pytest.fixture
def dispatcher(gateway: client.Gateway, calls: CountingCalls, connection: redis.Redis) -> Dispatcher:
    def limiter(name: str) -> Limiter:
        return Limiter(connection=connection, name=name, per_second=Decimal(2_000))

    return Dispatcher(
        gateway=gateway,
        bulk_gateway=calls,
        limiter=limiter("b2c"),
        query_limiter=limiter("status"),
        addresses=ADDRESSES,
        policy=payout_steps.POLICY,
        clock=Clock(),
        before_claim=lambda: None,
        in_flight=8,
    )


def send_due(dispatcher: Dispatcher, for_seconds: float = FOR_SECONDS) -> int:
    """Run the dispatcher until nothing is due, for at most `for_seconds`, and return the number of requests."""
    until = time.monotonic() + for_seconds
    return dispatcher.run(keep_going=lambda: time.monotonic() < until)


def winners(count: int) -> QuerySet[Transaction]:
    """Settle a market and return its pending payouts, 100 shillings for each of `count` members."""
    members = [builders.member() for _ in range(count)]
    market = builders.settled_market([(member, "Yes", 100) for member in members], fee_pct=0)
    return Transaction.objects.filter(settlement__market=market)


def states() -> Counter[tuple[str, str]]:
    """Count the attempts by (status of the payout, state of the attempt)."""
    return Counter(Attempt.objects.values_list("transaction__status", "state"))


def requests_of(simulator: Simulator) -> dict[str, int]:
    """Return the number of requests that reached the simulator for each id that it accepted."""
    return {ocid: simulator.book.requests_of(ocid) for ocid in list(simulator.book.payments)}


def test_all_due_payouts_are_sent_once_within_the_bound(
    dispatcher: Dispatcher, calls: CountingCalls, simulator: Simulator
) -> None:
    # given
    payouts = winners(60)

    # when
    sent = send_due(dispatcher)

    # then
    references = set(payouts.values_list("external_ref", flat=True))
    assert sent == 60
    assert 1 < calls.most <= 8 + 4  # Eight are under way, and half as many may wait for a connection.
    assert states() == {("PROCESSING", "ACCEPTED"): 60}
    assert requests_of(simulator) == {f"{reference}-1": 1 for reference in references}
    assert Attempt.objects.filter(conversation_id="").count() == 0
    assert send_due(dispatcher) == 0


def test_bound_of_one_request_is_respected(dispatcher: Dispatcher, calls: CountingCalls) -> None:
    # given
    winners(6)

    # when
    sent = send_due(replace(dispatcher, in_flight=1))

    # then
    assert (sent, calls.most) == (6, 1)


def test_pace_below_four_a_second_is_kept(dispatcher: Dispatcher, connection: redis.Redis) -> None:
    # given
    winners(4)
    slow = replace(dispatcher, limiter=Limiter(connection=connection, name="slow", per_second=Decimal(2)))

    # when
    sent = send_due(slow)

    # then
    assert sent == 4


def test_nothing_is_sent_after_the_time_is_up(dispatcher: Dispatcher, simulator: Simulator) -> None:
    # given
    winners(3)

    # then
    with nothing_moved():
        assert send_due(dispatcher, 0.0) == 0
    assert requests_of(simulator) == {}


def test_claims_are_recorded_before_redis_stops_the_run(
    dispatcher: Dispatcher, simulator: Simulator, connection: redis.Redis
) -> None:
    # given
    payouts = winners(12)
    losing = LimiterThatLosesRedis(connection=connection, name="b2c", per_second=Decimal(2_000))

    # when
    with pytest.raises(redis.RedisError):
        send_due(replace(dispatcher, limiter=losing))

    # then
    assert states() == {("PROCESSING", "ACCEPTED"): 5}
    assert payouts.filter(status="PENDING").count() == 7
    assert len(requests_of(simulator)) == 5
    assert send_due(dispatcher) == 7
    assert list(requests_of(simulator).values()) == [1] * 12


def test_without_redis_nothing_is_claimed(dispatcher: Dispatcher) -> None:
    # given
    (payout,) = winners(1)
    with redis.Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=2, socket_timeout=2) as down:
        losing = replace(dispatcher, limiter=Limiter(connection=down, name="b2c", per_second=Decimal(5)))

        # then
        with nothing_moved(), pytest.raises(redis.RedisError):
            send_due(losing)
        with nothing_moved(), pytest.raises(redis.RedisError):
            losing.send_one(payout.pk)


def test_request_that_cannot_be_made_leaves_others_recorded(dispatcher: Dispatcher) -> None:
    # given
    payouts = winners(12)
    broken = payouts.order_by("pk")[3].external_ref

    class Gateway(payout_steps.FakeGateway):
        def pay(self, **request: Any) -> client.Accepted:
            if broken in request["originator_conversation_id"]:
                raise ValueError("remarks must have at least two letters or digits.")
            return super().pay(**request)

    # when
    for _ in range(3):
        try:
            send_due(replace(dispatcher, bulk_gateway=payout_steps.FakeCalls(Gateway())))
        except ValueError:
            continue  # The error must not affect the other requests.

    # then
    left = Attempt.objects.exclude(state="ACCEPTED").values_list("transaction__external_ref", flat=True)
    assert list(left) == [broken]
    assert Attempt.objects.filter(state="ACCEPTED").count() == 11


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (payout_steps.NO_CONNECTION, ("PENDING", "WAITING")),
        (payout_steps.THROTTLED, ("PENDING", "WAITING")),
        (payout_steps.READ_TIMEOUT, ("PROCESSING", "IN_DOUBT")),
        (payout_steps.DUPLICATE, ("PROCESSING", "IN_DOUBT")),
        (payout_steps.REJECTED, ("FAILED", "FAILED")),
    ],
    ids=str,
)
def test_every_response_is_recorded_and_its_request_made_once(
    dispatcher: Dispatcher, response: gateway_errors.GatewayError, expected: tuple[str, str]
) -> None:
    # given
    winners(10)
    gateway = payout_steps.FakeGateway(*[response] * 10)

    # when
    sent = send_due(replace(dispatcher, bulk_gateway=payout_steps.FakeCalls(gateway), policy=PROBING))

    # then
    assert (sent, len(gateway.payments)) == (10, 10)
    assert states() == {expected: 10}


def test_throttled_requests_are_sent_again_with_the_same_ids(dispatcher: Dispatcher, simulator: Simulator) -> None:
    # given
    payouts = winners(10)
    for phone in payouts.values_list("phone_number", flat=True):
        simulator.schedule.add(phone, "spike_arrestx2")
    clock = Clock()

    # when
    rounds = []
    for pause in (60, 120, 0):
        rounds.append((send_due(replace(dispatcher, clock=clock, policy=PROBING)), dict(states())))
        clock.now += timedelta(seconds=pause)

    # then
    throttled = {("PENDING", "WAITING"): 10}
    assert rounds == [(10, throttled), (10, throttled), (10, {("PROCESSING", "ACCEPTED"): 10})]
    assert requests_of(simulator) == {
        f"{reference}-1": 3 for reference in payouts.values_list("external_ref", flat=True)
    }


def test_dispatcher_sends_requests_again(dispatcher: Dispatcher, simulator: Simulator) -> None:
    # given
    (payout,) = winners(1)
    attempt = payout_steps.sent(payout, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(20))
    later = Clock()
    later.now = after(30)

    # when
    sent = send_due(replace(dispatcher, clock=later))

    # then
    assert sent == 1
    assert states() == {("PROCESSING", "ACCEPTED"): 1}
    assert requests_of(simulator) == {attempt.originator_conversation_id: 1}


@pytest.fixture
def lost(db: None) -> Attempt:
    """Create five new payouts and an attempt that M-Pesa did not find. Return the attempt, due to be sent again."""
    (payout,) = winners(1)
    attempt = payout_steps.sent(payout, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(20))
    winners(5)
    return attempt


def next_of(dispatcher: Dispatcher, seconds: float) -> list[str]:
    """Return the id of the request that the dispatcher claims next if it may claim one."""
    clock = Clock()
    clock.now = after(seconds)
    return [claim.originator_conversation_id for claim in replace(dispatcher, clock=clock)._claim(1, 0)[0]]


def test_resend_does_not_wait_behind_new_payouts(dispatcher: Dispatcher, lost: Attempt) -> None:
    assert next_of(dispatcher, 30) == [lost.originator_conversation_id]


def test_probe_is_a_new_payout_while_sending_is_paused(dispatcher: Dispatcher, lost: Attempt) -> None:
    Breaker.objects.filter(cause="throttle").update(opened_at=after(20), probe_at=after(25))
    (probe,) = next_of(dispatcher, 30)
    assert probe != lost.originator_conversation_id


def test_resend_that_is_too_late_uses_no_probe(dispatcher: Dispatcher, lost: Attempt) -> None:
    # given
    Breaker.objects.filter(cause="throttle").update(opened_at=after(20), probe_at=after(25))

    # when
    late = after(40 * 60)
    resends = claims.claim_resends(at=late, policy=PROBING, addresses=payout_steps.ADDRESSES, limit=5)

    # then
    lost.refresh_from_db()
    assert (resends, lost.resend_at) == ([], None)
    assert Breaker.objects.get(cause="throttle").probes == 0


def test_resend_does_not_change_the_round_of_settlements(dispatcher: Dispatcher, lost: Attempt) -> None:
    again, *new = claims.claim_next(at=after(30), policy=PROBING, addresses=payout_steps.ADDRESSES, limit=3, after=0)
    assert [claim.skips_queue for claim in (again, *new)] == [True, False, False]
    assert _last_served([again], 7) == 7
    assert _last_served([again, replace(new[0], settlement_id=8), replace(new[1], settlement_id=9)], 7) == 9
    assert _last_served([again, replace(new[0], settlement_id=8), replace(new[1], settlement_id=8)], 7) == 0


# --- single payouts --------------------------------------------------------------------------------------------------


def test_send_one_sends_a_single_payout(dispatcher: Dispatcher, simulator: Simulator) -> None:
    # given
    first, second = winners(2).order_by("pk")

    # when
    was_sent = [dispatcher.send_one(second.pk), dispatcher.send_one(second.pk)]

    # then
    assert was_sent == [True, False]
    assert requests_of(simulator) == {f"{second.external_ref}-1": 1}
    first.refresh_from_db()
    assert first.status == "PENDING"


def test_send_one_without_a_slot_is_left_to_the_sweep(dispatcher: Dispatcher, connection: redis.Redis) -> None:
    # given
    (payout,) = winners(1)
    limiter = Limiter(connection=connection, name="far", per_second=Decimal("0.1"))
    connection.delete("kasoko:pace:far")
    limiter.reserve(longest_wait_seconds=0)

    # then
    with nothing_moved():
        assert not replace(dispatcher, limiter=limiter).send_one(payout.pk)


def test_send_one_of_an_unknown_payout_sends_nothing(dispatcher: Dispatcher) -> None:
    assert dispatcher.send_one(2**62) is False


# --- status queries --------------------------------------------------------------------------------------------------


def in_doubt(count: int) -> None:
    """Leave `count` payouts in doubt."""
    policy = replace(payout_steps.POLICY, breaker_failure_share=Decimal(2))  # No breaker opens.
    for payout in winners(count):
        payout_steps.sent(payout, payout_steps.READ_TIMEOUT, policy=policy)


def later(dispatcher: Dispatcher, **changes: Any) -> Dispatcher:
    """Return the dispatcher at a time when the first status queries are due."""
    clock = Clock()
    clock.now = after(30)
    return replace(dispatcher, clock=clock, **changes)


def test_every_attempt_in_doubt_is_asked_about_once(dispatcher: Dispatcher) -> None:
    # given
    in_doubt(20)

    # when
    asked = later(dispatcher).ask_due(for_seconds=FOR_SECONDS)

    # then
    assert asked == 20
    assert StatusQuery.objects.count() == 20
    assert StatusQuery.objects.filter(conversation_id="").count() == 0
    assert set(Attempt.objects.values_list("queries__number", flat=True)) == {1}


def test_queries_that_are_not_taken_are_asked_again_later(dispatcher: Dispatcher) -> None:
    # given
    in_doubt(3)
    gateway = payout_steps.FakeGateway(*[payout_steps.READ_TIMEOUT] * 3)

    # when
    asked = later(dispatcher, gateway=gateway).ask_due(for_seconds=FOR_SECONDS)

    # then
    assert (asked, len(gateway.questions)) == (3, 3)
    assert StatusQuery.objects.filter(conversation_id="").count() == 3
    assert set(Attempt.objects.values_list("state", flat=True)) == {"IN_DOUBT"}
    assert AT < min(Attempt.objects.values_list("next_query_at", flat=True)) > after(60)


def test_queries_that_never_left_are_soon_due_again(dispatcher: Dispatcher) -> None:
    # given
    in_doubt(3)
    gateway = payout_steps.FakeGateway(*[payout_steps.NO_CONNECTION] * 3)

    # when
    later(dispatcher, gateway=gateway).ask_due(for_seconds=FOR_SECONDS)

    # then
    assert StatusQuery.objects.count() == 0
    assert max(Attempt.objects.values_list("next_query_at", flat=True)) < after(60)


@pytest.mark.parametrize(
    ("response", "stays_open"), [(payout_steps.READ_TIMEOUT, False), (payout_steps.NO_CONNECTION, True)]
)
def test_new_token_closes_the_network_unless_a_later_call_fails(
    dispatcher: Dispatcher, response: payout_steps.Response, stays_open: bool
) -> None:
    # given
    in_doubt(3)
    breakers.trip(Breaker.Cause.NETWORK, reason="no connection", at=AT, policy=payout_steps.POLICY)
    gateway = payout_steps.FakeGateway(*[response] * 3)

    # when: M-Pesa issues a token and answers no query
    asking = later(dispatcher, gateway=gateway, age_of_news=lambda: 0.0)
    asking.ask_due(for_seconds=FOR_SECONDS)

    # then
    assert Breaker.objects.filter(cause="network", opened_at__isnull=False).exists() == stays_open


def test_without_redis_queries_stay_due_and_uncounted(dispatcher: Dispatcher) -> None:
    # given
    in_doubt(3)
    due_before = list(Attempt.objects.order_by("pk").values_list("next_query_at", flat=True))
    with redis.Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=2, socket_timeout=2) as down:
        losing = Limiter(connection=down, name="status", per_second=Decimal(5))

        # when
        with nothing_moved(), pytest.raises(redis.RedisError):
            later(dispatcher, query_limiter=losing).ask_due(for_seconds=FOR_SECONDS)

    # then
    assert StatusQuery.objects.count() == 0
    assert list(Attempt.objects.order_by("pk").values_list("next_query_at", flat=True)) == due_before
    assert later(dispatcher).ask_due(for_seconds=FOR_SECONDS) == 3


def test_nothing_is_asked_without_attempts_in_doubt(dispatcher: Dispatcher) -> None:
    # given
    winners(2)

    # then
    with nothing_moved():
        assert later(dispatcher).ask_due(for_seconds=FOR_SECONDS) == 0
