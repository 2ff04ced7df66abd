"""Rules of evidence: answers to status queries."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from payments.models import Callback, Transaction
from testing import builders, payout_steps
from testing.builders import AT
from testing.payout_steps import (
    KES_285,
    MISMATCHES,
    NO_CONNECTION,
    PRODUCTION,
    READ_TIMEOUT,
    after,
    answer,
    ask_and_answer,
    balances,
    booked,
    deliver_result,
    not_found_body,
    nothing_moved_but_callbacks,
    payment_transfers,
    question,
    resends,
    result_body,
    sent,
    states,
    status_body,
)

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_mismatching_answer_moves_nothing(
    payout: Transaction, alarms: Callable[[], list[str]], change: dict[str, object]
) -> None:
    # given
    attempt = sent(payout)
    query = question(attempt, after(20))

    # when
    with nothing_moved_but_callbacks():
        outcome = answer(query, status_body(attempt, **change), after(21))

    # then
    assert outcome is not None
    assert outcome.startswith("mismatch: ")
    assert len(alarms()) == 1
    assert attempt.queries.get().verdict == ""
    assert answer(query, status_body(attempt), after(22)) == "paid"
    assert booked(payout) == payment_transfers(payout, attempt)


def test_large_paid_result_denied_by_queries_is_held() -> None:
    # given
    payout = builders.payout(50_000)
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(2))

    # when
    first = ask_and_answer(attempt, status_body(attempt, "Failed"), after(2))
    second = ask_and_answer(attempt, status_body(attempt, "Failed"), after(62))

    # then
    assert first == "in doubt: one status query says failed, a second query is due"
    assert second == "held: the result says paid, the queries say failed"
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert balances(payout) == {"in_flight": Decimal("50000.00")}


def test_failure_code_and_agreeing_query_fail_the_payout(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(2))

    # when
    outcome = ask_and_answer(attempt, status_body(attempt, "Failed"), after(2))

    # then
    assert outcome == "failed: 2040 Refused with 2040."
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert (payout.failed_at, payout.reason) == (after(3), "2040 Refused with 2040.")
    assert booked(payout) == [
        (f"send:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"return:{attempt.pk}", "in_flight", "payable", KES_285),
    ]
    assert balances(payout) == {"payable": KES_285}


def test_failure_code_after_the_query_counts(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(20))

    # when
    deliver_result(attempt, result_body(attempt, 2040), after(22))
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(22))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


def test_failure_code_contradicted_by_a_query_pays(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(2))

    # when
    outcome = ask_and_answer(attempt, status_body(attempt), after(2))

    # then
    assert outcome == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.parametrize("text", ["Failed", "Cancelled", "Declined", "Expired", "FAILED"])
def test_two_agreeing_queries_apart_in_time_fail_the_payout(payout: Transaction, text: str) -> None:
    # given
    attempt = sent(payout)
    first = ask_and_answer(attempt, status_body(attempt, text), after(20))

    # when
    second = ask_and_answer(attempt, status_body(attempt, text), after(80))

    # then
    assert first == "in doubt: one status query says failed, a second query is due"
    assert second == "failed: M-Pesa's records say it failed"
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


def test_two_queries_within_the_gap_do_not_fail(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(20))
    deliver_result(attempt, result_body(attempt, amount=1), after(30))  # A mismatch makes the next query due now.

    # when
    outcome = ask_and_answer(attempt, status_body(attempt, "Failed"), after(30))

    # then
    assert outcome == "in doubt: one status query says failed, a second query is due"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at == after(80)
    assert balances(payout) == {"in_flight": KES_285}


def test_query_answered_twice_is_one_source(payout: Transaction) -> None:
    # given
    attempt = sent(payout)
    query = question(attempt, after(20))

    # when
    answer(query, status_body(attempt, "Failed"), after(21))
    answer(query, status_body(attempt, "Failed") + b" ", after(200))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("first", ["not found", "pending"])
def test_failed_as_second_answer_to_a_query_counts(payout: Transaction, first: str) -> None:
    # given
    attempt = sent(payout)
    query = question(attempt, after(20))
    answer(query, not_found_body() if first == "not found" else status_body(attempt, "Pending"), after(21))

    # when
    outcome = answer(query, status_body(attempt, "Failed"), after(22))

    # then
    assert outcome is not None
    assert outcome.startswith("in doubt")
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert Callback.objects.filter(applied_at=None).count() == 0


@pytest.mark.parametrize("text", ["Authorized", "Pending", "", "Unheard of"])
def test_status_that_is_not_final_proves_nothing(payout: Transaction, text: str) -> None:
    # given
    attempt = sent(payout)

    # when
    for seconds in (20, 80, 200):
        ask_and_answer(attempt, status_body(attempt, text), after(seconds))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("code", [49, "SFC_IC0003"])
def test_not_found_within_the_horizon_resends_the_id(payout: Transaction, code: int | str) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)

    # when
    outcome = ask_and_answer(attempt, not_found_body(code), after(20))
    (claim,) = payout_steps.resends(after(22))
    attempt = payout_steps.put_through(claim, at=after(23))

    # then
    assert outcome == "not found: the same request is sent again"
    assert claim.originator_conversation_id == f"{payout.external_ref}-1"
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert (attempt.posted_at, attempt.first_sent_at, attempt.resend_at) == (after(22), AT, None)
    assert [key for key, *_ in booked(payout)] == [f"send:{attempt.pk}"]
    assert payout_steps.resends(after(24)) == []
    assert deliver_result(attempt, result_body(attempt), after(25)) == "paid"
    assert booked(payout) == payment_transfers(payout, attempt)


def test_not_found_after_the_horizon_does_not_resend(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)

    # when
    outcome = ask_and_answer(attempt, not_found_body(), after(1_800))

    # then
    assert outcome == "in doubt: not_found proves nothing"
    assert payout_steps.resends(after(1_802)) == []
    assert payout_steps.claims(after(90_000)) == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_resend_claimed_after_the_horizon_does_not_leave(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_answer(attempt, not_found_body(), after(1_790))

    # when
    late = payout_steps.resends(after(1_800))

    # then
    assert late == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.resend_at is None


def test_not_found_after_a_reported_failure_resends_the_id(payout: Transaction) -> None:
    # given: a failure report that may be forged, about a request that never arrived
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(2))

    # when
    outcome = ask_and_answer(attempt, not_found_body(), after(2))

    # then
    assert outcome == "not found: the same request is sent again"
    (claim,) = payout_steps.resends(after(4))
    assert claim.originator_conversation_id == attempt.originator_conversation_id


def test_failure_report_cancels_a_due_resend(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_answer(attempt, not_found_body(), after(20))

    # when
    deliver_result(attempt, result_body(attempt, 2040), after(22))

    # then
    assert payout_steps.resends(after(23)) == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_repeated_not_found_never_fails_the_payout(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)

    # when
    for seconds in (20, 80, 200, 2_000, 6_000, 10_000):
        ask_and_answer(attempt, not_found_body(), after(seconds))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert balances(payout) == {"in_flight": KES_285}


@pytest.mark.parametrize("text", ["Failed", None])
def test_query_older_than_the_latest_post_proves_no_failure(payout: Transaction, text: str | None) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    early = question(attempt, after(20))
    ask_and_answer(attempt, not_found_body(), after(80))
    (claim,) = payout_steps.resends(after(82))
    attempt = payout_steps.put_through(claim, at=after(83))

    # when
    answer(early, status_body(attempt, text) if text else not_found_body(), after(84))
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(103))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert payout_steps.resends(after(104)) == []
    assert balances(payout) == {"in_flight": KES_285}


def test_query_older_than_the_latest_post_proves_payment(payout: Transaction) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    early = question(attempt, after(20))
    ask_and_answer(attempt, not_found_body(), after(80))
    payout_steps.put_through(payout_steps.resends(after(82))[0], payout_steps.DUPLICATE, at=after(83))

    # when
    outcome = answer(early, status_body(attempt), after(84))

    # then
    assert outcome == "paid"
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.parametrize("when", ["in time", "after another query"])
def test_id_known_to_mpesa_is_not_resent(payout: Transaction, when: str) -> None:
    # given: the response to the first POST was lost, and the resend is called a duplicate
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_answer(attempt, not_found_body(), after(20))
    (again,) = payout_steps.resends(after(22))
    if when == "in time":
        payout_steps.put_through(again, payout_steps.DUPLICATE, at=after(23))
        outcome = ask_and_answer(attempt, not_found_body(), after(100))
    else:
        outcome = ask_and_answer(attempt, not_found_body(), after(100))
        assert outcome == "not found: the same request is sent again"
        payout_steps.put_through(again, payout_steps.DUPLICATE, at=after(102))
        outcome = ask_and_answer(attempt, not_found_body(), after(300))

    # then
    assert outcome == "in doubt: not_found proves nothing"
    assert payout_steps.resends(after(301)) == []
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at is not None
    assert deliver_result(attempt, result_body(attempt), after(400)) == "paid"


@pytest.mark.parametrize("code", [15, 41])
@pytest.mark.parametrize(("trusted", "resends_due"), [(True, 0), (False, 1)])
def test_duplicate_result_stops_resends_only_from_a_trusted_address(
    payout: Transaction, code: int, trusted: bool, resends_due: int
) -> None:
    # given
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    ask_and_answer(attempt, not_found_body(), after(20), PRODUCTION)

    # when
    deliver_result(attempt, result_body(attempt, code), after(22), policy=PRODUCTION, trusted=trusted)

    # then
    assert len(payout_steps.resends(after(23), PRODUCTION)) == resends_due
    if trusted:
        assert ask_and_answer(attempt, not_found_body(), after(90), PRODUCTION) == "in doubt: not_found proves nothing"
        assert payout_steps.resends(after(92), PRODUCTION) == []


def test_large_paid_result_is_never_overruled_by_queries() -> None:
    # given
    payout = builders.payout(60_000)
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(2))

    # when
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(3))
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(90))

    # then
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")


def test_untrusted_answers_never_fail_a_payout() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)

    # when
    for seconds in (30, 95, 300):
        query = question(attempt, after(seconds), PRODUCTION)
        body = status_body(attempt, "Failed")
        payout_steps.deliver("status", query.token, body, after(seconds), policy=PRODUCTION, trusted=False)

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_untrusted_paid_answer_needs_a_second_source() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)

    # when
    reached = []
    for seconds in (30, 95):
        query = question(attempt, after(seconds), PRODUCTION)
        payout_steps.deliver(
            "status", query.token, status_body(attempt), after(seconds), policy=PRODUCTION, trusted=False
        )
        reached.append(states(payout, attempt))

    # then
    assert reached == [("PROCESSING", "IN_DOUBT"), ("COMPLETED", "PAID")]


def test_untrusted_and_trusted_answers_to_one_query_prove_nothing() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    query = question(attempt, after(30), PRODUCTION)
    payout_steps.deliver("status", query.token, status_body(attempt), after(31), policy=PRODUCTION, trusted=False)

    # when
    outcome = payout_steps.answer(query, status_body(attempt, "Failed"), after(32), PRODUCTION)

    # then
    assert outcome == "in doubt: one status query says failed, a second query is due"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.next_query_at == after(90)


def test_untrusted_answer_does_not_replace_a_trusted_answer() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    query = question(attempt, after(30), PRODUCTION)
    payout_steps.answer(query, status_body(attempt, "Failed"), after(31), PRODUCTION)

    # when
    payout_steps.deliver("status", query.token, status_body(attempt), after(32), policy=PRODUCTION, trusted=False)

    # then
    assert attempt.queries.get().verdict == "failed"


@pytest.mark.parametrize("status", ["not found", "Pending"])
def test_untrusted_answer_to_a_reported_payment_does_not_resend(status: str) -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    deliver_result(attempt, result_body(attempt), after(25), policy=PRODUCTION, trusted=False)
    query = question(attempt, after(26), PRODUCTION)
    body = not_found_body() if status == "not found" else status_body(attempt, status)

    # when
    payout_steps.deliver("status", query.token, body, after(27), policy=PRODUCTION, trusted=False)

    # then
    assert resends(after(28), PRODUCTION) == []
    assert attempt.queries.get().verdict == ""


def test_reported_payment_is_not_overruled_by_a_reported_failure() -> None:
    # given
    payout = builders.payout(60_000)
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(5))
    deliver_result(attempt, result_body(attempt, 2040), after(6))

    # when
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(7))
    in_between = states(payout, attempt)
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(140))

    # then
    assert in_between == ("PROCESSING", "IN_DOUBT")
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert attempt.receipt == payout_steps.RECEIPT


def test_horizon_of_an_unsent_request_begins_at_its_resend() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, NO_CONNECTION)
    deliver_result(attempt, result_body(attempt), after(5), policy=PRODUCTION, trusted=False)
    ask_and_answer(attempt, not_found_body(), after(6), PRODUCTION)
    (again,) = resends(after(10), PRODUCTION)
    payout_steps.put_through(again, READ_TIMEOUT, after(10), PRODUCTION)

    # when
    ask_and_answer(attempt, not_found_body(), after(10 + 1_801), PRODUCTION)

    # then
    attempt.refresh_from_db()
    assert attempt.first_sent_at == after(10)
    assert resends(after(10 + 1_802), PRODUCTION) == []
