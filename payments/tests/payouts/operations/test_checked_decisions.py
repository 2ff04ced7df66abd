"""Decisions of staff against M-Pesa's evidence: refused, confirmed, and taken back."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from django.db import Error, IntegrityError, transaction

from payments import own_affairs
from payments.models import Attempt, Breaker, Callback, StatusQuery, Transaction
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.operations import decisions, in_doubt, starting
from testing import builders, payout_steps
from testing.builders import at_once, nothing_moved
from testing.lost_commits import Loss, answer_about_orphan, store_result, sweep
from testing.payout_steps import (
    ACCEPTED,
    ADDRESSES,
    CHARGE,
    KES_285,
    NO_CONNECTION,
    POLICY,
    READ_TIMEOUT,
    RECEIPT,
    REJECTED,
    after,
    answer,
    balances,
    booked,
    deliver_result,
    held,
    question,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE, Actor

TYPED = "SGL12AB34C"
DAY = 86_400


def people(count: int = 2) -> list[Actor]:
    return [builders.actor(builders.operator()) for _ in range(count)]


def decide(
    payout: Transaction,
    receipt: str = "",
    *,
    by: list[Actor] | None = None,
    statement_until: datetime | None = None,
    at: datetime | None = None,
) -> None:
    finding = decisions.Finding(receipt, "The statement of 17 February.", statement_until)
    decisions.decide(
        transaction_id=payout.pk, finding=finding, by=by or people(), at=at or after(DAY + 100), policy=POLICY
    )


def assert_refused(
    why: str, payout: Transaction, receipt: str = "", *, count: int = 2, statement_until: datetime | None = None
) -> None:
    by = people(count)
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match=why):
        decide(payout, receipt, by=by, statement_until=statement_until)


def decided(receipt: str = TYPED) -> tuple[Transaction, Attempt]:
    """Return a held payout that staff decided as paid, and its request."""
    payout, attempt = held()
    decide(payout, receipt)
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.decision == "paid"
    return payout, attempt


def ask(attempt: Attempt, body: bytes, *, receipt: str) -> str | None:
    """Ask the next due question, which must be about this receipt ("" for our id), and deliver its answer."""
    attempt.refresh_from_db()
    assert attempt.next_query_at is not None
    asked = question(attempt, attempt.next_query_at)
    assert asked.receipt == receipt
    return answer(asked, body, attempt.next_query_at + timedelta(seconds=1))


# --- refused decisions -----------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("typed", [RECEIPT, RECEIPT.lower(), f" {RECEIPT} "])
def test_receipt_of_another_payout_is_refused(typed: str) -> None:
    other = builders.payout()
    paid = sent(other)
    deliver_result(paid, result_body(paid))
    payout, attempt = held()
    assert_refused(f"already belongs to payout {other.pk}", payout, typed)
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")


@pytest.mark.django_db
def test_receipt_of_the_payouts_other_request_is_refused() -> None:
    # given: the first request failed and was paid after all, while the second one is in doubt
    payout = builders.payout()
    first = payout_steps.refused(payout)
    payout_steps.actions.retry(transaction_id=payout.pk, by=builders.actor(), at=after(30))
    second = sent(payout, READ_TIMEOUT, after(31))
    deliver_result(first, result_body(first), after(32))
    assert states(payout, second) == ("HELD", "IN_DOUBT")

    # then
    assert_refused("another request of this payout", payout, RECEIPT)


@pytest.mark.django_db
def test_request_that_never_left_cannot_be_decided_as_paid() -> None:
    # given
    payout = builders.payout()
    sent(payout, NO_CONNECTION)
    payout_steps.actions.hold(transaction_id=payout.pk, reason="Check.", by=builders.actor(), at=after(5))

    # then
    assert_refused("never left us", payout, TYPED)
    decide(payout)
    payout.refresh_from_db()
    assert payout.status == "FAILED"


@pytest.mark.django_db
@pytest.mark.parametrize("receipt", [TYPED, ""])
def test_stored_callback_that_is_not_applied_refuses_a_decision(receipt: str) -> None:
    # given
    payout, attempt = held()
    token = ADDRESSES.token(attempt.originator_conversation_id)
    body = result_body(attempt)
    at = after(DAY + 50)
    callbacks.store(
        kind="result", token=token, body=body, source_ip=None, trusted=True, at=at, addresses=ADDRESSES
    )  # fmt: skip

    # when
    with pytest.raises(decisions.NotToBeDecided, match="not applied yet"):
        decide(payout, receipt, statement_until=at)

    # then
    callbacks.apply(callback_id=Callback.objects.get().pk, at=after(DAY + 60), policy=POLICY)
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert payout.receipt == RECEIPT


@pytest.mark.django_db
def test_not_paid_takes_two_people() -> None:
    payout, _ = held()
    assert_refused("Two different members", payout, count=1, statement_until=after(DAY))


@pytest.mark.django_db
def test_not_paid_needs_an_answer_or_statement_after_the_last_possible_payment() -> None:
    # given: sent once, so M-Pesa might have paid it until the end of the resend horizon
    payout, attempt = held()
    last = after(0) + POLICY.resend_horizon
    for until in (None, last - timedelta(seconds=1), last):
        assert_refused("may have paid this request until", payout, statement_until=until)

    # when: M-Pesa answers the question of the day after
    (asked,) = attempt.queries.all()
    due = status_queries.DueQuery(asked.pk, attempt.originator_conversation_id, _token(attempt, asked.number))
    answer(due, payout_steps.not_found_body(), after(DAY + 1))

    # then
    decide(payout)
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert attempt.decision == "not_paid"


def _token(attempt: Attempt, number: int) -> str:
    return ADDRESSES.token(f"{attempt.originator_conversation_id}?{number}")


def test_two_decisions_with_one_receipt_at_once_decide_one(transactional_db: None) -> None:
    payouts = [held()[0], held()[0]]
    outcomes = at_once(*(lambda payout=payout: decide(payout, TYPED) for payout in payouts))
    assert sum(isinstance(outcome, decisions.NotToBeDecided) for outcome in outcomes) == 1
    assert sorted(Transaction.objects.values_list("status", flat=True)) == ["COMPLETED", "HELD"]


@pytest.mark.django_db
def test_database_refuses_one_decided_receipt_for_two_requests() -> None:
    _, attempt = decided()
    _, other = held()
    Attempt.objects.filter(pk=other.pk).update(receipt=TYPED.lower())
    with pytest.raises(IntegrityError, match="decided_receipt_once"), transaction.atomic():
        Attempt.objects.filter(pk=other.pk).update(decision="paid")
    assert attempt.receipt == TYPED


# --- M-Pesa confirms -------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_decided_receipt_is_asked_about_until_m_pesa_confirms_it() -> None:
    # given
    payout, attempt = decided()
    assert [row.transaction_id for row in in_doubt.in_doubt()] == [payout.pk]

    # when: M-Pesa does not answer about the receipt, and does not find our id
    first = question(attempt, after(DAY + 100))
    assert first.receipt == TYPED
    ask(attempt, payout_steps.not_found_body(), receipt="")
    assert [row.transaction_id for row in in_doubt.in_doubt()] == [payout.pk]
    outcome = ask(attempt, status_body(attempt, receipt=TYPED), receipt=TYPED)

    # then
    assert outcome == "paid, as staff had decided"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (attempt.decision, attempt.next_query_at) == ("", None)
    assert in_doubt.in_doubt() == []
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


@pytest.mark.django_db
def test_m_pesas_own_receipt_replaces_the_decided_one(alarms: Callable[[], list[str]]) -> None:
    payout, attempt = decided()
    before = booked(payout)
    outcome = deliver_result(attempt, result_body(attempt), after(DAY + 200))
    assert outcome == f"paid, but M-Pesa's receipt is {RECEIPT}, not {TYPED} as staff had decided"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (payout.receipt, attempt.receipt, attempt.decision) == (RECEIPT, RECEIPT, "")
    assert booked(payout) == before
    assert any(RECEIPT in alarm for alarm in alarms())


# --- M-Pesa contradicts ----------------------------------------------------------------------------------------------

CONTRADICTIONS = {
    "another id": {"ocid": "KASOKO-9-9-ffffffff-1"},
    "another amount": {"amount": 286},
    "another phone": {"phone": "254799999999"},
    "a failed payment": {"status": "Failed"},
}


@pytest.mark.django_db
@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_receipt_of_another_payment_takes_the_decision_back(
    change: dict[str, str], alarms: Callable[[], list[str]]
) -> None:
    # given
    payout, attempt = decided()

    # when
    outcome = ask(attempt, status_body(attempt, **{"receipt": TYPED, **change}), receipt=TYPED)

    # then
    assert outcome == "held: M-Pesa contradicts the decision that it was paid"
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    assert (payout.receipt, payout.completed_at, attempt.receipt, attempt.decision) == ("", None, "", "")
    assert balances(payout) == {"in_flight": KES_285}
    assert any("contradicts" in alarm for alarm in alarms())
    assert attempt.next_query_at is not None
    assert ask(attempt, status_body(attempt), receipt="") == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}


@pytest.mark.django_db
def test_definite_result_and_answer_fail_a_payout_decided_as_paid() -> None:
    # given
    payout, attempt = decided()
    deliver_result(attempt, result_body(attempt, 2040), after(DAY + 200))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")

    # when
    ask(attempt, status_body(attempt, "Failed"), receipt="")

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": KES_285}


@pytest.mark.django_db
def test_decision_can_be_made_again_after_a_contradiction() -> None:
    payout, attempt = decided()
    ask(attempt, status_body(attempt, ocid="KASOKO-9-9-ffffffff-1", receipt=TYPED), receipt=TYPED)
    decide(payout, "SGL99ZZ99Z", at=after(DAY + 300))
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert balances(payout) == {"mpesa_utility": -KES_285, "charge_expense": CHARGE}
    assert (attempt.decision, attempt.corrections) == ("paid", 1)


@pytest.mark.django_db
def test_payment_after_a_decision_as_not_paid_is_booked() -> None:
    payout, attempt = held()
    decide(payout, statement_until=after(DAY))
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert deliver_result(attempt, result_body(attempt), after(DAY + 200)) == "paid"
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.decision == ""


@pytest.mark.django_db
def test_untrusted_answer_about_the_receipt_changes_nothing() -> None:
    payout, attempt = decided()
    asked = question(attempt, after(DAY + 100))
    for body in (status_body(attempt, receipt=TYPED), status_body(attempt, ocid="other", receipt=TYPED)):
        payout_steps.deliver(
            "status", asked.token, body, after(DAY + 101), policy=payout_steps.PRODUCTION, trusted=False
        )
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.decision == "paid"
    assert set(StatusQuery.objects.filter(receipt=TYPED).values_list("verdict", flat=True)) == {""}


# --- M-Pesa reverses -------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_reversed_payment_is_owed_again(alarms: Callable[[], list[str]]) -> None:
    # given
    payout, attempt = decided()
    before = booked(payout)

    # when
    outcome = ask(attempt, status_body(attempt, "Reversed", receipt=TYPED), receipt=TYPED)

    # then
    assert outcome == "held: M-Pesa reversed the payment, so we owe it again"
    assert states(payout, attempt) == ("HELD", "REVERSED")
    assert booked(payout) == [*before, (f"returned:{attempt.pk}", "mpesa_utility", "payable", KES_285)]
    assert any("reversed" in alarm for alarm in alarms())
    payout_steps.actions.retry(transaction_id=payout.pk, by=builders.actor(), at=after(DAY + 300))
    attempt.refresh_from_db()
    assert attempt.next_query_at is None
    second = sent(payout, at=after(DAY + 400))
    assert second.number == 2
    assert deliver_result(second, result_body(second, receipt="SKG7SECOND"), after(DAY + 401)) == "paid"
    assert states(payout, second) == ("COMPLETED", "PAID")


# --- requests that our books had lost --------------------------------------------------------------------------------


def in_suspense(stake: int = 285) -> Loss:
    """Lose a request that M-Pesa paid, and book its payment in suspense."""
    loss = Loss(stake)
    loss.send(ACCEPTED)
    loss.lose()
    store_result(loss.lost[0], result_body(loss.lost[0]), after(10))
    answer_about_orphan(status_body(loss.lost[0]), after(11))
    sweep(after(400))
    starting.start(Breaker.Cause.ORPHAN, people=[MACHINE], reason="Looked at.", at=after(401))
    return loss


def held_with_suspense() -> tuple[Transaction, Attempt]:
    """Return a held payout that took over a payment in suspense, and its request, which M-Pesa no longer finds."""
    payout = in_suspense(50_000).settle()
    sweep(after(500))
    attempt = Attempt.objects.get()
    question(attempt, after(DAY + 20))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    return payout, attempt


@pytest.mark.django_db
@pytest.mark.parametrize("receipt", ["", TYPED])
def test_payment_in_suspense_refuses_every_other_decision(receipt: str) -> None:
    payout, attempt = held_with_suspense()
    assert_refused(f"has paid this request, with receipt {RECEIPT}", payout, receipt, statement_until=after(DAY))
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")


@pytest.mark.django_db
def test_payment_in_suspense_is_proven_once_it_is_decided_as_paid() -> None:
    payout, attempt = held_with_suspense()
    decide(payout, RECEIPT)
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (attempt.decision, attempt.next_query_at) == ("", None)


@pytest.mark.django_db
def test_second_receipt_of_a_payment_from_suspense_is_booked() -> None:
    payout, attempt = held_with_suspense()
    decide(payout, RECEIPT)
    deliver_result(attempt, result_body(attempt, receipt="SKG7SECOND"), after(DAY + 200))
    outcome = ask(attempt, status_body(attempt, receipt="SKG7SECOND"), receipt="SKG7SECOND")
    assert outcome == "a second receipt SKG7SECOND: M-Pesa paid twice, so the member owes the amount back"


@pytest.mark.django_db
def test_receipt_in_suspense_is_refused_for_another_payout() -> None:
    in_suspense()
    payout, _ = held()
    assert_refused("which our books had lost", payout, RECEIPT)


@pytest.mark.django_db
@pytest.mark.parametrize("receipt", ["", TYPED])
def test_lost_request_that_is_not_placed_refuses_a_decision(receipt: str) -> None:
    # given: M-Pesa reports a lost second request while the first one is held
    loss = Loss()
    loss.send(REJECTED, ACCEPTED)
    loss.lose()
    payout = loss.settle()
    first = sent(payout, READ_TIMEOUT, at=after(3))
    question(first, after(DAY + 3))
    assert states(payout, first) == ("HELD", "IN_DOUBT")
    store_result(loss.lost[1], result_body(loss.lost[1]), after(DAY + 10))

    # then
    assert_refused("reports request", payout, receipt, statement_until=after(DAY + 9))


@pytest.mark.django_db
def test_lost_request_that_is_not_placed_refuses_payment_to_the_wallet() -> None:
    # given: M-Pesa reports a lost second request after the first one failed
    loss = Loss()
    loss.send(REJECTED, ACCEPTED)
    loss.lose()
    payout = loss.settle()
    payout_steps.failed(payout)
    store_result(loss.lost[1], result_body(loss.lost[1]), after(10))

    # then
    with nothing_moved(), pytest.raises(payout_steps.actions.PayoutNotRetryable, match="No money moved"):
        payout_steps.actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(11))


# --- who and when ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_statement_that_ends_in_the_future_is_refused() -> None:
    payout, _ = held()
    assert_refused("cannot end in the future", payout, statement_until=after(2 * DAY))


@pytest.mark.django_db
def test_decision_about_an_earlier_request_decides_no_later_one() -> None:
    # given: one person decides that the first request was not paid, and M-Pesa then proves that it failed
    payout, first = held()
    one, other = people()
    finding = decisions.Finding("", "The statement of 17 February.", after(DAY + 50))
    verdict = decisions.decide_or_propose(
        transaction_id=payout.pk, finding=finding, by=one, at=after(DAY + 60), policy=POLICY
    )
    deliver_result(first, result_body(first, 2040), after(DAY + 70))
    payout_steps.ask_and_answer(first, status_body(first, "Failed"), after(DAY + 71))
    payout_steps.actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(DAY + 80))
    payout_steps.ask_and_answer(first, status_body(first, "Failed"), after(DAY + 81))

    # given: the second request is in doubt, and M-Pesa does not know it later
    second = sent(payout, READ_TIMEOUT, after(DAY + 90))
    payout_steps.ask_and_answer(second, payout_steps.not_found_body(), after(2 * DAY + 100))
    assert states(payout, second) == ("HELD", "IN_DOUBT")

    # when, then: the second person confirms what nobody has decided
    assert verdict is not None
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="an earlier request"):
        decisions.confirm(verdict_id=verdict.pk, by=other, at=after(2 * DAY + 200), policy=POLICY)
    decisions.refuse(verdict_id=verdict.pk, reason="Outdated.", by=other, at=after(2 * DAY + 201))
    assert states(payout, second) == ("HELD", "IN_DOUBT")


@pytest.mark.django_db
@pytest.mark.parametrize("receipt", ["", TYPED])
def test_member_cannot_decide_their_own_payout(receipt: str) -> None:
    payout, _ = held()
    by = [builders.actor(payout.user), *people(1)]
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        decide(payout, receipt, by=by, statement_until=after(DAY))
    finding = decisions.Finding(receipt, "The statement of 17 February.", after(DAY))
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        decisions.decide_or_propose(
            transaction_id=payout.pk, finding=finding, by=by[0], at=after(DAY + 100), policy=POLICY
        )


# --- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_database_refuses_to_hold_a_paid_payout_without_its_transfers() -> None:
    payout, attempt = decided()
    with pytest.raises(Error, match="transfers that take its payment back"), transaction.atomic():
        Transaction.objects.filter(pk=payout.pk).update(status="HELD")
    Attempt.objects.filter(pk=attempt.pk).update(decision="")
    with pytest.raises(Error, match="Only a payment that staff decided"), transaction.atomic():
        Attempt.objects.filter(pk=attempt.pk).update(state="IN_DOUBT")
