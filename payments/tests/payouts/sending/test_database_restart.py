"""PostgreSQL is restarted between M-Pesa's response and its record: the response is kept and recorded."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from django.conf import settings
from django.db import OperationalError, connection

from payments.models import Attempt
from payments.mpesa import client
from payments.mpesa.rate_limit import Limiter
from payments.payouts.sending import claims, dispatcher, responses
from payments.payouts.sending.dispatcher import Dispatcher
from testing import builders, payout_steps
from testing.payout_steps import POLICY, after

pytestmark = pytest.mark.django_db(transaction=True)


class Outage:
    """PostgreSQL refuses connections to the test's database, and has ended all sessions, until `end`."""

    def __init__(self) -> None:
        self.database = settings.DATABASES["default"]
        self.timers: list[threading.Timer] = []

    def begin(self, seconds: float) -> None:
        self._run("ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        self._run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        timer = threading.Timer(seconds, self.end)
        timer.start()
        self.timers.append(timer)

    def end(self) -> None:
        self._run("ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def _run(self, statement: str) -> None:
        known = self.database
        session = psycopg2.connect(
            dbname="postgres", user=known["USER"], password=known["PASSWORD"], host=known["HOST"], port=known["PORT"]
        )
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(statement.format(name=known["NAME"]))
        session.close()


@pytest.fixture
def outage() -> Iterator[Outage]:
    outage = Outage()
    yield outage
    for timer in outage.timers:
        timer.join()
    outage.end()
    connection.close()


class GatewayBeforeOutage(payout_steps.FakeGateway):
    """A gateway that answers its last request, after which PostgreSQL is away."""

    outage: Outage
    requests = 0

    def pay(self, **request: Any) -> client.Accepted:
        self.requests += 1
        if self.requests == 3:
            self.outage.begin(seconds=1.5)
        return super().pay(**request)


def sending(gateway: payout_steps.FakeGateway) -> Dispatcher:
    class Unlimited(Limiter):
        def reserve(self, count: int = 1, *, longest_wait_seconds: float) -> list[float]:
            return [0.0] * count

    limiter = Unlimited(connection=None, name="none", per_second=POLICY.confirm_above)  # type: ignore[arg-type]
    return Dispatcher(
        gateway=gateway,  # type: ignore[arg-type]
        bulk_gateway=payout_steps.FakeCalls(gateway),
        limiter=limiter,
        query_limiter=limiter,
        addresses=payout_steps.ADDRESSES,
        policy=POLICY,
        clock=lambda: after(1),
        before_claim=lambda: None,
        in_flight=8,
    )


def test_acceptances_read_before_a_restart_are_recorded_after_it(outage: Outage) -> None:
    # given
    for _ in range(3):
        builders.payout(285)
    gateway = GatewayBeforeOutage()
    gateway.outage = outage

    # when: the run ends, because it cannot look for more payouts, but not before the responses are recorded
    with pytest.raises(OperationalError):
        sending(gateway).run(keep_going=lambda: True)

    # then
    assert gateway.requests == 3
    assert list(Attempt.objects.values_list("state", flat=True)) == ["ACCEPTED"] * 3
    assert Attempt.objects.filter(conversation_id="").count() == 0


def test_refusal_of_a_single_payout_is_recorded_after_a_restart(outage: Outage) -> None:
    # given
    payout = builders.payout(285)
    gateway = GatewayBeforeOutage(payout_steps.REJECTED)
    gateway.outage, gateway.requests = outage, 2

    # when
    was_sent = sending(gateway).send_one(payout.pk)

    # then
    payout.refresh_from_db()
    assert (was_sent, payout.status) == (True, "FAILED")


def test_responses_are_given_up_after_the_patience(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setattr(dispatcher, "RECORD_PATIENCE_SECONDS", 0.0)
    payout = builders.payout(285)
    gateway = GatewayBeforeOutage()
    gateway.outage, gateway.requests = outage, 2

    # when
    with pytest.raises(OperationalError):
        sending(gateway).send_one(payout.pk)
    for timer in outage.timers:
        timer.join()

    # then: the request is in doubt, and a status query finds its result
    assert Attempt.objects.get().state == "SENDING"
    assert payout_steps.question(Attempt.objects.get(), after(30))


def test_late_response_of_an_earlier_post_does_not_change_the_later_post() -> None:
    # given: the response "not sent" is recorded, and the same id is POSTed again
    payout = builders.payout(285)
    (first,) = claims.claim(at=after(0), policy=POLICY, addresses=payout_steps.ADDRESSES, limit=1)
    responses.record(first, payout_steps.THROTTLED, at=after(1), policy=POLICY)
    payout.refresh_from_db()
    (second,) = claims.claim(
        at=payout.due_at, policy=payout_steps.POLICY, addresses=payout_steps.ADDRESSES, limit=1
    )  # fmt: skip
    before = Attempt.objects.values().get()

    # when: its commit's answer was lost, so the first response is recorded again
    responses.record(first, payout_steps.THROTTLED, at=payout.due_at, policy=POLICY)

    # then
    assert second.originator_conversation_id == first.originator_conversation_id
    assert Attempt.objects.values().get() == before
    assert before["state"] == "SENDING"
    responses.record(second, payout_steps.THROTTLED, at=payout.due_at, policy=POLICY)
    assert Attempt.objects.get().state == "WAITING"
