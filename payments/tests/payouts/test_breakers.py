"""Breakers pause sending, allow probes, and close by evidence."""

from dataclasses import replace

import pytest
from django.core.management import call_command
from django.db import transaction

from payments.models import Breaker, Settlement
from payments.payouts import breakers
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
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
    policy = POLICY
    breakers.trip(Cause.NO_FLOAT, reason="none", at=after(0), policy=policy)

    # when
    probed = [second for second in range(0, 121) if claims(after(second))]

    # then
    assert probed == [1, 3, 7, 15, 31, 51, 71, 91, 111]


def test_many_requests_in_doubt_pause_sending() -> None:
    # given
    policy = replace(POLICY, breaker_window=4)
    payouts = [builders.payout(285) for _ in range(4)]

    # when
    for payout, response in zip(
        payouts,
        (payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT, payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT),
        strict=True,
    ):
        (claim,) = sending_claims.claim(
            at=after(0), policy=policy, addresses=ADDRESSES, limit=1, transaction_id=payout.pk
        )
        responses.record(claim, response, at=after(0), policy=policy)

    # then
    assert opened() == {Cause.DOUBT}


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
    breakers.acknowledged(after(2))
    assert deliver_result(attempt, result_body(attempt), after(3)) == "paid"
    stopped = Breaker.objects.get(cause=cause)
    assert (stopped.opened_at, stopped.probe_at, stopped.reason) == (after(0), None, "Look first")

    # when
    by = audit.Actor(user_id=builders.operator().pk, source="console")
    breakers.lift(cause, by=by, reason="Compared with the statement", at=after(4))
    breakers.lift(cause, by=by, reason="Once more", at=after(5))

    # then
    assert [claim.transaction_id for claim in claims(after(6))] == [waiting.pk]
    (entry,) = AuditEntry.objects.filter(action="sending.lift")
    assert (entry.subject, entry.reason, entry.actor_id) == (
        f"breaker:{cause}",
        "Compared with the statement",
        by.user_id,
    )
