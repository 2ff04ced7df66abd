"""Application of evidence: results and timeouts, the states they reach, and the transfers they book."""

from collections.abc import Callable

import pytest

from payments.models import Attempt, Callback, Transaction
from payments.policy import Policy
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.payout_steps import (
    ADDRESSES,
    CHARGE,
    KES_285,
    MISMATCHES,
    PRODUCTION,
    RECEIPT,
    after,
    answer,
    ask_and_answer,
    balances,
    booked,
    deliver_result,
    nothing_moved_but_callbacks,
    payment_transfers,
    question,
    refused,
    result_body,
    sent,
    states,
    status_body,
)

pytestmark = pytest.mark.django_db


def test_matching_result_pays(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt), after(3))

    # then
    assert outcome == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (payout.receipt, payout.completed_at, payout.reason) == (RECEIPT, after(3), "")
    assert (attempt.receipt, attempt.closed_at, attempt.next_query_at) == (RECEIPT, after(3), None)
    assert booked(payout) == payment_transfers(payout, attempt)
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}
    payout.user.refresh_from_db()
    assert payout.user.balance == 0


def test_result_before_the_acknowledgement_pays_once(payout: Transaction) -> None:
    # given
    (claim,) = payout_steps.claims()
    attempt = Attempt.objects.get(pk=claim.attempt_id)
    deliver_result(attempt, result_body(attempt), after(1))

    # when
    attempt = payout_steps.put_through(claim, at=after(2))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.conversation_id == "AG_20260216_1"
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.parametrize(
    "response", [payout_steps.READ_TIMEOUT, payout_steps.REJECTED, payout_steps.NO_CONNECTION, payout_steps.DUPLICATE]
)
def test_response_after_the_result_changes_nothing(payout: Transaction, response: payout_steps.Response) -> None:
    # given
    (claim,) = payout_steps.claims()
    attempt = Attempt.objects.get(pk=claim.attempt_id)
    deliver_result(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved():
        payout_steps.put_through(claim, response, at=after(5))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_mismatching_result_moves_nothing_and_is_asked_about(
    payout: Transaction, alarms: Callable[[], list[str]], change: dict[str, object]
) -> None:
    # given
    attempt = sent(payout)
    before = booked(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt, **change), after(2))

    # then
    assert outcome is not None
    assert outcome.startswith("mismatch: ")
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert booked(payout) == before
    assert len(alarms()) == 1
    assert "Mismatch" in alarms()[0]
    assert attempt.next_query_at == after(2)


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_matching_result_after_a_mismatch_pays(payout: Transaction, change: dict[str, object]) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, **change), after(2))

    # when
    deliver_result(attempt, result_body(attempt), after(3))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.parametrize("shown", ["254{1}****{2}", "0{1}***{2}", "0{1}{2}", "+254{1}***{2}", "{full}"])
def test_compatible_masked_phone_pays(payout: Transaction, shown: str) -> None:
    # given
    attempt = sent(payout)
    number = attempt.phone_number
    phone = shown.replace("{1}{2}", number[3:]).format("", number[3:6], number[-3:], full=number)

    # when
    deliver_result(attempt, result_body(attempt, phone=phone))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_result_replayed_at_another_address_pays_nothing() -> None:
    # given
    payout, other = builders.payout(285), builders.payout(285)
    genuine, victim = sent(payout), sent(other)
    body = result_body(genuine)

    # when
    outcome = deliver_result(victim, body, after(1))

    # then
    assert outcome == "mismatch: the result names another request"
    assert states(other, victim) == ("PROCESSING", "ACCEPTED")
    assert [key for key, *_ in booked(other)] == [f"send:{victim.pk}"]


def assert_only_reported(payout: Transaction, attempt: Attempt, outcome: str | None) -> None:
    """Assert that a callback is stored as a report: nothing is booked, and a status query is due now."""
    assert outcome == "reported paid: a status query must confirm it"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert [key for key, *_ in booked(payout)] == [f"send:{attempt.pk}"]
    assert attempt.next_query_at == after(2)


@pytest.mark.parametrize("missing", ["TransactionAmount", "TransactionReceipt", "ReceiverPartyPublicName"])
def test_incomplete_result_pays_after_a_status_query(payout: Transaction, missing: str) -> None:
    # given
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt, without=[missing]), after(2))

    # then
    assert_only_reported(payout, attempt, outcome)
    assert ask_and_answer(attempt, status_body(attempt), after(2)) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


def test_large_payment_needs_a_status_query() -> None:
    # given
    payout = builders.payout(50_000)
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt), after(2))

    # then
    assert_only_reported(payout, attempt, outcome)
    assert ask_and_answer(attempt, status_body(attempt), after(2)) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_payment_below_the_threshold_needs_no_status_query() -> None:
    # given
    payout = builders.payout(49_999)
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt), after(2))

    # then
    assert outcome == "paid"


def test_untrusted_result_in_production_needs_a_status_query(payout: Transaction) -> None:
    # given
    attempt = sent(payout, policy=PRODUCTION)

    # when
    outcome = deliver_result(attempt, result_body(attempt), after(2), policy=PRODUCTION, trusted=False)

    # then
    assert_only_reported(payout, attempt, outcome)
    assert ask_and_answer(attempt, status_body(attempt), after(2), PRODUCTION) == "paid"
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.parametrize(("policy", "trusted"), [(PRODUCTION, True), (payout_steps.POLICY, False)])
def test_trusted_result_or_test_environment_pays(payout: Transaction, policy: Policy, trusted: bool) -> None:
    # given
    attempt = sent(payout, policy=policy)

    # when
    outcome = deliver_result(attempt, result_body(attempt), policy=policy, trusted=trusted)

    # then
    assert outcome == "paid"


def test_failure_code_alone_does_not_fail(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt, 2040), after(2))

    # then
    assert outcome == "reported failed: a status query must confirm it"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert (attempt.result_code, attempt.next_query_at) == ("2040", after(2))
    assert balances(payout) == {"in_flight": KES_285}


DOUBTFUL_CODES = ["15", "41", "17", "26", "34", "49", "100000000", "4711", "", "SFC_XX"]


@pytest.mark.parametrize("code", DOUBTFUL_CODES)
def test_indefinite_code_leaves_the_money_in_doubt(payout: Transaction, code: str) -> None:
    # given
    attempt = sent(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt, code), after(2))

    # then
    assert outcome is not None
    assert outcome.startswith("in doubt")
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at == after(20)
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("code", DOUBTFUL_CODES)
def test_indefinite_code_is_no_second_source_for_a_failed_query(payout: Transaction, code: str) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, code), after(2))

    # when
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(20))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


@pytest.mark.parametrize("code", [0, 2040])
def test_result_that_is_not_final_proves_nothing(payout: Transaction, code: int) -> None:
    # given
    attempt = sent(payout)

    # when
    deliver_result(attempt, result_body(attempt, code, result_type=1), after(2))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.result_code == ""
    assert balances(payout) == {"in_flight": KES_285}


def test_queue_timeout_proves_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)

    # when
    outcome = payout_steps.deliver_timeout(ADDRESSES.token(attempt.originator_conversation_id), after(2))

    # then
    assert outcome == "in doubt: a queue timeout proves nothing"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}
    assert deliver_result(attempt, result_body(attempt), after(4)) == "paid"


def test_queue_timeout_after_payment_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(1))

    # when
    with nothing_moved_but_callbacks():
        outcome = payout_steps.deliver_timeout(ADDRESSES.token(attempt.originator_conversation_id), after(2))

    # then
    assert outcome == "PAID already"


def test_queue_timeout_of_a_query_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    query = question(attempt, after(20))

    # when
    with nothing_moved_but_callbacks():
        payout_steps.deliver_timeout(query.token, after(25))

    # then
    assert Callback.objects.get().query_id == query.query_id
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_failure_report_on_an_unsent_request_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.NO_CONNECTION)

    # when
    with nothing_moved_but_callbacks():
        outcome = deliver_result(attempt, result_body(attempt, 2040), after(2))

    # then
    assert outcome == "ignored: this request never left us"
    assert states(payout, attempt) == ("PENDING", "WAITING")


def test_failure_after_payment_changes_nothing(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    attempt = sent(payout)
    early = question(attempt, after(20))
    deliver_result(attempt, result_body(attempt), after(21))

    # when
    with nothing_moved_but_callbacks():
        outcomes = [
            deliver_result(attempt, result_body(attempt, 2040), after(22)),
            answer(early, status_body(attempt, "Failed"), after(23)),
        ]

    # then
    assert outcomes == ["still paid: a failure after proof of payment changes nothing", "PAID already"]
    assert len(alarms()) == 1
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_repeated_failure_changes_nothing(payout: Transaction) -> None:
    # given
    attempt = refused(payout)

    # when
    with nothing_moved_but_callbacks():
        outcome = deliver_result(attempt, result_body(attempt, 2040), after(60))

    # then
    assert outcome == "failed already"


def test_only_a_trusted_paid_report_survives_a_later_failure_report() -> None:
    # given
    large, small = sent(builders.payout(50_000)), sent(builders.payout(285), policy=PRODUCTION)

    # when
    deliver_result(large, result_body(large), after(2))
    deliver_result(small, result_body(small), after(2), policy=PRODUCTION, trusted=False)
    reports = [Attempt.objects.get(pk=attempt.pk).paid_report for attempt in (large, small)]
    for attempt in (large, small):
        deliver_result(attempt, result_body(attempt, 2040), after(3), policy=PRODUCTION)

    # then
    assert reports == ["trusted", "untrusted"]
    columns = Attempt.objects.order_by("pk").values_list("result_code", "paid_report")
    assert list(columns) == [("0", "trusted"), ("2040", "")]
