"""Second receipts: M-Pesa paid one request twice, and the second payment is booked as the member's debt."""

from collections.abc import Callable

import pytest

from payments.ledger import journal
from payments.models import Attempt, Recovery, Transaction
from payments.payouts.evidence import status_queries
from payments.payouts.operations import decisions, timeline
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


# --- second receipts that M-Pesa must confirm ------------------------------------------------------------------------

LARGE = int(PRODUCTION.confirm_above)


def reported_twice(amount: int = LARGE, *, without: tuple[str, ...] = ()) -> tuple[Transaction, Attempt]:
    """Pay a payout on two sources. Then let a trusted result report a second receipt of the same request."""
    payout = builders.payout(amount)
    attempt = sent(payout, policy=PRODUCTION)
    deliver_result(attempt, result_body(attempt), after(2), policy=PRODUCTION)
    if amount >= LARGE:
        payout_steps.ask_and_answer(attempt, status_body(attempt), after(30), PRODUCTION)
    body = result_body(attempt, receipt=SECOND, without=list(without))
    outcome = deliver_result(attempt, body, after(40), policy=PRODUCTION)
    assert outcome == f"a second receipt {SECOND} is reported: a status query must confirm it"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    return payout, attempt


def asked_about_second(attempt: Attempt, body: bytes, at: float = 41) -> str | None:
    asked = question(attempt, after(at), PRODUCTION)
    assert asked.receipt == SECOND
    return answer(asked, body, after(at + 1), PRODUCTION)


@pytest.mark.parametrize(("amount", "without"), [(LARGE, ()), (LARGE + 1, ()), (285, ("ReceiverPartyPublicName",))])
def test_large_or_incomplete_second_receipt_waits_for_a_status_query(
    alarms: Callable[[], list[str]], amount: int, without: tuple[str, ...]
) -> None:
    # given: one trusted result alone books nothing
    payout, attempt = reported_twice(amount, without=without)
    assert not journal.is_booked(f"second:{SECOND}")
    assert not Recovery.objects.exists()
    assert (attempt.second_receipt, attempt.receipt, payout.receipt) == (SECOND, RECEIPT, RECEIPT)
    assert any(SECOND in alarm for alarm in alarms())

    # when
    outcome = asked_about_second(attempt, status_body(attempt, receipt=SECOND))

    # then
    assert outcome == f"a second receipt {SECOND}: M-Pesa paid twice, so the member owes the amount back"
    assert journal.is_booked(f"second:{SECOND}")
    assert Recovery.objects.get().amount == amount
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (attempt.second_receipt, attempt.next_query_at) == ("", None)
    assert (attempt.receipt, payout.receipt) == (RECEIPT, RECEIPT)


def test_second_receipt_just_below_the_limit_is_booked_on_one_result() -> None:
    payout = builders.payout(LARGE - 1)
    attempt = sent(payout, policy=PRODUCTION)
    deliver_result(attempt, result_body(attempt), after(2), policy=PRODUCTION)
    deliver_result(attempt, result_body(attempt, receipt=SECOND), after(3), policy=PRODUCTION)
    assert journal.is_booked(f"second:{SECOND}")


@pytest.mark.parametrize("case", ["failed", "reversed", "another id", "another amount", "another phone"])
def test_second_receipt_that_mpesa_contradicts_is_dropped_with_an_alarm(
    alarms: Callable[[], list[str]], case: str
) -> None:
    # given
    payout, attempt = reported_twice()
    body = {
        "failed": status_body(attempt, "Failed", receipt=SECOND),
        "reversed": status_body(attempt, "Reversed", receipt=SECOND),
        "another id": status_body(attempt, receipt=SECOND, ocid="KASOKO-1-1-00000000-1"),
        "another amount": status_body(attempt, receipt=SECOND, amount=LARGE + 1),
        "another phone": status_body(attempt, receipt=SECOND, phone="254799999999"),
    }[case]

    # when
    asked_about_second(attempt, body)

    # then: the first payment stands
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert not journal.is_booked(f"second:{SECOND}")
    assert (attempt.second_receipt, attempt.next_query_at) == ("", None)
    assert any("second receipt" in alarm and "nothing was booked" in alarm.lower() for alarm in alarms())


@pytest.mark.parametrize("case", ["not found", "pending", "no id", "untrusted", "first receipt"])
def test_second_receipt_without_a_clear_answer_is_asked_about_again(case: str) -> None:
    # given
    payout, attempt = reported_twice()
    asked = question(attempt, after(41), PRODUCTION)
    body = {
        "not found": payout_steps.not_found_body(),
        "pending": status_body(attempt, "Pending", receipt=SECOND),
        "no id": status_body(attempt, receipt=SECOND, without=["OriginatorConversationID"]),
        "untrusted": status_body(attempt, receipt=SECOND),
        "first receipt": status_body(attempt, receipt=RECEIPT),
    }[case]

    # when
    payout_steps.deliver("status", asked.token, body, after(42), policy=PRODUCTION, trusted=case != "untrusted")

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert not journal.is_booked(f"second:{SECOND}")
    assert attempt.second_receipt == SECOND
    assert attempt.next_query_at is not None
    assert attempt.next_query_at > after(42)


def test_second_receipt_that_mpesa_never_confirms_ends_with_an_alarm(alarms: Callable[[], list[str]]) -> None:
    payout, attempt = reported_twice()
    late = after(40 + PRODUCTION.review_after.total_seconds())
    assert status_queries.ask(at=late, policy=PRODUCTION, addresses=payout_steps.ADDRESSES, limit=10) == []
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (attempt.second_receipt, attempt.next_query_at) == (SECOND, None)
    assert any("has not confirmed" in alarm for alarm in alarms())


def test_decision_with_a_second_receipt_that_is_asked_about_is_refused() -> None:
    reported_twice()
    payout, attempt = payout_steps.held()
    with pytest.raises(decisions.NotToBeDecided, match="second payment of another request"):
        decisions.decide(
            transaction_id=payout.pk,
            finding=decisions.Finding(SECOND.lower(), "The statement."),
            by=[builders.actor(builders.operator()) for _ in range(2)],
            at=after(90_000),
            policy=PRODUCTION,
        )
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")


def test_third_receipt_while_the_second_is_asked_about_is_alarmed(alarms: Callable[[], list[str]]) -> None:
    payout, attempt = reported_twice()
    deliver_result(attempt, result_body(attempt, receipt="SKG7THIRD1"), after(41), policy=PRODUCTION)
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.second_receipt == SECOND
    assert any("SKG7THIRD1" in alarm for alarm in alarms())


def test_second_receipt_is_still_asked_about_when_the_first_payment_is_reversed() -> None:
    # given: an answer to an older query about our own id comes after the report of the second receipt
    payout = builders.payout(LARGE)
    attempt = sent(payout, policy=PRODUCTION)
    asked = question(attempt, after(30), PRODUCTION), question(attempt, after(100), PRODUCTION)
    answer(asked[0], status_body(attempt), after(101), PRODUCTION)
    deliver_result(attempt, result_body(attempt, receipt=SECOND), after(102), policy=PRODUCTION)
    answer(asked[1], status_body(attempt, "Reversed"), after(103), PRODUCTION)
    assert states(payout, attempt) == ("HELD", "REVERSED")

    # when
    asked_about_second(attempt, status_body(attempt, receipt=SECOND), 104)

    # then
    assert journal.is_booked(f"second:{SECOND}")
    assert states(payout, attempt) == ("HELD", "REVERSED")
    assert (attempt.second_receipt, attempt.next_query_at) == ("", None)


def test_untrusted_message_gives_a_paid_request_no_receipt() -> None:
    # given: a payment that M-Pesa confirmed without a receipt
    payout = builders.payout(285)
    attempt = sent(payout, policy=PRODUCTION)
    payout_steps.ask_and_answer(attempt, status_body(attempt, receipt=""), after(30), PRODUCTION)
    assert states(payout, attempt) == ("COMPLETED", "PAID")

    # when
    deliver_result(attempt, result_body(attempt, receipt="SKG7FORGED"), after(40), policy=PRODUCTION, trusted=False)
    deliver_result(attempt, result_body(attempt), after(41), policy=PRODUCTION)

    # then: otherwise the genuine receipt would count as a second payment, and the member would owe it
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.receipt == RECEIPT
    assert not Recovery.objects.exists()
