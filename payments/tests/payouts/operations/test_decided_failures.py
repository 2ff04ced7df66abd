"""Two people decide by a receipt that a failed payout was paid after all. M-Pesa's own word ranks higher."""

from datetime import timedelta
from typing import Any

import pytest

from payments import own_affairs
from payments.ledger import journal
from payments.models import Attempt, Transaction
from payments.payouts.operations import actions, decisions
from testing import builders, payout_steps
from testing.builders import actor, nothing_moved, operator
from testing.payout_steps import KES_285, POLICY, after, answer, question, sent, states, status_body
from users.audit import MACHINE
from users.models import AuditEntry, CustomUser

pytestmark = pytest.mark.django_db
TYPED = "SKG7LATE00"


def decide(payout: Transaction, *by: CustomUser, receipt: str = TYPED) -> Any:
    finding = decisions.Finding(receipt, "The statement shows it.", None if receipt else after(50))
    return decisions.decide(
        transaction_id=payout.pk, finding=finding, by=[actor(person) for person in by], at=after(60), policy=POLICY
    )


def failed(user: CustomUser | None = None) -> tuple[Transaction, Attempt]:
    payout = builders.payout(285, user=user or builders.member())
    return payout, payout_steps.refused(payout)


def ask(attempt: Attempt, body: bytes) -> None:
    attempt.refresh_from_db()
    assert attempt.next_query_at is not None
    asked = question(attempt, attempt.next_query_at)
    assert asked.receipt == TYPED
    answer(asked, body, attempt.next_query_at + timedelta(seconds=1))


def test_failed_payout_that_two_people_know_to_be_paid_is_booked_and_confirmed() -> None:
    # given
    payout, attempt = failed()

    # when
    decide(payout, operator(), operator())

    # then: it is booked as a late success, and M-Pesa is asked about the receipt
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (payout.receipt, attempt.decision) == (TYPED, "paid")
    assert journal.is_booked(f"reopen:{attempt.pk}")
    assert (journal.owed(payout.pk), journal.balance(journal.MPESA_UTILITY)) == (0, -KES_285)
    assert AuditEntry.objects.filter(action="payout.decide_paid").count() == 2
    ask(attempt, status_body(attempt, receipt=TYPED))
    assert (*states(payout, attempt), attempt.decision) == ("COMPLETED", "PAID", "")


def test_decision_that_m_pesa_contradicts_is_taken_back() -> None:
    # given
    payout, attempt = failed()
    decide(payout, operator(), operator())

    # when
    ask(attempt, status_body(attempt, receipt=TYPED, ocid="KASOKO-9-9-ffffffff-1"))

    # then
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert journal.balance(journal.MPESA_UTILITY) == 0
    assert journal.balance(journal.IN_FLIGHT) == KES_285


def test_request_fails_again_after_its_decision_was_taken_back() -> None:
    # given
    payout, attempt = failed()
    decide(payout, operator(), operator())
    ask(attempt, status_body(attempt, receipt=TYPED, ocid="KASOKO-9-9-ffffffff-1"))

    # when
    for at in (after(300), after(400)):
        payout_steps.ask_and_answer(attempt, status_body(attempt, "Failed"), at)

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert (journal.balance(journal.IN_FLIGHT), journal.owed(payout.pk)) == (0, KES_285)
    assert journal.is_booked(f"return:{attempt.pk}:2")


def test_one_person_does_not_decide_a_failed_payout_alone() -> None:
    payout, attempt = failed()
    alone = operator()
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="Two different"):
        decide(payout, alone)
    boss, other = operator(), operator()
    finding = decisions.Finding(TYPED, "The statement shows it.")
    arguments: dict[str, Any] = {"at": after(60), "policy": POLICY}
    verdict = decisions.decide_or_propose(transaction_id=payout.pk, finding=finding, by=actor(boss), **arguments)
    assert verdict is not None
    assert states(payout, attempt) == ("FAILED", "FAILED")
    decisions.confirm(verdict_id=verdict.pk, by=actor(other), **arguments)
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_failed_payout_is_not_decided_as_not_paid_or_with_another_payouts_receipt() -> None:
    # given
    payout, _ = failed()
    other = builders.payout(285)
    paid = sent(other, at=after(1))
    payout_steps.deliver_result(paid, payout_steps.result_body(paid), after(2))

    # when, then
    first, second = operator(), operator()
    for receipt, why in (("", "cannot be decided"), (payout_steps.RECEIPT, "already belongs")):
        with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match=why):
            decide(payout, first, second, receipt=receipt)
    boss = operator()
    own, _ = failed(boss)
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        decide(own, boss, second)


def test_decision_is_not_confirmed_after_another_request_failed_too() -> None:
    # given
    payout, _ = failed()
    boss, other = operator(), operator()
    finding = decisions.Finding(TYPED, "The statement shows it.")
    arguments: dict[str, Any] = {"at": after(60), "policy": POLICY}
    verdict = decisions.decide_or_propose(transaction_id=payout.pk, finding=finding, by=actor(boss), **arguments)
    assert verdict is not None
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(61))
    sent(payout, payout_steps.REJECTED, after(62))

    # when, then
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="earlier request"):
        decisions.confirm(verdict_id=verdict.pk, by=actor(other), at=after(70), policy=POLICY)


def test_payout_that_m_pesa_is_asked_about_is_not_decided() -> None:
    payout, attempt = failed()
    Attempt.objects.filter(pk=attempt.pk).update(next_query_at=after(70))
    first, second = operator(), operator()
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="asking M-Pesa"):
        decide(payout, first, second)


def test_payout_that_went_to_the_wallet_is_not_decided() -> None:
    payout, _ = failed()
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(30))
    first, second = operator(), operator()
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="cannot be decided"):
        decide(payout, first, second)
