"""Responses to POSTed requests, and the states they reach."""

import pytest

from payments.models import Breaker, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts import breakers
from payments.payouts.sending import responses
from testing import builders, payout_steps
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


def test_pause_of_an_unsent_request_doubles_to_the_longest_pause_of_probes(payout: Transaction) -> None:
    # given
    at, pauses = AT, []

    # when
    for _ in range(4):
        sent(payout, payout_steps.NO_CONNECTION, at=at)
        payout.refresh_from_db()
        pauses.append((payout.due_at - at).total_seconds())
        at = payout.due_at

    # then: a payout is due for each probe, however long the outage lasts
    assert pauses == [15, 15, 20, 20]
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


OUR_FAULTS = [
    (
        gateway_errors.Rejected("400.002.02", "Bad Request - Invalid InitiatorName"),
        "credentials",
        "MPESA_INITIATOR_NAME",
    ),
    (gateway_errors.Rejected("400.002.02", "Bad Request - Invalid ResultURL"), "settings", "MPESA_CALLBACK_URL"),
    (gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyA"), "settings", "MPESA_PAYBILL"),
    (gateway_errors.Rejected("404.001.01", "Resource not found"), "settings", "MPESA_BASE_URL"),
    (gateway_errors.Rejected("403.002.1001", "You are not authorized"), "product", "Safaricom"),
]


@pytest.mark.parametrize(("response", "cause", "setting"), OUR_FAULTS, ids=lambda value: str(value)[-30:])
def test_refusal_of_our_field_fails_no_winner(response: payout_steps.Response, cause: str, setting: str) -> None:
    # given
    first, second, third = (builders.payout(285) for _ in range(3))

    # when
    attempt = sent(first, response)

    # then: the payout waits with its id, one breaker names the setting, and one probe leaves at a time
    assert states(first, attempt) == ("PENDING", "WAITING")
    assert attempt.first_sent_at is None
    breaker = Breaker.objects.get(opened_at__isnull=False)
    assert breaker.cause == cause
    assert setting in breaker.reason
    assert claims(after(0.5)) == []
    assert len(claims(after(1))) == 1

    # when: the fault is mended an hour later
    breakers.paid(after(2), at=after(3))
    again = {claim.transaction_id: claim for claim in claims(after(3_600))}

    # then: the same id is sent
    assert again[first.pk].attempt_id == attempt.pk
    assert again.keys() <= {first.pk, second.pk, third.pk}
    assert [key for key, *_ in booked(first)] == [f"send:{attempt.pk}"]


def test_refusal_of_a_payouts_own_field_is_held_if_others_are_accepted(payout: Transaction) -> None:
    # given: M-Pesa refuses this payout's amount, and accepts another payout
    refused = gateway_errors.Rejected("400.002.02", "Bad Request - Invalid Amount")
    attempt = sent(payout, refused)
    assert states(payout, attempt) == ("PENDING", "WAITING")
    sent(builders.payout(100), at=after(1))

    # when
    attempt = sent(payout, refused, at=after(40))

    # then
    assert states(payout, attempt) == ("HELD", "FAILED")
    assert "refuses this request again" in payout.reason
    assert balances(payout)["payable"] == KES_285
    assert list(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True)) == ["settings"]


def test_refusal_of_our_setting_is_never_held(payout: Transaction) -> None:
    # given
    refused = gateway_errors.Rejected("400.002.02", "Bad Request - Invalid ResultURL")
    sent(payout, refused)
    sent(builders.payout(100), at=after(1))

    # when
    attempt = sent(payout, refused, at=after(40))

    # then
    assert states(payout, attempt) == ("PENDING", "WAITING")


@pytest.mark.parametrize("code", ["11", "2006", "2028", "2001", "21", "8006", "1"])
def test_result_code_for_a_fault_of_ours_fails_no_winner(payout: Transaction, code: str) -> None:
    # given
    builders.payout(285)
    attempt = sent(payout)

    # when
    deliver_result(attempt, result_body(attempt, code), after(1))
    assert Breaker.objects.filter(opened_at__isnull=False).count() == 1
    payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), after(1))

    # then: no other payout leaves until the probe, and this payout gets a new id
    assert states(payout, attempt) == ("PENDING", "FAILED")
    assert len(claims(after(2))) <= 1
    assert payout.due_at <= after(2 + 30)


def test_code_tp40153_stops_the_queue_and_leaves_the_money_in_doubt(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    deliver_result(attempt, result_body(attempt, "TP40153"), after(1))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert list(Breaker.objects.filter(opened_at__isnull=False).values_list("cause", flat=True)) == ["credentials"]

    # when: two status queries prove the failure
    payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), after(21))
    payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), after(90))

    # then
    assert states(payout, attempt) == ("PENDING", "FAILED")


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


def test_refusal_of_a_resend_keeps_the_words_of_the_result(payout: Transaction) -> None:
    # given: M-Pesa reported code 2040, did not find the request later, and the request is sent again
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(1))
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(20))
    (claim,) = payout_steps.resends(after(22))

    # when
    refusal = gateway_errors.Rejected("400.002.02", "Bad Request - Invalid ResultURL")
    attempt = payout_steps.put_through(claim, refusal, at=after(24))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.result_code == "2040"
    assert "ResultURL" not in attempt.result_words


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


@pytest.mark.parametrize("number", [1, 2], ids=["one", "in bulk"])
def test_first_question_counts_from_the_post_and_not_from_the_acknowledgement(number: int) -> None:
    # given
    payouts = [builders.payout(285) for _ in range(number)]
    taken = claims(AT)
    assert len(taken) == number

    # when: M-Pesa acknowledges late
    responses.record_all([(claim, payout_steps.ACCEPTED) for claim in taken], at=after(15), policy=payout_steps.POLICY)

    # then
    for payout in payouts:
        attempt = payout.attempts.get()
        assert (attempt.state, attempt.next_query_at) == ("ACCEPTED", after(20))


@pytest.mark.parametrize("number", [1, 2], ids=["one", "in bulk"])
def test_acknowledgement_after_the_result_keeps_only_the_conversation_id(number: int) -> None:
    # given: the results were faster than the acknowledgements
    payouts = [builders.payout(285) for _ in range(number)]
    taken = claims(AT)
    for payout in payouts:
        attempt = payout.attempts.get()
        deliver_result(attempt, result_body(attempt, receipt=f"SKG7{attempt.pk:06d}"), after(1))

    # when
    with nothing_moved():
        acceptance = client.Accepted("AG_" + 100 * "7", "daraja's own")
        responses.record_all([(claim, acceptance) for claim in taken], at=after(2), policy=payout_steps.POLICY)

    # then
    for payout in payouts:
        attempt = payout.attempts.get()
        assert states(payout, attempt) == ("COMPLETED", "PAID")
        assert attempt.conversation_id == "AG_" + 61 * "7"


@pytest.mark.parametrize(
    ("response", "is_known"),
    [(payout_steps.DUPLICATE, True), (payout_steps.READ_TIMEOUT, False), (payout_steps.ACCEPTED, False)],
    ids=["duplicate id", "read timeout", "accepted"],
)
def test_only_a_duplicate_tells_that_mpesa_knows_the_id(
    payout: Transaction, response: payout_steps.Response, is_known: bool
) -> None:
    assert (sent(payout, response).known_at is not None) == is_known


def test_late_response_to_an_earlier_post_of_the_id_changes_nothing(payout: Transaction) -> None:
    # given: the id is being sent again, because M-Pesa did not find it
    (first,) = claims()
    attempt = payout_steps.put_through(first, payout_steps.READ_TIMEOUT)
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(20))
    (again,) = payout_steps.resends(after(22))

    # when
    with nothing_moved():
        payout_steps.put_through(first, payout_steps.ACCEPTED, after(23))

    # then
    assert payout.attempts.get().state == "SENDING"
    assert payout_steps.put_through(again, payout_steps.ACCEPTED, after(24)).state == "ACCEPTED"
