"""Breakers pause sending, allow probes, and close by evidence."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction

from payments.models import Breaker, Settlement
from payments.payouts import breakers
from payments.payouts.sending import claims as sending_claims
from testing import builders, payout_steps
from testing.payout_steps import (
    ADDRESSES,
    POLICY,
    after,
    claims,
    deliver_result,
    result_body,
    sent,
)
from users import audit
from users.models import AuditEntry

pytestmark = pytest.mark.django_db

Cause = Breaker.Cause


def opened() -> set[str]:
    return set(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True))


@pytest.mark.parametrize(
    ("response", "cause"),
    [(payout_steps.NO_CONNECTION, Cause.NETWORK), (payout_steps.THROTTLED, Cause.THROTTLE)],
    ids=str,
)
def test_network_fault_pauses_sending_until_an_acknowledgement(response: payout_steps.Response, cause: str) -> None:
    # given
    first, second, third = (builders.payout(285) for _ in range(3))
    sent(first, response)

    # then: nothing leaves within the pause, one probe after it
    assert opened() == {cause}
    assert claims(after(0.5)) == []
    (probe,) = claims(after(1))
    assert probe.transaction_id == second.pk
    assert claims(after(1)) == []

    # when
    payout_steps.put_through(probe, payout_steps.ACCEPTED, after(1))

    # then
    assert opened() == set()
    assert [claim.transaction_id for claim in claims(after(1))] == [third.pk]


@pytest.mark.parametrize(("code", "cause"), [(1, Cause.NO_FLOAT), (2001, Cause.CREDENTIALS), (8006, Cause.CREDENTIALS)])
def test_fault_inside_mpesa_pauses_sending_until_a_payment(code: int, cause: str) -> None:
    # given
    first, second = builders.payout(285), builders.payout(285)
    attempt = sent(first)

    # when: one unconfirmed callback is enough to pause, but not to fail
    deliver_result(attempt, result_body(attempt, code), after(1))

    # then
    assert opened() == {cause}
    assert payout_steps.states(first, attempt) == ("PROCESSING", "IN_DOUBT")
    assert claims(after(1.5)) == []
    probe = sent(second, at=after(2))
    assert opened() == {cause}  # An acknowledgement proves nothing about the float.
    deliver_result(probe, result_body(probe), after(3))
    assert opened() == set()


def test_probes_become_rarer_while_the_fault_lasts() -> None:
    # given
    for _ in range(12):
        builders.payout(285)
    policy = replace(POLICY, query_after=timedelta(days=1))  # No probe counts as a doubt.
    breakers.trip(Cause.NO_FLOAT, reason="none", at=after(0), policy=policy)

    # when
    probed = [second for second in range(0, 121) if claims(after(second), policy)]

    # then
    assert probed == [1, 3, 7, 15, 31, 51, 71, 91, 111]


WINDOW_4 = replace(POLICY, breaker_window=4)


def test_many_requests_in_doubt_pause_sending() -> None:
    # given
    paid, doubtful = sent(builders.payout(285)), sent(builders.payout(285), payout_steps.READ_TIMEOUT)
    deliver_result(paid, result_body(paid), after(0))
    (third, fourth) = (builders.payout(285) for _ in range(2))
    sent(third, payout_steps.READ_TIMEOUT, policy=WINDOW_4)
    assert opened() == set()

    # when
    sent(fourth, payout_steps.READ_TIMEOUT, policy=WINDOW_4)

    # then
    assert doubtful.state == "IN_DOUBT"
    assert opened() == {Cause.DOUBT}
    assert "3 of the latest 4 requests are in doubt" in Breaker.objects.get(cause=Cause.DOUBT).reason


def test_many_failed_requests_pause_sending() -> None:
    # when
    for _ in range(4):
        payout_steps.failed(builders.payout(285), policy=WINDOW_4)

    # then
    assert opened() == {Cause.FAILURES}


def test_five_outcomes_are_enough_for_a_young_installation() -> None:
    # given: the window is larger than the number of requests ever made
    payouts = [builders.payout(285) for _ in range(5)]

    # when
    for payout in payouts[:4]:
        sent(payout, payout_steps.READ_TIMEOUT)
    assert opened() == set()
    sent(payouts[4], payout_steps.READ_TIMEOUT)

    # then
    assert opened() == {Cause.DOUBT}


def test_undecided_requests_do_not_hide_the_outcomes() -> None:
    # given: five requests in doubt, and then a full window of newer requests that are under way
    for _ in range(4):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT, policy=WINDOW_4)
    Breaker.objects.update(opened_at=None, probe_at=None)
    for _ in range(30):
        sent(builders.payout(285), policy=POLICY, at=after(1))

    # when
    breakers.judge(at=after(2), policy=WINDOW_4)

    # then
    assert opened() == {Cause.DOUBT}


def test_outcomes_count_in_the_order_in_which_they_are_learned() -> None:
    # given: the requests POSTed first get their results last, from callbacks
    slow = [sent(builders.payout(285)) for _ in range(4)]
    for _ in range(4):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT)

    # when
    for attempt in slow:
        receipt = f"SKG{attempt.pk:07d}"
        deliver_result(attempt, result_body(attempt, receipt=receipt), after(5))
    Breaker.objects.update(opened_at=None, probe_at=None)
    breakers.judge(at=after(6), policy=WINDOW_4)

    # then: the latest four outcomes are paid
    assert opened() == set()


def test_acknowledged_requests_without_a_result_pause_sending() -> None:
    # given
    for _ in range(5):
        sent(builders.payout(285))
    waiting = builders.payout(285)

    # when: nothing is recorded, and no status query is made; only the time of the results has passed
    assert [claim.transaction_id for claim in claims(after(19), limit=1)] == [waiting.pk]
    builders.payout(285)
    left = claims(after(20))

    # then
    assert left == []
    assert opened() == {Cause.DOUBT}


def test_acknowledgement_does_not_end_the_pause_for_doubts() -> None:
    # given: M-Pesa acknowledges requests and sends no result
    for _ in range(5):
        sent(builders.payout(285))
    probed, last = builders.payout(285), builders.payout(285)
    assert claims(after(20)) == []

    # when
    probe = sent(probed, at=after(21))

    # then
    assert opened() == {Cause.DOUBT}
    deliver_result(probe, result_body(probe), after(22))
    assert opened() == set()
    assert [claim.transaction_id for claim in claims(after(22))] == [last.pk]


def test_proven_failure_of_a_probe_ends_the_pause_for_doubts() -> None:
    # given
    for _ in range(5):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT)
    assert opened() == {Cause.DOUBT}

    # when
    payout_steps.failed(builders.payout(285), at=after(1))

    # then
    assert opened() == set()


def test_requests_before_the_breaker_closed_do_not_open_it_again() -> None:
    # given: ten requests without a result; a probe closes the breaker before five of the doubts are learned
    for _ in range(5):
        builders.payout(285)
    late = claims(after(0), limit=5)
    for _ in range(5):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT)
    probe = sent(builders.payout(285), at=after(1))
    deliver_result(probe, result_body(probe), after(2))
    assert opened() == set()

    # when
    for claim in late:
        payout_steps.put_through(claim, payout_steps.READ_TIMEOUT, after(3))

    # then: the old doubts do not count, and five new ones do
    assert opened() == set()
    for _ in range(5):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT, at=after(4))
    assert opened() == {Cause.DOUBT}


def test_failures_for_a_fault_of_ours_do_not_count_as_failures() -> None:
    # given
    for _ in range(5):
        attempt = sent(builders.payout(285))
        Breaker.objects.update(opened_at=None, probe_at=None)
        deliver_result(attempt, result_body(attempt, 1), after(1))
        payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), after(1))
        Breaker.objects.update(opened_at=None, probe_at=None)

    # when
    breakers.judge(at=after(3), policy=POLICY)

    # then
    assert opened() == set()


def test_silence_leaves_only_probes_until_an_acknowledgement() -> None:
    # given
    first, second = builders.payout(285), builders.payout(285)
    breakers.report_silence(oldest_posted_at=after(0), reason="silent", at=after(1), policy=POLICY)
    assert claims(after(1)) == []

    # when
    sent(first, at=after(2))

    # then: closed, and requests POSTed before do not open it again
    assert opened() == set()
    breakers.report_silence(oldest_posted_at=after(1.5), reason="silent", at=after(3), policy=POLICY)
    assert opened() == set()
    breakers.report_silence(oldest_posted_at=after(2.5), reason="silent", at=after(4), policy=POLICY)
    assert opened() == {Cause.SILENCE}
    assert second.status == "PENDING"


def test_any_call_that_reaches_mpesa_closes_the_network() -> None:
    # given
    sent(builders.payout(285), payout_steps.NO_CONNECTION)
    assert opened() == {Cause.NETWORK}

    # when, then
    breakers.reached(after(-1), at=after(5))
    assert opened() == {Cause.NETWORK}
    breakers.reached(after(4), at=after(5))
    assert opened() == set()


@pytest.mark.parametrize("response", [payout_steps.REJECTED, payout_steps.THROTTLED])
def test_refusal_by_mpesa_closes_the_network(response: payout_steps.Response) -> None:
    payouts = [builders.payout(285) for _ in range(2)]
    sent(payouts[0], payout_steps.NO_CONNECTION)
    assert opened() == {Cause.NETWORK}
    sent(payouts[1], response, after(60))
    assert Cause.NETWORK not in opened()


def test_switch_stops_sending_and_nothing_else() -> None:
    # given
    under_way, waiting = builders.payout(285), builders.payout(285)
    attempt = sent(under_way)
    call_command("sending", "off", reason="a rumour")

    # then: nothing leaves at any time, and an applied result does not close the switch
    assert claims(after(100_000)) == []
    assert deliver_result(attempt, result_body(attempt), after(1)) == "paid"
    assert opened() == {Cause.SWITCH}
    market = builders.market()
    builders.bet(market, builders.member(100), "Yes", 100)
    builders.resolve(market)
    builders.settle(market)
    assert Settlement.objects.get(market=market).state == "SETTLED"

    # when
    call_command("sending", "on")

    # then
    assert next(claim.transaction_id for claim in claims(after(100_000))) == waiting.pk


def test_both_turns_of_the_switch_are_audited() -> None:
    by = audit.Actor(user_id=builders.operator().pk, source="console")
    breakers.switch_off(reason="A rumour.", by=by, at=after(0))
    with transaction.atomic():
        breakers.switch_on(by=by, at=after(1))

    entries = AuditEntry.objects.filter(subject="breaker:switch").order_by("number")
    assert list(entries.values_list("action", "before", "after", "reason")) == [
        ("sending.switch_off", '{"sending":"on"}', '{"sending":"off"}', "A rumour."),
        ("sending.switch_on", '{"sending":"off"}', '{"sending":"on"}', ""),
    ]


def test_any_open_tells_if_a_breaker_is_open() -> None:
    assert not breakers.any_open()
    with transaction.atomic():
        breakers.stop(Cause.ORPHAN, reason="Look first", at=after(0))
    assert breakers.any_open()


def test_long_reason_of_a_stop_is_cut() -> None:
    stops: list[tuple[Breaker.Cause, Any]] = [
        (Cause.RESTORE, breakers.stop),
        (Cause.NETWORK, partial(breakers.trip, policy=POLICY)),
    ]
    for cause, stop in stops:
        with transaction.atomic():
            stop(cause, reason="x" * 400, at=after(0))
        assert Breaker.objects.get(cause=cause).reason == "x" * 300


def test_outcomes_count_from_the_later_end_of_the_two_pauses() -> None:
    # given: the pause for doubts ended first, and then that for failures
    Breaker.objects.filter(cause=Cause.DOUBT).update(closed_at=after(0))
    Breaker.objects.filter(cause=Cause.FAILURES).update(closed_at=after(30))

    # when
    for second in range(10):
        sent(builders.payout(285), payout_steps.READ_TIMEOUT, after(10 + second))
    breakers.judge(at=after(31), policy=POLICY)

    # then
    assert opened() == set()


def test_switch_is_refused_inside_a_transaction() -> None:
    """A transaction around it could take the stop back after its answer."""
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        breakers.switch_off(reason="Wrong payouts.", by=audit.MACHINE, at=after(0))


def test_setting_stops_sending() -> None:
    builders.payout(285)
    assert sending_claims.claim(at=after(1), policy=replace(POLICY, paused=True), addresses=ADDRESSES, limit=1) == []


@pytest.mark.parametrize("cause", [Cause.ORPHAN, Cause.RESTORE])
def test_stop_ends_only_by_a_person(cause: Breaker.Cause) -> None:
    # given
    under_way, waiting = builders.payout(285), builders.payout(285)
    attempt = sent(under_way)
    with transaction.atomic():
        breakers.stop(cause, reason="Look first", at=after(0))
        breakers.stop(cause, reason="Look again", at=after(1))

    # then: nothing leaves at any time, and neither an acceptance nor a payment ends the stop
    assert claims(after(100_000)) == []
    breakers.acknowledged(after(2), at=after(2))
    assert deliver_result(attempt, result_body(attempt), after(3)) == "paid"
    stopped = Breaker.objects.get(cause=cause)
    assert (stopped.opened_at, stopped.probe_at, stopped.reason) == (after(0), None, "Look first")

    # when
    by = audit.Actor(user_id=builders.operator().pk, source="console")
    with transaction.atomic():
        breakers.end_stop(cause, by=by, reason="Compared with the statement", at=after(4))
        breakers.end_stop(cause, by=by, reason="Once more", at=after(5))

    # then
    assert [claim.transaction_id for claim in claims(after(6))] == [waiting.pk]
    (entry,) = AuditEntry.objects.filter(action="sending.lift")
    assert (entry.subject, entry.reason, entry.actor_id) == (
        f"breaker:{cause}",
        "Compared with the statement",
        by.user_id,
    )
