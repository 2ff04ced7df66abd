"""Contradictions about failed requests: M-Pesa's result says paid, its records say failed. A person must know."""

from collections.abc import Callable

import pytest
from django.db import transaction

from payments.models import Attempt, Transaction
from payments.payouts import attempts
from payments.payouts.evidence import rules
from payments.payouts.operations import actions, decisions
from testing import builders, payout_steps
from testing.builders import actor, operator
from testing.payout_steps import POLICY, after, ask_and_answer, deliver_result, result_body, states, status_body
from users.audit import MACHINE

pytestmark = pytest.mark.django_db
LARGE = 60_000
FAILED = "Failed"


def contradicted(*, retries: bool = False) -> tuple[Transaction, Attempt]:
    """Fail a large payout by two sources, and let a trusted result report afterwards that it was paid."""
    payout = builders.payout(LARGE)
    attempt = payout_steps.sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(2))
    ask_and_answer(attempt, status_body(attempt, FAILED), after(22))
    assert states(payout, attempt) == ("FAILED", "FAILED")
    if retries:
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))
    deliver_result(attempt, result_body(attempt), after(60))
    return payout, attempt


@pytest.mark.parametrize("retries", [False, True])
def test_contradicted_failure_is_held_for_a_person(retries: bool, alarms: Callable[[], list[str]]) -> None:
    # given
    payout, attempt = contradicted(retries=retries)

    # when
    ask_and_answer(attempt, status_body(attempt, FAILED), after(61))

    # then: nothing is sent, and M-Pesa is still asked
    assert states(payout, attempt) == ("HELD", "FAILED")
    assert payout.reason == rules.CONTRADICTION
    assert attempt.next_query_at is not None
    assert payout_steps.claims(after(7_000)) == []
    assert len([alarm for alarm in alarms() if "its result says paid" in alarm]) == 1


def test_contradicted_failure_is_not_retried_while_m_pesa_is_asked() -> None:
    payout, attempt = contradicted()
    ask_and_answer(attempt, status_body(attempt, FAILED), after(61))
    with pytest.raises(actions.PayoutNotRetryable, match="asking M-Pesa"):
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(70))


def test_late_proof_completes_a_contradicted_payout() -> None:
    payout, attempt = contradicted()
    ask_and_answer(attempt, status_body(attempt, FAILED), after(61))
    ask_and_answer(attempt, status_body(attempt), after(500))
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_two_people_decide_a_contradicted_payout_once_the_queries_end() -> None:
    # given
    payout, attempt = contradicted()
    ask_and_answer(attempt, status_body(attempt, FAILED), after(61))
    Attempt.objects.filter(pk=attempt.pk).update(next_query_at=None)
    finding = decisions.Finding("SKG7LATE00", "The statement shows it.")

    # when, then
    with pytest.raises(decisions.NotToBeDecided, match="Two different"):
        decisions.decide(
            transaction_id=payout.pk, finding=finding, by=[actor(operator())], at=after(90_000), policy=POLICY
        )
    both = [actor(operator()), actor(operator())]
    decisions.decide(transaction_id=payout.pk, finding=finding, by=both, at=after(90_000), policy=POLICY)
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_contradiction_about_a_settled_debt_is_only_alarmed(alarms: Callable[[], list[str]]) -> None:
    # given: the payout went to the wallet
    payout = builders.payout(LARGE)
    attempt = payout_steps.sent(payout)
    deliver_result(attempt, result_body(attempt, 2040), after(2))
    ask_and_answer(attempt, status_body(attempt, FAILED), after(22))
    with transaction.atomic():
        attempts.complete_in_wallet(payout, at=after(30))
    deliver_result(attempt, result_body(attempt), after(60))

    # when
    ask_and_answer(attempt, status_body(attempt, FAILED), after(61))

    # then
    assert states(payout, attempt) == ("COMPLETED", "FAILED")
    assert attempt.next_query_at is None
    assert any("its result says paid" in alarm for alarm in alarms())
