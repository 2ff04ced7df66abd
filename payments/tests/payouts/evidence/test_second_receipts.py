"""Second receipts: M-Pesa paid one request twice, and the second payment is booked as the member's debt."""

from collections.abc import Callable

import pytest

from payments.ledger import journal
from payments.models import Attempt, Recovery, Transaction
from payments.payouts.evidence import status_queries
from payments.payouts.operations import timeline
from testing import builders, payout_steps
from testing.payout_steps import (
    CHARGE,
    KES_285,
    PRODUCTION,
    RECEIPT,
    after,
    answer,
    balances,
    booked,
    deliver_result,
    question,
    result_body,
    retried,
    sent,
    states,
    status_body,
)

pytestmark = pytest.mark.django_db
SECOND = "SKG7SECOND"


def test_second_receipt_is_booked_once_as_the_members_debt(
    payout: Transaction, alarms: Callable[[], list[str]]
) -> None:
    # given
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(2))
    before = booked(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt, receipt=SECOND), after(3))
    again = deliver_result(attempt, result_body(attempt, receipt=SECOND.lower()), after(4))

    # then
    assert outcome == f"a second receipt {SECOND}: M-Pesa paid twice, so the member owes the amount back"
    assert again == f"a second receipt {SECOND.lower()}: booked already"
    receivable = journal.receivable(payout.user_id)
    assert booked(payout) == [
        *before,
        (f"second:{SECOND}", receivable, "mpesa_utility", KES_285),
        (f"charge:second:{SECOND}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (payout.receipt, attempt.receipt) == (RECEIPT, RECEIPT)
    assert balances(payout) == {"mpesa_utility": -2 * KES_285, receivable: KES_285, "charge_expense": 2 * CHARGE}
    assert Recovery.objects.get(user=payout.user).amount == KES_285
    assert any(SECOND in alarm for alarm in alarms())


def test_second_receipt_is_on_the_timeline(payout: Transaction) -> None:
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(2))
    deliver_result(attempt, result_body(attempt, receipt=SECOND), after(3))
    shown = timeline.of_payout(payout.pk, at=after(10), policy=payout_steps.POLICY)
    assert shown is not None
    assert any(("Key", f"second:{SECOND}") in event.details for event in shown.events)


@pytest.mark.parametrize("case", ["untrusted", "incomplete"])
def test_unproven_second_receipt_is_only_alarmed(
    payout: Transaction, alarms: Callable[[], list[str]], case: str
) -> None:
    attempt = sent(payout, policy=PRODUCTION)
    deliver_result(attempt, result_body(attempt), after(2), policy=PRODUCTION)
    before = booked(payout)
    missing = ["ReceiverPartyPublicName"] if case == "incomplete" else []
    body = result_body(attempt, receipt=SECOND, without=missing)
    deliver_result(attempt, body, after(3), policy=PRODUCTION, trusted=case == "incomplete")
    assert booked(payout) == before
    assert any(SECOND in alarm for alarm in alarms())


def reversed_payment(payout: Transaction) -> tuple[Attempt, status_queries.DueQuery]:
    """Pay a payout and let M-Pesa reverse the payment. Return the request and a query without an answer about it."""
    attempt = sent(payout, policy=PRODUCTION)
    asked = question(attempt, after(30)), question(attempt, after(100))
    deliver_result(attempt, result_body(attempt), after(101), policy=PRODUCTION)
    answer(asked[0], status_body(attempt, "Reversed"), after(102))
    assert states(payout, attempt) == ("HELD", "REVERSED")
    return attempt, asked[1]


@pytest.mark.parametrize("source", ["result", "answer"])
def test_second_receipt_of_a_reversed_payment_is_booked(payout: Transaction, source: str) -> None:
    # given: M-Pesa paid the request twice, and reversed one of the payments
    attempt, asked = reversed_payment(payout)

    # when
    if source == "result":
        deliver_result(attempt, result_body(attempt, receipt=SECOND), after(103), policy=PRODUCTION)
    else:
        answer(asked, status_body(attempt, receipt=SECOND), after(103), PRODUCTION)

    # then: the payout waits for a person, and the member owes what the member has
    assert journal.is_booked(f"second:{SECOND}")
    assert states(payout, attempt) == ("HELD", "REVERSED")
    assert Recovery.objects.get(user=payout.user).amount == KES_285
    assert (payout.receipt, attempt.receipt) == (RECEIPT, RECEIPT)


@pytest.mark.parametrize("case", ["same receipt", "untrusted", "another id"])
def test_other_message_about_a_reversed_payment_books_nothing(payout: Transaction, case: str) -> None:
    attempt, _ = reversed_payment(payout)
    before = booked(payout)
    ocid = "AG_20260216_7" if case == "another id" else None
    body = result_body(attempt, receipt=RECEIPT if case == "same receipt" else SECOND, ocid=ocid)
    deliver_result(attempt, body, after(103), policy=PRODUCTION, trusted=case != "untrusted")
    assert booked(payout) == before
    assert states(payout, attempt) == ("HELD", "REVERSED")


def test_receipt_of_another_payment_is_no_second_payment(payout: Transaction) -> None:
    other = sent(builders.payout(), at=after(1))
    deliver_result(other, result_body(other, receipt=SECOND), after(2))
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(2))
    before = booked(payout)
    outcome = deliver_result(attempt, result_body(attempt, receipt=SECOND), after(3))
    assert outcome == f"a second receipt {SECOND}: it belongs to another payment, so nothing is booked"
    assert booked(payout) == before


def test_late_receipt_of_another_request_leaves_the_receipt_of_the_payout(payout: Transaction) -> None:
    # given: the second request paid the payout, and the first one was paid late, without a receipt
    first, second = retried(payout)
    deliver_result(second, result_body(second), after(40))
    deliver_result(first, result_body(first, receipt=""), after(41))
    answer(question(first, after(42)), status_body(first, receipt=""), after(43))
    assert states(payout, first) == ("COMPLETED", "PAID")

    # when
    deliver_result(first, result_body(first, receipt=SECOND), after(50))

    # then
    assert states(payout, first) == ("COMPLETED", "PAID")
    assert (first.receipt, payout.receipt) == (SECOND, RECEIPT)
