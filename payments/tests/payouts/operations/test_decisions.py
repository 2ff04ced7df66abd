"""Decisions of staff on held payouts, by one or two people."""

from datetime import datetime, timedelta

import pytest
from django.db import IntegrityError, transaction

from payments.ledger import journal
from payments.models import Attempt, Transaction, Verdict
from payments.payouts.operations import decisions
from testing import builders, console_scenes, payout_steps
from testing.builders import at_once, nothing_moved, operator, policy
from testing.payout_steps import (
    POLICY,
    after,
    balances,
    held,
    sent,
    states,
)
from users import audit, figures
from users.audit import Actor
from users.models import AuditEntry, CustomUser

BY = audit.Actor(user_id=None, source="test")


def recorded_actions() -> list[str]:
    """Return the actions on payouts in the audit trail, in order."""
    entries = AuditEntry.objects.filter(action__startswith="payout.").order_by("number")
    return list(entries.values_list("action", flat=True))


def decide(payout: Transaction, by: list[int], receipt: str = "", grounds: str = "statement of 17 February") -> None:
    at, people = after(90_000), [Actor(pk, "192.0.2.1") for pk in by]
    finding = decisions.Finding(receipt, grounds, None if receipt else at)
    decisions.decide(transaction_id=payout.pk, finding=finding, by=people, at=at, policy=POLICY)


@pytest.mark.django_db
def test_decision_with_a_receipt_completes_a_held_payout() -> None:
    payout, attempt = held()
    decide(payout, [builders.operator().pk], receipt="SGL12AB34C")
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert payout.receipt == "SGL12AB34C"
    assert balances(payout)["mpesa_utility"] == -285


@pytest.mark.django_db
def test_decision_without_a_receipt_fails_a_held_payout() -> None:
    payout, attempt = held()
    decide(payout, [builders.operator().pk, builders.operator().pk])
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert balances(payout) == {"payable": 285}


@pytest.mark.django_db
def test_large_held_payout_needs_two_people_and_grounds() -> None:
    # given
    payout, attempt = held(50_000)
    first, second = builders.operator().pk, builders.operator().pk

    # then
    for by, grounds in (([first], "statement"), ([first, first], "statement"), ([first, second], " ")):
        with pytest.raises(decisions.NotToBeDecided), builders.nothing_moved():
            decide(payout, by, receipt="SGL12AB34C", grounds=grounds)
    decide(payout, [first, second], receipt="SGL12AB34C")
    assert states(payout, attempt) == ("COMPLETED", "PAID")


@pytest.mark.django_db
def test_decisions_of_a_day_above_the_threshold_take_a_second_person() -> None:
    # given
    with transaction.atomic():
        change = figures.Change("threshold:payout.decide", "300", builders.AT, "Test")
        figures.set_value(change, by=audit.MACHINE, at=builders.AT)
    person, other = builders.operator().pk, builders.operator().pk
    (first, _), (second, attempt) = held(), held()

    # when, then: one person decides 285, and not 570
    decide(first, [person], receipt="SGL12AB34C")
    with pytest.raises(decisions.NotToBeDecided, match="Two different"), builders.nothing_moved():
        decide(second, [person], receipt="SGL12AB34D")
    decide(second, [person, other], receipt="SGL12AB34D")
    assert states(second, attempt) == ("COMPLETED", "PAID")


@pytest.mark.django_db
def test_payout_that_is_not_held_cannot_be_decided() -> None:
    payout = builders.payout(285)
    attempt = sent(payout)
    with pytest.raises(decisions.NotToBeDecided), builders.nothing_moved():
        decide(payout, [builders.operator().pk], receipt="SGL12AB34C")
    assert states(payout, attempt) == ("PROCESSING", "ACCEPTED")


def decide_or_propose(
    payout: Transaction, by: CustomUser, receipt: str = "", at: datetime = payout_steps.AT
) -> Verdict | None:
    return decisions.decide_or_propose(
        transaction_id=payout.pk,
        finding=decisions.Finding(receipt, "Line 7.", at),
        by=actor(by),
        at=at,
        policy=policy(),
    )


def actor(user: CustomUser) -> audit.Actor:
    return audit.Actor(user_id=user.pk, source="127.0.0.1")


def test_small_held_payout_is_decided_by_one_person(db: None, at: datetime) -> None:
    payout, person = console_scenes.held_in_doubt(300, at), operator()
    assert decide_or_propose(payout, person, "SKG7PAID01", at) is None
    payout.refresh_from_db()
    assert (payout.status, payout.receipt) == ("COMPLETED", "SKG7PAID01")
    assert Verdict.objects.count() == 0


def test_large_held_payout_waits_for_a_second_person(db: None, at: datetime) -> None:
    # given
    payout, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()

    # when
    with nothing_moved():
        waiting = decide_or_propose(payout, first, "SKG7PAID01", at)
        assert waiting is not None
        with pytest.raises(decisions.SamePerson):
            decisions.confirm(verdict_id=waiting.pk, by=actor(first), at=at, policy=policy())
        with pytest.raises(decisions.SamePerson):
            decisions.confirm(verdict_id=waiting.pk, by=BY, at=at, policy=policy())
        with pytest.raises(decisions.NotToBeDecided):
            decide_or_propose(payout, second, "", at)

    decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())

    # then
    payout.refresh_from_db()
    waiting.refresh_from_db()
    assert (payout.status, payout.receipt) == ("COMPLETED", "SKG7PAID01")
    assert (waiting.closed_by, waiting.confirmed) == (second, True)
    assert recorded_actions() == ["payout.decision_proposed", "payout.decide_paid", "payout.decide_paid"]
    deciders = AuditEntry.objects.filter(action="payout.decide_paid").values_list("actor", flat=True)
    assert set(deciders) == {first.pk, second.pk}
    with pytest.raises(decisions.DecisionNotOpen):
        decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())


def test_decision_of_a_person_who_was_suspended_is_not_confirmed(db: None, at: datetime) -> None:
    payout, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()
    waiting = decide_or_propose(payout, first, "SKG7PAID01", at)
    assert waiting is not None
    first.is_active = False
    first.save(update_fields=["is_active"])
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="suspended"):
        decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())


def test_refused_decision_changes_nothing_and_allows_another(db: None, at: datetime) -> None:
    payout, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()
    waiting = decide_or_propose(payout, first, "SKG7PAID01", at)
    assert waiting is not None
    with nothing_moved():
        decisions.refuse(verdict_id=waiting.pk, reason="Another line.", by=actor(second), at=at)
    again = decide_or_propose(payout, second, "", at)
    assert again is not None
    decisions.confirm(verdict_id=again.pk, by=actor(first), at=at, policy=policy())
    payout.refresh_from_db()
    assert (payout.status, journal.owed(payout.pk)) == ("FAILED", 60_000)
    with pytest.raises(decisions.DecisionNotOpen):
        decisions.refuse(verdict_id=waiting.pk, reason="", by=actor(second), at=at)


def test_evidence_overrules_a_waiting_decision(db: None, at: datetime) -> None:
    payout, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()
    waiting = decide_or_propose(payout, first, "", at)
    assert waiting is not None
    attempt = Attempt.objects.get(transaction=payout)
    payout_steps.deliver_result(attempt, payout_steps.result_body(attempt, receipt="SKG7TRUE01"), at)
    payout_steps.ask_and_answer(
        attempt, payout_steps.status_body(attempt, receipt="SKG7TRUE01"), at + timedelta(hours=3)
    )
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided):
        decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())
    payout.refresh_from_db()
    assert (payout.status, payout.receipt) == ("COMPLETED", "SKG7TRUE01")


def test_database_requires_two_people(db: None, at: datetime) -> None:
    payout, first = console_scenes.held_in_doubt(60_000, at), operator()
    waiting = decide_or_propose(payout, first, "", at)
    assert waiting is not None
    with pytest.raises(IntegrityError, match="two_people_confirm_a_verdict"), transaction.atomic():
        Verdict.objects.filter(pk=waiting.pk).update(closed_by=first, closed_at=at, confirmed=True)
    with pytest.raises(IntegrityError, match="one_open_verdict_a_transaction"), transaction.atomic():
        Verdict.objects.create(transaction=payout, grounds="x", proposed_by=first, proposed_from="x", proposed_at=at)


def test_concurrent_confirmations_decide_once(transactional_db: None, at: datetime) -> None:
    payout, first = console_scenes.held_in_doubt(60_000, at), operator()
    waiting = decide_or_propose(payout, first, "SKG7PAID01", at)
    assert waiting is not None
    seconds = [operator() for _ in range(4)]
    outcomes = at_once(
        *(
            lambda person=person: decisions.confirm(verdict_id=waiting.pk, by=actor(person), at=at, policy=policy())
            for person in seconds
        )
    )
    assert sum(isinstance(answer, decisions.DecisionNotOpen) for answer in outcomes) == 3
    assert Transaction.objects.get(pk=payout.pk).status == "COMPLETED"
    assert len(payout_steps.booked(payout)) == 4  # send, won, paid, charge
