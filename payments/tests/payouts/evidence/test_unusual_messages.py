"""Messages that M-Pesa sends rarely: thin answers, reversals, refused queries, results under another id."""

from collections.abc import Callable

import pytest

from payments.models import Attempt, Breaker, StatusQuery, Transaction
from testing import payout_steps
from testing.payout_steps import (
    READ_TIMEOUT,
    RECEIPT,
    after,
    ask_and_answer,
    booked,
    deliver_result,
    payment_transfers,
    result_body,
    retried,
    sent,
    states,
    status_body,
)

pytestmark = pytest.mark.django_db
OTHER_ID = "29115-34620561-1"


def thin(status: str = "Completed") -> bytes:
    """Return an answer that contains nothing but the status."""
    return payout_steps._query_result(0, [{"Key": "TransactionStatus", "Value": status}])


def test_thin_completed_answer_books_only_after_a_second_one(payout: Transaction) -> None:
    # given
    attempt = sent(payout, READ_TIMEOUT)
    before = booked(payout)

    # when
    first = ask_and_answer(attempt, thin(), after(20))

    # then
    assert first == "in doubt: Completed without id, amount or receiver. A second query is due"
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert booked(payout) == before
    assert attempt.next_query_at is not None
    assert ask_and_answer(attempt, thin(), attempt.next_query_at) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


def test_reversed_payment_holds_the_payout_at_once(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    attempt = sent(payout)
    outcome = ask_and_answer(attempt, status_body(attempt, "Reversed"), after(20))
    assert outcome == "held: M-Pesa says that it reversed the payment"
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert "reversed this payment" in payout.reason
    assert any("reversed the payment" in alarm for alarm in alarms())
    assert StatusQuery.objects.get().verdict == "reversed"


def test_reversed_failed_request_holds_its_pending_payout(payout: Transaction) -> None:
    # given: a retry waits for the answer about its failed request
    first, second = retried(payout, payout_steps.NO_CONNECTION)
    Attempt.objects.filter(pk=first.pk).update(next_query_at=after(40))
    assert states(payout, second) == ("PENDING", "WAITING")

    # when
    ask_and_answer(first, status_body(first, "Reversed"), after(40))

    # then
    assert states(payout, first) == ("HELD", "FAILED")
    assert payout_steps.claims(after(10_000)) == []


def test_payment_under_another_id_is_held_and_never_sent_again(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    attempt = sent(payout)
    before = booked(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt, ocid=OTHER_ID), after(3))

    # then
    assert outcome == f"held: paid as {OTHER_ID}, not as our id"
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert OTHER_ID in payout.reason
    assert (attempt.receipt, attempt.paid_report, attempt.next_query_at) == (RECEIPT, "trusted", after(3))
    assert booked(payout) == before
    assert OTHER_ID in "".join(alarms())
    ask_and_answer(attempt, payout_steps.not_found_body(), after(4))
    assert payout_steps.resends(after(10_000)) == []


def test_answer_under_our_id_completes_a_payment_held_under_another_id(payout: Transaction) -> None:
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, ocid=OTHER_ID), after(3))
    assert ask_and_answer(attempt, status_body(attempt), after(4)) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == payment_transfers(payout, attempt)


@pytest.mark.parametrize("code", [2001, 8006, 21])
def test_refused_status_query_opens_the_credentials_breaker(payout: Transaction, code: int) -> None:
    attempt = sent(payout)
    ask_and_answer(attempt, payout_steps.not_found_body(code), after(20))
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert Breaker.objects.get(cause="credentials").opened_at == after(21)
