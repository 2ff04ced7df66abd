"""What a review found: late, large and strange evidence, while another request is under way."""

import json

import pytest

from payments.models import Attempt, Transaction
from payments.payouts.operations import actions, decisions
from payments.payouts.sending import responses
from testing import builders, payout_steps
from testing.payout_steps import (
    NO_CONNECTION,
    POLICY,
    READ_TIMEOUT,
    after,
    ask_and_hear,
    balances,
    claims,
    hear,
    not_found_body,
    question,
    resends,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE, Actor

pytestmark = pytest.mark.django_db
PRODUCTION = builders.policy(production=True)


def refused_and_retried(amount: int = 285) -> tuple[Transaction, Attempt]:
    payout = builders.payout(amount)
    first = payout_steps.failed(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(20))
    return payout, first


def test_a_second_request_that_did_not_leave_is_not_sent_after_the_first_was_paid() -> None:
    # given
    payout, first = refused_and_retried()
    (claim,) = claims(after(30))
    hear(first, result_body(first), after(31))

    # when
    responses.record(claim, NO_CONNECTION, at=after(32), policy=POLICY)

    # then
    assert claims(after(600)) == []
    assert states(payout, first) == ("COMPLETED", "PAID")
    assert balances(payout)["mpesa_utility"] == -285


@pytest.mark.parametrize("not_found_first", [True, False])
def test_a_doubtful_second_request_is_not_sent_again_after_the_first_was_paid(not_found_first: bool) -> None:
    # given
    payout, first = refused_and_retried()
    second = sent(payout, READ_TIMEOUT, after(30))

    # when
    if not_found_first:
        ask_and_hear(second, not_found_body(), after(60))
        hear(first, result_body(first), after(62))
    else:
        hear(first, result_body(first), after(35))
        ask_and_hear(second, not_found_body(), after(60))

    # then
    assert resends(after(63)) == []
    assert states(payout, second) == ("HELD", "IN_DOUBT")


def test_a_large_late_payment_stops_the_next_request_until_it_is_asked_about() -> None:
    payout, first = refused_and_retried(60_000)
    hear(first, result_body(first), after(25))
    assert claims(after(30)) == []


def test_a_large_result_that_says_paid_is_never_overruled_by_queries() -> None:
    # given
    payout = builders.payout(60_000)
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(2))

    # when
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(3))
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(90))

    # then
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")


def test_a_receipt_that_comes_after_the_proof_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    body = json.loads(status_body(attempt))
    parameters = body["Result"]["ResultParameters"]
    parameters["ResultParameter"] = [one for one in parameters["ResultParameter"] if one["Key"] != "ReceiptNo"]
    ask_and_hear(attempt, json.dumps(body).encode(), after(30))

    # when
    hear(attempt, result_body(attempt), after(33))

    # then
    attempt.refresh_from_db()
    payout.refresh_from_db()
    assert (attempt.receipt, payout.receipt) == (payout_steps.RECEIPT, payout_steps.RECEIPT)
    assert "second receipt" not in caplog.text


def test_answers_from_strange_addresses_fail_nothing() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)

    # when
    for seconds in (30, 95, 300):
        asked = question(attempt, after(seconds), PRODUCTION)
        body = status_body(attempt, "Failed")
        payout_steps.deliver("status", asked.token, body, after(seconds), policy=PRODUCTION, trusted=False)

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_a_payment_that_a_strange_address_tells_of_needs_a_second_voice() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)

    # when
    told = []
    for seconds in (30, 95):
        asked = question(attempt, after(seconds), PRODUCTION)
        payout_steps.deliver(
            "status", asked.token, status_body(attempt), after(seconds), policy=PRODUCTION, trusted=False
        )
        told.append(states(payout, attempt))

    # then
    assert told == [("PROCESSING", "IN_DOUBT"), ("COMPLETED", "PAID")]


def test_a_claim_that_comes_a_day_later_is_asked_about_for_a_day() -> None:
    # given
    payout = builders.payout(60_000)
    first = payout_steps.failed(payout)
    hear(first, result_body(first), after(86_500))

    # when
    question(first, after(86_501))

    # then
    with pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(86_502))


def test_an_old_request_that_is_asked_about_does_not_hold_the_new_one() -> None:
    # given
    payout = builders.payout(60_000)
    first = payout_steps.failed(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(80_000))
    second = sent(payout, at=after(86_410))
    hear(first, result_body(first), after(86_411))

    # when
    question(first, after(86_412))

    # then
    assert states(payout, second) == ("PROCESSING", "ACCEPTED")


# --- a person's word -------------------------------------------------------------------------------------------------


def held(amount: int = 285) -> tuple[Transaction, Attempt]:
    payout = builders.payout(amount)
    attempt = sent(payout, READ_TIMEOUT)
    question(attempt, after(86_400))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    return payout, attempt


def decide(payout: Transaction, by: list[int], receipt: str = "", grounds: str = "statement of 17 February") -> None:
    at, people = after(90_000), [Actor(pk, "192.0.2.1") for pk in by]
    decisions.decide(transaction_id=payout.pk, receipt=receipt, grounds=grounds, by=people, at=at, policy=POLICY)


def test_a_person_with_a_statement_closes_a_held_payout_as_paid() -> None:
    payout, attempt = held()
    decide(payout, [builders.operator().pk], receipt="SGL12AB34C")
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert payout.receipt == "SGL12AB34C"
    assert balances(payout)["mpesa_utility"] == -285


def test_a_person_with_a_statement_closes_a_held_payout_as_not_paid() -> None:
    payout, attempt = held()
    decide(payout, [builders.operator().pk])
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": 285}


def test_a_large_held_payout_takes_two_people_and_their_grounds() -> None:
    # given
    payout, attempt = held(50_000)
    one, two = builders.operator().pk, builders.operator().pk

    # then
    for by, grounds in (([one], "statement"), ([one, one], "statement"), ([one, two], " ")):
        with pytest.raises(decisions.NotToBeDecided), builders.nothing_moved():
            decide(payout, by, receipt="SGL12AB34C", grounds=grounds)
    decide(payout, [one, two], receipt="SGL12AB34C")
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_only_a_held_payout_is_decided_by_a_person() -> None:
    payout = builders.payout(285)
    attempt = sent(payout)
    with pytest.raises(decisions.NotToBeDecided), builders.nothing_moved():
        decide(payout, [builders.operator().pk], receipt="SGL12AB34C")
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")


def test_two_words_of_one_answer_from_a_stranger_and_from_m_pesa_prove_nothing_and_it_is_asked_again() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    asked = question(attempt, after(30), PRODUCTION)
    payout_steps.deliver("status", asked.token, status_body(attempt), after(31), policy=PRODUCTION, trusted=False)

    # when
    said = payout_steps.answer(asked, status_body(attempt, "Failed"), after(32), PRODUCTION)

    # then
    assert said == "in doubt: one status query says failed, a second one is due"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at == after(90)


def test_what_m_pesa_answered_is_not_unsaid_by_a_stranger() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    asked = question(attempt, after(30), PRODUCTION)
    payout_steps.answer(asked, status_body(attempt, "Failed"), after(31), PRODUCTION)

    # when
    payout_steps.deliver("status", asked.token, status_body(attempt), after(32), policy=PRODUCTION, trusted=False)

    # then
    assert attempt.queries.get().verdict == "failed"


@pytest.mark.parametrize("said", ["not found", "Pending"])
def test_beside_a_claim_that_it_was_paid_a_stranger_can_only_have_us_ask_again(said: str) -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    hear(attempt, result_body(attempt), after(25), policy=PRODUCTION, trusted=False)
    asked = question(attempt, after(26), PRODUCTION)
    body = not_found_body() if said == "not found" else status_body(attempt, said)

    # when
    payout_steps.deliver("status", asked.token, body, after(27), policy=PRODUCTION, trusted=False)

    # then
    assert resends(after(28), PRODUCTION) == []
    assert attempt.queries.get().verdict == ""


def test_a_claim_that_it_was_paid_is_not_overruled_by_a_claimed_failure_and_one_answer() -> None:
    # given
    payout = builders.payout(60_000)
    attempt = sent(payout)
    hear(attempt, result_body(attempt), after(5))
    hear(attempt, result_body(attempt, 2040), after(6))

    # when
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(7))
    in_between = states(payout, attempt)
    ask_and_hear(attempt, status_body(attempt, "Failed"), after(140))

    # then
    assert in_between == ("PROCESSING", "IN_DOUBT")
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert attempt.receipt == payout_steps.RECEIPT


def test_the_horizon_of_a_request_that_had_never_left_begins_when_it_goes_again() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, NO_CONNECTION)
    hear(attempt, result_body(attempt), after(5), policy=PRODUCTION, trusted=False)
    ask_and_hear(attempt, not_found_body(), after(6), PRODUCTION)
    (again,) = resends(after(10), PRODUCTION)
    payout_steps.put_through(again, READ_TIMEOUT, after(10), PRODUCTION)

    # when
    ask_and_hear(attempt, not_found_body(), after(10 + 1_801), PRODUCTION)

    # then
    attempt.refresh_from_db()
    assert attempt.first_sent_at == after(10)
    assert resends(after(10 + 1_802), PRODUCTION) == []
