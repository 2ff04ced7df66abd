"""Responses to POSTed requests, and the states they reach."""

import pytest

from payments.models import Transaction
from payments.mpesa import gateway_errors
from testing import payout_steps
from testing.builders import AT, nothing_moved
from testing.payout_steps import (
    KES_285,
    after,
    balances,
    booked,
    claims,
    deliver_result,
    question,
    result_body,
    sent,
    states,
)

pytestmark = pytest.mark.django_db


def test_accepted_request_is_not_paid(payout: Transaction) -> None:
    # when
    attempt = sent(payout, at=AT)

    # then
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert attempt.conversation_id == "AG_20260216_1"
    assert attempt.next_query_at == after(20)
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize(
    "response", [payout_steps.READ_TIMEOUT, payout_steps.DUPLICATE], ids=["read timeout", "duplicate id"]
)
def test_request_that_may_have_left_is_in_doubt(payout: Transaction, response: gateway_errors.GatewayError) -> None:
    # when
    attempt = sent(payout, response)

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert (attempt.doubted_at, attempt.next_query_at, attempt.resend_at) == (AT, after(20), None)
    assert balances(payout) == {"in_flight": KES_285}
    assert claims(after(100_000)) == []


def test_unsent_request_waits_and_is_sent_again_with_its_id(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)
    waiting = states(payout, attempt)
    due_at = payout.due_at

    # when
    (again,) = claims(after(15))

    # then
    assert waiting == ("PENDING", "WAITING")
    assert due_at == after(15)
    assert (attempt.first_sent_at, attempt.next_query_at) == (None, None)
    assert again.originator_conversation_id == attempt.originator_conversation_id
    assert again.attempt_id == attempt.pk
    attempt = payout_steps.put_through(again, at=after(16))
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert attempt.first_sent_at == after(15)
    assert [key for key, *_ in booked(payout)] == [f"send:{attempt.pk}"]


def test_pause_of_an_unsent_request_doubles_to_five_minutes(payout: Transaction) -> None:
    # given
    at, pauses = AT, []

    # when
    for _ in range(7):
        sent(payout, payout_steps.NO_CONNECTION, at=at)
        payout.refresh_from_db()
        pauses.append((payout.due_at - at).total_seconds())
        at = payout.due_at

    # then
    assert pauses == [15, 15, 30, 60, 120, 240, 300]
    assert payout.attempts.count() == 1


def test_unsent_request_does_not_count_towards_the_resend_horizon(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    (again,) = claims(after(86_000))

    # then
    assert again.attempt_id == attempt.pk
    attempt.refresh_from_db()
    assert attempt.first_sent_at == after(86_000)


def test_throttled_request_keeps_its_id_and_waits_as_told(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.THROTTLED)

    # then
    assert states(payout, attempt) == ("PENDING", "WAITING")
    assert payout.due_at == after(40)
    assert claims(after(39)) == []
    assert [claim.originator_conversation_id for claim in claims(after(40))] == [f"{payout.external_ref}-1"]


def test_throttled_request_after_the_horizon_is_only_asked_about(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.THROTTLED)

    # when
    late = claims(after(1_800))

    # then
    assert late == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert question(attempt, after(1_800)).originator_conversation_id == attempt.originator_conversation_id
    assert balances(payout) == {"in_flight": KES_285}


def test_failed_connection_after_a_throttled_post_keeps_the_horizon(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.THROTTLED)
    sent(payout, payout_steps.NO_CONNECTION, at=after(40))

    # then
    attempt.refresh_from_db()
    assert attempt.first_sent_at == AT
    assert claims(after(1_800)) == []


def test_outright_rejection_fails_the_payout(payout: Transaction) -> None:
    # when
    attempt = sent(payout, payout_steps.REJECTED)

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert payout.failed_at == AT
    assert payout.reason.startswith("400.002.02 ")
    assert booked(payout) == [
        (f"send:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"return:{attempt.pk}", "in_flight", "payable", KES_285),
    ]
    assert balances(payout) == {"payable": KES_285}


@pytest.mark.parametrize(
    "response",
    [
        payout_steps.REJECTED,
        payout_steps.NO_CONNECTION,
        payout_steps.THROTTLED,
        payout_steps.DUPLICATE,
        payout_steps.READ_TIMEOUT,
    ],
    ids=["rejected", "no connection", "throttled", "duplicate", "read timeout"],
)
def test_response_to_a_resend_in_doubt_decides_nothing(
    payout: Transaction, response: gateway_errors.GatewayError
) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(20))
    (claim,) = payout_steps.resends(after(22))

    # when
    attempt = payout_steps.put_through(claim, response, at=after(24))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.first_sent_at == AT
    assert balances(payout) == {"in_flight": KES_285}
    assert claims(after(100_000)) == []
    assert deliver_result(attempt, result_body(attempt), after(25)) == "paid"


def test_rejection_after_a_queue_timeout_does_not_fail(payout: Transaction) -> None:
    # given
    (claim,) = claims()
    payout_steps.deliver_timeout(claim.token, after(1))

    # when
    attempt = payout_steps.put_through(claim, payout_steps.REJECTED, at=after(2))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_response_recorded_twice_changes_nothing(payout: Transaction) -> None:
    # given
    (claim,) = claims()
    payout_steps.put_through(claim, payout_steps.REJECTED, at=after(1))

    # then
    with nothing_moved():
        payout_steps.put_through(claim, payout_steps.REJECTED, at=after(2))
        payout_steps.put_through(claim, payout_steps.ACCEPTED, at=after(3))
