"""Second receipts: M-Pesa paid one request twice, and the second payment is booked as the member's debt."""

from collections.abc import Callable

import pytest

from payments.ledger import journal
from payments.models import Recovery, Transaction
from payments.payouts.operations import timeline
from testing import builders, payout_steps
from testing.payout_steps import (
    CHARGE,
    KES_285,
    PRODUCTION,
    RECEIPT,
    after,
    balances,
    booked,
    deliver_result,
    result_body,
    sent,
    states,
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


def test_receipt_of_another_payment_is_no_second_payment(payout: Transaction) -> None:
    other = sent(builders.payout(), at=after(1))
    deliver_result(other, result_body(other, receipt=SECOND), after(2))
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt), after(2))
    before = booked(payout)
    outcome = deliver_result(attempt, result_body(attempt, receipt=SECOND), after(3))
    assert outcome == f"a second receipt {SECOND}: it belongs to another payment, so nothing is booked"
    assert booked(payout) == before
