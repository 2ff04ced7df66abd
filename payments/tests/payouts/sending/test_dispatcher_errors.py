"""The dispatcher when M-Pesa is silent about single requests, and when its last responses bring errors."""

import time
from dataclasses import replace
from typing import Any

import pytest

from payments.models import Attempt, Breaker
from payments.mpesa import client
from payments.mpesa.bulk_client import Ended, Payment
from payments.mpesa.rate_limit import Limiter
from payments.payouts.sending.answers import Answers
from payments.payouts.sending.dispatcher import Dispatcher
from testing import builders, payout_steps
from testing.payout_steps import ACCEPTED, POLICY, READ_TIMEOUT, after

pytestmark = pytest.mark.django_db
LONG_AGO = 60.0  # Seconds. Much longer than M-Pesa's usual time and a second.


class Unlimited(Limiter):
    def reserve(self, count: int = 1, *, longest_wait_seconds: float) -> list[float]:
        return [0.0] * count


def dispatcher(gateway: Any, bulk_gateway: Any = None) -> Dispatcher:
    limiter = Unlimited(connection=None, name="none", per_second=POLICY.confirm_above)  # type: ignore[arg-type]
    return Dispatcher(
        gateway=gateway,
        bulk_gateway=bulk_gateway or payout_steps.FakeCalls(gateway),
        limiter=limiter,
        query_limiter=limiter,
        addresses=payout_steps.ADDRESSES,
        policy=POLICY,
        clock=lambda: after(100),
        before_claim=lambda: None,
        in_flight=8,
        answers=Answers(),
    )


def is_silent() -> bool:
    return Breaker.objects.filter(cause="silence", opened_at__isnull=False).exists()


# --- silence and single requests -------------------------------------------------------------------------------------


def test_single_payout_does_not_leave_while_the_newest_requests_are_silent() -> None:
    # given
    payout, gateway = builders.payout(285), payout_steps.FakeGateway()
    sending = dispatcher(gateway)
    sending.answers.left(1, time.monotonic() - LONG_AGO)

    # when
    was_sent = sending.send_one(payout.pk)

    # then
    assert (was_sent, gateway.payments, is_silent()) == (False, [], True)


def test_single_request_without_an_answer_pauses_sending() -> None:
    # given: a gateway that takes long and ends without an answer
    payout, other = builders.payout(285), builders.payout(285)

    class Silent(payout_steps.FakeGateway):
        def pay(self, **request: Any) -> client.Accepted:
            sending.answers.left(Attempt.objects.get().pk, time.monotonic() - LONG_AGO)
            return super().pay(**request)

    gateway = Silent(READ_TIMEOUT)
    sending = dispatcher(gateway)

    # when
    sent = [sending.send_one(payout.pk), sending.send_one(other.pk)]

    # then
    assert (sent, len(gateway.payments), is_silent()) == ([True, False], 1, True)


def test_single_request_that_is_answered_pauses_nothing() -> None:
    payout, gateway = builders.payout(285), payout_steps.FakeGateway()
    sending = dispatcher(gateway)
    assert sending.send_one(payout.pk)
    assert not is_silent()
    assert sending.answers.silence(time.monotonic() + LONG_AGO) is None


# --- errors while a run ends -----------------------------------------------------------------------------------------


class OneByOne(payout_steps.FakeCalls):
    """A gateway that returns one request at a time, in the order of `script`: responses or errors."""

    def __init__(self, *script: object) -> None:
        super().__init__(None)
        self.script = list(script)
        self.keys: list[int] = []

    def start(self, payments: Any) -> None:
        self.keys += [payment.key for payment in payments if isinstance(payment, Payment)]

    def collect(self, *, patience_seconds: float, at_least: int) -> list[Ended]:
        answer: Any = self.script.pop(0)
        return [Ended(self.keys.pop(0), answer)]


def test_second_error_hides_neither_the_first_nor_the_responses_after_it() -> None:
    # given: two requests cannot be made, and the requests after each of them are accepted
    for _ in range(5):
        builders.payout(285)
    calls = OneByOne(ACCEPTED, ValueError("first"), ACCEPTED, ValueError("second"), ACCEPTED)

    # when
    with pytest.raises(ValueError, match="first"):
        dispatcher(payout_steps.FakeGateway(), calls).run(keep_going=lambda: True)

    # then
    states = list(Attempt.objects.order_by("pk").values_list("state", flat=True))
    assert states == ["ACCEPTED", "SENDING", "ACCEPTED", "SENDING", "ACCEPTED"]


def test_error_while_the_run_ends_is_raised() -> None:
    # given: the run is told to end while its requests are under way
    for _ in range(3):
        builders.payout(285)
    rounds = iter([True])
    calls = OneByOne(ACCEPTED, ValueError("only"), ACCEPTED)

    # when
    with pytest.raises(ValueError, match="only"):
        dispatcher(payout_steps.FakeGateway(), calls).run(keep_going=lambda: next(rounds, False))

    # then
    states = list(Attempt.objects.order_by("pk").values_list("state", flat=True))
    assert states == ["ACCEPTED", "SENDING", "ACCEPTED"]


def test_gateway_that_returns_nothing_any_more_ends_the_run() -> None:
    builders.payout(285)
    calls = OneByOne()
    with pytest.raises(IndexError):
        replace(dispatcher(payout_steps.FakeGateway(), calls)).run(keep_going=lambda: True)
    assert Attempt.objects.get().state == "SENDING"
