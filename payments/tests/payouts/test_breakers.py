"""What stops the sending, lets a probe through, and starts it again; the canary of a release; asking before a retry."""

from dataclasses import replace
from datetime import timedelta

import pytest
from django.core.management import call_command

from payments.models import Breaker, Settlement, Transaction
from payments.payouts import breakers
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from testing import builders, payout_steps
from testing.payout_steps import ADDRESSES, POLICY, after, ask_and_hear, claims, hear, result_body, sent, status_body
from users.audit import MACHINE

pytestmark = pytest.mark.django_db

Cause = Breaker.Cause


def opened() -> set[str]:
    return set(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True))


@pytest.mark.parametrize(
    ("said", "cause"),
    [(payout_steps.NO_CONNECTION, Cause.NETWORK), (payout_steps.THROTTLED, Cause.THROTTLE)],
    ids=str,
)
def test_what_is_wrong_on_the_way_pauses_all_until_an_acknowledgement(said: payout_steps.Said, cause: str) -> None:
    # given
    first, second, third = (builders.payout(285) for _ in range(3))
    sent(first, said)

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
def test_a_fault_inside_mpesa_pauses_all_until_a_payment(code: int, cause: str) -> None:
    # given
    first, second = builders.payout(285), builders.payout(285)
    attempt = sent(first)

    # when: the word of one callback is enough to pause, though not to fail
    hear(attempt, result_body(attempt, code), after(1))

    # then
    assert opened() == {cause}
    assert payout_steps.states(first, attempt) == ("PROCESSING", "IN_DOUBT")
    assert claims(after(1.5)) == []
    probe = sent(second, at=after(2))
    assert opened() == {cause}  # An acknowledgement proves nothing about the float.
    hear(probe, result_body(probe), after(3))
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


def test_many_doubts_among_the_latest_requests_pause_the_sending() -> None:
    # given
    policy = replace(POLICY, breaker_window=4)
    made = [builders.payout(285) for _ in range(4)]

    # when
    for payout, said in zip(
        made,
        (payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT, payout_steps.ACCEPTED, payout_steps.READ_TIMEOUT),
        strict=True,
    ):
        (claim,) = sending_claims.claim(
            at=after(0), policy=policy, addresses=ADDRESSES, limit=1, transaction_id=payout.pk
        )
        responses.record(claim, said, at=after(0), policy=policy)

    # then
    assert opened() == {Cause.DOUBT}


def test_the_switch_stops_sending_and_nothing_else() -> None:
    # given
    under_way, waiting = builders.payout(285), builders.payout(285)
    attempt = sent(under_way)
    call_command("sending", "off", reason="a rumour")

    # then: nothing leaves, however long; a result is applied, and opens nothing
    assert claims(after(100_000)) == []
    assert hear(attempt, result_body(attempt), after(1)) == "paid"
    assert opened() == {Cause.SWITCH}
    on = builders.market()
    builders.bet(on, builders.member(100), "Yes", 100)
    builders.resolve(on)
    builders.settle(on)
    assert Settlement.objects.get(market=on).state == "SETTLED"

    # when
    call_command("sending", "on")

    # then
    assert [claim.transaction_id for claim in claims(after(100_000))][0] == waiting.pk


def test_the_setting_stops_sending() -> None:
    builders.payout(285)
    assert sending_claims.claim(at=after(1), policy=replace(POLICY, paused=True), addresses=ADDRESSES, limit=1) == []


# --- the canary ------------------------------------------------------------------------------------------------------

CANARY = replace(POLICY, canary=(1, 3))


def release(winners: int) -> Settlement:
    bets = [(builders.member(100), "Yes", 100) for _ in range(winners)]
    return builders.settled_market(bets, "Yes", policy=CANARY).settlements.get()


def claimed(limit: int = 100) -> list[sending_claims.Claim]:
    return sending_claims.claim(at=after(0), policy=CANARY, addresses=ADDRESSES, limit=limit)


def say(claim: sending_claims.Claim, said: payout_steps.Said) -> None:
    responses.record(claim, said, at=after(0), policy=CANARY)


def test_a_release_is_one_then_a_few_then_the_rest() -> None:
    # given
    release(10)

    # when, then
    (first,) = claimed()
    assert claimed() == []
    say(first, payout_steps.ACCEPTED)
    few = claimed()
    assert len(few) == 3
    for claim in few[:2]:
        say(claim, payout_steps.ACCEPTED)
    assert claimed() == []
    say(few[2], payout_steps.ACCEPTED)
    assert len(claimed()) == 6


@pytest.mark.parametrize("said", [payout_steps.REJECTED, payout_steps.READ_TIMEOUT], ids=str)
def test_a_canary_that_is_not_acknowledged_gives_its_place_to_another(said: payout_steps.Said) -> None:
    # given
    release(10)
    (first,) = claimed()

    # when
    say(first, said)

    # then
    assert len(claimed()) == 1


def test_a_lost_acknowledgement_does_not_stall_a_release_that_pays() -> None:
    # given
    release(10)
    (first,) = claimed()
    say(first, payout_steps.READ_TIMEOUT)
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when
    hear(attempt, result_body(attempt), after(1), policy=CANARY)

    # then
    assert len(claimed()) == 3


def test_a_callback_that_is_faster_than_the_answer_does_not_stall_the_release() -> None:
    # given
    release(10)
    (first,) = claimed()
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when: it fails by proof before the acknowledgement is written down
    hear(attempt, result_body(attempt, 2040), after(1), policy=CANARY)
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(1))
    say(first, payout_steps.ACCEPTED)

    # then
    assert payout_steps.states(Transaction.objects.get(pk=first.transaction_id), attempt) == ("FAILED", "FAILED")
    assert len(claimed()) == 3


def test_a_canary_killed_before_its_answer_does_not_stall_the_release() -> None:
    # given
    release(10)
    claimed()

    # when
    status_queries.ask(at=after(20), policy=CANARY, addresses=ADDRESSES, limit=10)

    # then
    assert len(claimed()) == 1


# --- asking before a retry -------------------------------------------------------------------------------------------


def refused_by_mpesa(payout: Transaction) -> payout_steps.Attempt:
    attempt = sent(payout)
    hear(attempt, result_body(attempt, 2040), after(2))
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(2))
    return attempt


def test_a_retry_asks_about_the_request_that_failed_before_another_leaves() -> None:
    # given
    payout = builders.payout(285)
    attempt = refused_by_mpesa(payout)

    # when
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # then
    assert claims(after(60)) == []
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(61))
    assert [claim.originator_conversation_id for claim in claims(after(61))] == [f"{payout.external_ref}-2"]


def test_a_retry_of_what_was_paid_after_all_sends_nothing() -> None:
    # given
    payout = builders.payout(285)
    attempt = refused_by_mpesa(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # when
    ask_and_hear(attempt, status_body(attempt, "Completed"), after(61))

    # then
    assert payout_steps.states(payout, attempt) == ("COMPLETED", "PAID")
    assert claims(after(10_000)) == []


def test_a_retry_whose_question_is_not_answered_goes_on_after_one_gap() -> None:
    # given
    payout = builders.payout(285)
    refused_by_mpesa(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))
    status_queries.ask(at=after(61), policy=POLICY, addresses=ADDRESSES, limit=10)

    # when
    later = after(61) + timedelta(hours=1)
    again = status_queries.ask(at=later, policy=POLICY, addresses=ADDRESSES, limit=10)

    # then
    assert again == []
    assert len(claims(later)) == 1
