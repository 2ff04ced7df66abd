"""Failed attempts: after a fault of ours the payout is sent again; a fault of the member fails the payout."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from django.db import IntegrityError, transaction

from markets.models import Market
from payments.ledger import journal
from payments.models import Attempt, Callback, Transaction
from payments.payouts import attempt_limit, attempts
from payments.payouts.evidence import callbacks
from payments.payouts.operations import actions
from payments.policy import Policy
from testing import builders, payout_steps
from testing.builders import AT
from testing.payout_steps import (
    CHARGE,
    KES_285,
    POLICY,
    after,
    ask_and_answer,
    balances,
    claims,
    deliver_result,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("code", [1, 2001])
def test_fault_of_ours_resends_the_payout_with_a_new_id(
    payout: Transaction, alarms: Callable[[], list[str]], code: int
) -> None:
    # given
    first = sent(payout)
    deliver_result(first, result_body(first, code), after(2))

    # when
    ask_and_answer(first, status_body(first, "Failed"), after(2))

    # then
    assert states(payout, first) == ("PENDING", "FAILED")
    assert payout.due_at == after(23)
    assert len(alarms()) == 1
    assert "Sending is paused" in alarms()[0]
    assert balances(payout) == {"payable": KES_285}
    assert payout_steps.claims(after(22)) == []
    second = sent(payout, at=after(33))
    assert second.originator_conversation_id == f"{payout.external_ref}-2"
    assert deliver_result(second, result_body(second), after(34)) == "paid"
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_lasting_fault_of_ours_leaves_a_payout_for_each_probe(payout: Transaction) -> None:
    # given
    at, pauses = AT, []

    # when
    for _ in range(6):
        attempt = sent(payout, at=at)
        deliver_result(attempt, result_body(attempt, 1), at)
        ask_and_answer(attempt, status_body(attempt, "Failed"), at)
        payout.refresh_from_db()
        pauses.append((payout.due_at - at).total_seconds() - 1)
        at = payout.due_at

    # then
    assert pauses == [20] * 6


@pytest.mark.parametrize("code", [2, 3, 8, 2040, "SFC_IC0003"])
def test_fault_of_the_member_fails_the_payout(payout: Transaction, code: int | str) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, code), after(2))

    # when
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(2))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert payout_steps.claims(after(100_000)) == []


# --- the bound of attempts -------------------------------------------------------------------------------------------


def fail_again(payout: Transaction, number: int, policy: Policy) -> None:
    """Fail the payout's next request for good, one day after the request before."""
    at = after(86_400 * number)
    if number > 1:
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=at)
    payout_steps.failed(payout, at, policy)


def test_payout_is_held_after_the_largest_number_of_failed_requests(payout: Transaction) -> None:
    policy = builders.policy(max_attempts=3)
    for number in (1, 2):
        fail_again(payout, number, policy)
        payout.refresh_from_db()
        assert payout.status == "FAILED"
    fail_again(payout, 3, policy)
    payout.refresh_from_db()
    assert payout.status == "HELD"
    assert payout.reason.startswith("3 requests of this payout failed. The latest answer: 400.002.02")
    assert claims(after(86_400 * 5)) == []
    assert journal.owed(payout.pk) == payout.amount


def test_requests_that_failed_by_our_own_fault_do_not_count(payout: Transaction) -> None:
    policy = builders.policy(max_attempts=2, breaker_pause=timedelta(0))
    for number in range(1, 5):
        attempt = sent(payout, at=after(3_600 * number), policy=policy)
        payout.refresh_from_db()
        attempts.fail(payout, attempt, code="1", words="No float.", at=after(3_600 * number), policy=policy)
        payout.refresh_from_db()
        assert payout.status == "PENDING"


# --- numbers ---------------------------------------------------------------------------------------------------------


def out_of_numbers(payout: Transaction) -> None:
    """Give the payout a failed request with the last number."""
    attempt = payout_steps.refused(payout)
    values = {f.attname: getattr(attempt, f.attname) for f in Attempt._meta.concrete_fields if f.attname != "id"}
    ocid = f"{payout.external_ref}-{attempt_limit.LARGEST_NUMBER}"
    changes = {"number": attempt_limit.LARGEST_NUMBER, "originator_conversation_id": ocid, "token_hash": "9" * 64}
    last = Attempt.objects.create(**values | changes | {"state": "SENDING", "counted_on": None})
    journal.post([attempts.sent(last)], at=AT)
    attempts.close_lost(payout, last, words="Refused.", at=AT)


def test_payout_without_numbers_is_not_retried_and_goes_to_the_wallet(payout: Transaction) -> None:
    # given
    out_of_numbers(payout)

    # when, then
    with builders.nothing_moved(), pytest.raises(actions.PayoutNotRetryable, match="no numbers left"):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(31))


def test_held_payout_without_numbers_is_not_released(payout: Transaction) -> None:
    out_of_numbers(payout)
    Transaction.objects.filter(pk=payout.pk).update(status="PENDING")
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(1))
    with builders.nothing_moved(), pytest.raises(actions.PayoutNotRetryable, match="no numbers left"):
        actions.release(transaction_id=payout.pk, by=MACHINE, at=after(30))


def test_pending_payout_without_numbers_is_held_instead_of_sent(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    out_of_numbers(payout)
    Transaction.objects.filter(pk=payout.pk).update(status="PENDING")

    # when
    assert claims(after(30)) == []

    # then
    payout.refresh_from_db()
    assert (payout.status, payout.reason) == ("HELD", attempt_limit.NO_NUMBERS)
    assert any("no numbers left" in alarm for alarm in alarms())


def test_database_refuses_a_number_of_four_digits(payout: Transaction) -> None:
    attempt = sent(payout)
    values = {f.attname: getattr(attempt, f.attname) for f in Attempt._meta.concrete_fields if f.attname != "id"}
    changes = {"number": 1_000, "originator_conversation_id": "KASOKO-1-1-1000", "token_hash": "9" * 64}
    with pytest.raises(IntegrityError, match="attempt_number_fits_its_id"), transaction.atomic():
        Attempt.objects.create(**values | changes | {"state": "SENDING"})


@pytest.mark.parametrize("by_person", [False, True])
@pytest.mark.parametrize("code", ["1", "2001", "4"])
def test_held_payout_stays_held_if_the_member_is_not_at_fault(code: str, by_person: bool) -> None:
    # given
    payout, attempt = payout_steps.held()
    attempts.hold(payout, reason=payout.reason, by_person=by_person)
    deliver_result(attempt, result_body(attempt, code), after(86_401))

    # when
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(86_402))

    # then: no winner is FAILED, and only a person lets the payout leave
    assert states(payout, attempt) == ("HELD", "FAILED")
    assert payout.held_by_person == by_person
    assert "Retry it" in payout.reason
    assert claims(after(300_000)) == []


def test_held_payout_that_was_not_sent_stays_held(payout: Transaction) -> None:
    # given: a message about an earlier request holds the payout while its next request leaves
    (claim,) = claims(AT)
    attempts.hold(payout, reason="M-Pesa says that it reversed this payment.")

    # when
    attempt = payout_steps.put_through(claim, payout_steps.NO_CONNECTION, after(1))

    # then
    assert states(payout, attempt) == ("HELD", "FAILED")
    assert "Retry it. Not sent" in payout.reason


# --- locks -----------------------------------------------------------------------------------------------------------


def test_callback_is_stored_while_another_worker_holds_its_attempt(transactional_db: None) -> None:
    # given
    attempt = payout_steps.sent(builders.payout(285))
    token = payout_steps.ADDRESSES.token(attempt.originator_conversation_id)
    store = partial(
        callbacks.store,
        kind="result",
        token=token,
        body=payout_steps.result_body(attempt),
        source_ip=None,
        trusted=True,
        at=AT,
        addresses=payout_steps.ADDRESSES,
    )

    # when: M-Pesa waits for our answer, so the store may not wait for the worker
    with transaction.atomic():
        attempts.locked(attempt.pk)
        builders.begin(store).result(timeout=60)

    # then
    assert Callback.objects.get().attempt_id == attempt.pk


def test_second_doubt_keeps_the_first_time_and_cuts_long_words(payout: Transaction) -> None:
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    attempts.doubt(attempt, ask_at=after(30), at=after(5))
    first = attempt.doubted_at

    attempts.doubt(attempt, ask_at=after(40), at=after(9), words="w" * 301, code="c" * 21)

    attempt.refresh_from_db()
    assert first is not None
    assert attempt.doubted_at == first < after(9)
    assert (attempt.result_words, attempt.result_code) == ("w" * 300, "c" * 20)


# --- one attempt, one payout -----------------------------------------------------------------------------------------


def test_id_is_sent_again_from_its_first_post_or_its_clearing(payout: Transaction) -> None:
    attempt = sent(payout, payout_steps.READ_TIMEOUT, AT)
    horizon = POLICY.resend_horizon
    last = AT + horizon - timedelta(seconds=1)
    assert [attempts.within_horizon(attempt, at, POLICY) for at in (last, AT + horizon)] == [True, False]

    attempt.cleared_at = AT + horizon
    assert [attempts.within_horizon(attempt, at, POLICY) for at in (last + horizon, AT + 2 * horizon)] == [True, False]

    attempt.first_sent_at = None
    assert attempts.within_horizon(attempt, AT + 3 * horizon, POLICY)


def test_report_about_a_failed_attempt_is_only_asked_about(payout: Transaction) -> None:
    attempt = payout_steps.refused(payout)
    attempts.keep_report(attempt, "trusted", "c" * 21, "w" * 301, "r" * 65, at=after(9))
    attempt.refresh_from_db()
    assert (attempt.state, attempt.next_query_at, attempt.doubted_at) == ("FAILED", after(9), None)
    assert (attempt.result_code, attempt.result_words, attempt.receipt) == ("c" * 20, "w" * 300, "r" * 64)


def test_asked_attempt_is_in_doubt_from_its_first_question(payout: Transaction) -> None:
    attempt = sent(payout)
    attempts.ask(attempt, next_query_at=after(60), at=after(20))
    attempt.refresh_from_db()
    assert (attempt.state, attempt.doubted_at, attempt.next_query_at) == ("IN_DOUBT", after(20), after(60))
    attempts.ask(attempt, next_query_at=after(90), at=after(60))
    assert (attempt.doubted_at, attempt.next_query_at) == (after(20), after(90))


def test_doubt_leaves_a_held_payout_held_and_asks_no_later(payout: Transaction) -> None:
    attempt = sent(payout)
    attempts.hold(payout, reason="Look first.")
    attempts.doubt(attempt, ask_at=after(90), at=after(5))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert attempt.next_query_at == after(20)


def test_system_holds_for_no_person_and_cuts_long_reasons(payout: Transaction) -> None:
    attempts.hold(payout, reason="x" * 400)
    payout.refresh_from_db()
    assert (payout.status, payout.held_by_person, payout.reason) == ("HELD", False, "x" * 300)
    attempts.end_hold_unsent(payout, reason="y" * 400, at=after(9))
    payout.refresh_from_db()
    assert (payout.status, payout.failed_at, payout.reason) == ("FAILED", after(9), "y" * 300)
    attempts.make_pending(payout, due_at=after(10), reason="z" * 400)
    payout.refresh_from_db()
    assert (payout.status, payout.failed_at, payout.reason) == ("PENDING", None, "z" * 300)


def test_cancelled_payout_keeps_a_long_reason_in_short(payout: Transaction) -> None:
    # given: the settlement is undone while the request is in doubt
    attempt = sent(payout, payout_steps.READ_TIMEOUT)
    builders.undo(Market.objects.get(), at=after(60))

    # when
    payout, attempt = attempts.locked(attempt.pk)
    attempts.fail(payout, attempt, code="1", words="w" * 400, at=after(70), policy=POLICY)

    # then
    payout.refresh_from_db()
    assert payout.status == "CANCELLED"
    assert payout.reason.startswith("Its settlement was undone, and it was not paid: 1 www")
    assert len(payout.reason) == 300
