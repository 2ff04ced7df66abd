"""Payments that are proven late, while other requests exist or the debt is settled."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from django.db import transaction

from payments.ledger import debt_decisions, journal, receivables
from payments.models import Attempt, Recovery, Transaction
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions
from payments.payouts.sending import responses
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.payout_steps import (
    CHARGE,
    KES_285,
    NO_CONNECTION,
    POLICY,
    PRODUCTION,
    READ_TIMEOUT,
    RECEIPT,
    after,
    answer,
    ask_and_answer,
    balances,
    booked,
    claims,
    deliver_result,
    not_found_body,
    question,
    refused,
    resends,
    result_body,
    retried,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE
from users.models import CustomUser

pytestmark = pytest.mark.django_db


def test_payment_after_failure_reopens_and_pays_the_debt(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    attempt = refused(payout)

    # when
    outcome = deliver_result(attempt, result_body(attempt), after(60))

    # then
    wallet = f"wallet:{payout.user_id}"
    assert outcome == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout) == [
        (f"send:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"return:{attempt.pk}", "in_flight", "payable", KES_285),
        (f"reopen:{attempt.pk}", "payable", "in_flight", KES_285),
        (f"won:{attempt.pk}", "in_flight", wallet, KES_285),
        (f"paid:{attempt.pk}", wallet, "mpesa_utility", KES_285),
        (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert any("paid after all" in alarm for alarm in alarms())
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_late_payment_before_the_retry_leaves_completes_the_payout(payout: Transaction) -> None:
    # given
    attempt = refused(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # when
    deliver_result(attempt, result_body(attempt), after(31))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert payout_steps.claims(after(32)) == []
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_late_payment_during_an_open_request_is_owed_back(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    first, second = retried(payout)

    # when
    outcome = deliver_result(first, result_body(first), after(60))

    # then
    owes = f"receivable:{payout.user_id}"
    assert outcome == "paid after the debt was settled in another way: the member owes the amount back"
    assert states(payout, first) == ("HELD", "PAID")
    assert states(payout, second) == ("HELD", "ACCEPTED")
    assert booked(payout)[-2:] == [
        (f"late:{first.pk}", owes, "mpesa_utility", KES_285),
        (f"charge:{first.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert balances(payout) == {
        "in_flight": KES_285,
        "mpesa_utility": -KES_285,
        owes: KES_285,
        "charge_expense": CHARGE,
    }
    assert any("paid after all" in alarm for alarm in alarms())


def test_second_payment_completes_the_payout_and_is_still_owed_back(payout: Transaction) -> None:
    # given
    first, second = retried(payout)
    deliver_result(first, result_body(first), after(60))

    # when
    deliver_result(second, result_body(second, receipt="SKG7SECOND"), after(61))

    # then
    assert states(payout, second) == ("COMPLETED", "PAID")
    assert payout.receipt == "SKG7SECOND"
    assert balances(payout) == {
        "mpesa_utility": -2 * KES_285,
        f"receivable:{payout.user_id}": KES_285,
        "charge_expense": 2 * CHARGE,
    }


@pytest.mark.parametrize("response", [payout_steps.NO_CONNECTION, payout_steps.THROTTLED])
def test_waiting_request_is_not_sent_after_a_late_payment(payout: Transaction, response: payout_steps.Response) -> None:
    # given
    first, second = retried(payout, response)
    assert states(payout, second) == ("PENDING", "WAITING")

    # when
    deliver_result(first, result_body(first), after(60))

    # then
    assert payout_steps.claims(after(600)) == [], "The member has the money already."
    payout.refresh_from_db()
    assert payout.status in ("HELD", "COMPLETED")


def test_failed_second_request_sets_off_the_late_payment(payout: Transaction) -> None:
    # given
    first, second = retried(payout)
    deliver_result(first, result_body(first), after(60))

    # when
    deliver_result(second, result_body(second, 2040), after(61))
    ask_and_answer(second, status_body(second, "Failed"), after(61))

    # then
    wallet = f"wallet:{payout.user_id}"
    assert states(payout, second) == ("COMPLETED", "FAILED")
    assert payout.receipt == RECEIPT
    assert booked(payout)[-3:] == [
        (f"return:{second.pk}", "in_flight", "payable", KES_285),
        (f"redirect:{payout.pk}", "payable", wallet, KES_285),
        (f"setoff:{first.pk}", wallet, f"receivable:{payout.user_id}", KES_285),
    ]
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(70))
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(70))


@pytest.mark.parametrize("code", [1, 2001])
def test_fault_of_ours_after_a_late_payment_does_not_resend(payout: Transaction, code: int) -> None:
    # given
    first, second = retried(payout)
    deliver_result(first, result_body(first), after(60))

    # when
    deliver_result(second, result_body(second, code), after(61))
    ask_and_answer(second, status_body(second, "Failed"), after(61))

    # then
    assert states(payout, second) == ("COMPLETED", "FAILED")
    assert payout_steps.claims(after(100_000)) == []
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_payout_is_not_retried_while_a_late_payment_is_unconfirmed(payout: Transaction) -> None:
    # given
    attempt = refused(payout)
    deliver_result(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)

    # then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(61))
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(61))
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(61), PRODUCTION)
    assert actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(70)).status == "PENDING"


def test_unconfirmed_late_payment_is_dropped_after_a_day(payout: Transaction) -> None:
    # given
    attempt = refused(payout)
    deliver_result(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)

    # when
    asked = status_queries.ask(at=after(86_460), policy=PRODUCTION, addresses=payout_steps.ADDRESSES, limit=10)

    # then
    assert asked == []
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert attempt.next_query_at is None


def test_late_payment_after_a_redirect_is_owed_back(payout: Transaction, alarms: Callable[[], list[str]]) -> None:
    # given
    attempt = refused(payout)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # when
    outcome = deliver_result(attempt, result_body(attempt), after(60))

    # then
    owes, wallet = f"receivable:{payout.user_id}", f"wallet:{payout.user_id}"
    assert outcome == "paid after the debt was settled in another way: the member owes the amount back"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert booked(payout)[-3:] == [
        (f"redirect:{payout.pk}", "payable", wallet, KES_285),
        (f"late:{attempt.pk}", owes, "mpesa_utility", KES_285),
        (f"charge:{attempt.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert balances(payout) == {
        wallet: KES_285,
        owes: KES_285,
        "mpesa_utility": -KES_285,
        "charge_expense": CHARGE,
    }
    assert any("paid after all" in alarm for alarm in alarms())


def test_untrusted_late_payment_is_confirmed_first(payout: Transaction) -> None:
    # given
    attempt = refused(payout)

    # when
    deliver_result(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)
    between = states(payout, attempt)
    ask_and_answer(attempt, status_body(attempt), after(60), PRODUCTION)

    # then
    assert between == ("FAILED", "FAILED")
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


def test_denied_late_payment_is_not_asked_about_again(payout: Transaction) -> None:
    # given
    attempt = refused(payout)
    deliver_result(attempt, result_body(attempt), after(60), policy=PRODUCTION, trusted=False)

    # when
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(60), PRODUCTION)

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert attempt.next_query_at is None


def refused_and_retried(amount: int = 285) -> tuple[Transaction, Attempt]:
    payout = builders.payout(amount)
    first = payout_steps.failed(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(20))
    return payout, first


def test_unsent_second_request_does_not_leave_after_a_late_payment() -> None:
    # given
    payout, first = refused_and_retried()
    (claim,) = claims(after(30))
    deliver_result(first, result_body(first), after(31))

    # when
    responses.record(claim, NO_CONNECTION, at=after(32), policy=POLICY)

    # then
    assert claims(after(600)) == []
    assert states(payout, first) == ("COMPLETED", "PAID")
    assert balances(payout)["mpesa_utility"] == -285


@pytest.mark.parametrize("not_found_first", [True, False])
def test_second_request_in_doubt_is_not_resent_after_a_late_payment(not_found_first: bool) -> None:
    # given
    payout, first = refused_and_retried()
    second = sent(payout, READ_TIMEOUT, after(30))

    # when
    if not_found_first:
        ask_and_answer(second, not_found_body(), after(60))
        deliver_result(first, result_body(first), after(62))
    else:
        deliver_result(first, result_body(first), after(35))
        ask_and_answer(second, not_found_body(), after(60))

    # then
    assert resends(after(63)) == []
    assert states(payout, second) == ("HELD", "IN_DOUBT")


def test_large_late_payment_stops_the_next_request() -> None:
    _payout, first = refused_and_retried(60_000)
    deliver_result(first, result_body(first), after(25))
    assert claims(after(30)) == []


def test_payment_reported_a_day_later_blocks_a_retry() -> None:
    # given
    payout = builders.payout(60_000)
    first = payout_steps.failed(payout)
    deliver_result(first, result_body(first), after(86_500))

    # when
    question(first, after(86_501))

    # then
    with pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(86_502))


def test_query_about_an_old_request_does_not_hold_the_new_one() -> None:
    # given
    payout = builders.payout(60_000)
    first = payout_steps.failed(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(80_000))
    second = sent(payout, at=after(86_410))
    deliver_result(first, result_body(first), after(86_411))

    # when
    question(first, after(86_412))

    # then
    assert states(payout, second) == ("PROCESSING", "ACCEPTED")


# --- late payments that M-Pesa reverses -------------------------------------------------------------------------------


def late_payment(payout: Transaction) -> tuple[Attempt, status_queries.DueQuery]:
    """Pay a request after its payout went to the wallet. Return it, and a query about it that is not answered yet."""
    attempt = sent(payout)
    asked = question(attempt, after(20))
    deliver_result(attempt, result_body(attempt, 2040), after(22))
    answer(question(attempt, after(90)), status_body(attempt, "Failed"), after(91))
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(92))
    deliver_result(attempt, result_body(attempt), after(93))
    assert journal.is_booked(f"late:{attempt.pk}")
    return attempt, asked


def test_reversal_of_a_late_payment_ends_the_debt(payout: Transaction) -> None:
    # given
    attempt, asked = late_payment(payout)
    owes = f"receivable:{payout.user_id}"

    # when
    outcome = answer(asked, status_body(attempt, "Reversed"), after(100))

    # then: the payout stays as it is, and the member owes nothing
    assert outcome == "reversed: M-Pesa took the late payment back, so the member does not owe it any more"
    assert states(payout, attempt) == ("COMPLETED", "REVERSED")
    assert booked(payout)[-1] == (f"regained:{attempt.pk}", "mpesa_utility", owes, KES_285)
    assert Recovery.objects.get(user=payout.user_id).outstanding == 0
    assert journal.balance(owes) == 0
    assert journal.balance("mpesa_utility") == 0
    before = booked(payout)
    answer(asked, status_body(attempt, "Reversed"), after(101))
    assert booked(payout) == before


def test_reversal_gives_back_a_debt_that_was_written_off_or_paid_back(payout: Transaction) -> None:
    # given: the member paid 100 of the debt back, and the rest was written off
    attempt, asked = late_payment(payout)
    recovery = Recovery.objects.get(user=payout.user_id)
    with transaction.atomic():
        owes, wallet = f"receivable:{payout.user_id}", f"wallet:{payout.user_id}"
        journal.post([journal.Entry("setoff:0:0", wallet, owes, Decimal(100))], at=after(94))
        receivables.record_repayment(settlement_id=payout.settlement_id, user_id=payout.user_id, amount=Decimal(100))
    debt_decisions.write_off(recovery_id=recovery.pk, reason="Gone.", by=builders.actor(), at=after(95))

    # when
    answer(asked, status_body(attempt, "Reversed"), after(100))

    # then
    assert booked(payout)[-2:] == [
        (f"regained:{attempt.pk}:loss", "mpesa_utility", "bad_debt", Decimal(185)),
        (f"regained:{attempt.pk}:wallet", "mpesa_utility", wallet, Decimal(100)),
    ]
    recovery.refresh_from_db()
    assert (recovery.amount, recovery.recovered, recovery.written_off) == (0, 0, 0)
    assert CustomUser.objects.get(pk=payout.user_id).balance == KES_285
