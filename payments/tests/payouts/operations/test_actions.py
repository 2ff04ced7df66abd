"""Holding, releasing and asking about one payout; and a person's word that waits for a second one."""

from datetime import datetime, timedelta

import pytest
from django.db import IntegrityError, transaction

from payments.ledger import journal
from payments.models import Attempt, Transaction, Verdict
from payments.payouts.operations import actions as operations_actions
from payments.payouts.operations import decisions as operations_decisions
from testing import console_scenes, payout_steps
from testing.builders import at_once, nothing_moved, operator, payout, policy
from users import audit
from users.models import AuditEntry, CustomUser

BY = audit.Actor(user_id=None, source="test")


def actor(user: CustomUser) -> audit.Actor:
    return audit.Actor(user_id=user.pk, source="127.0.0.1")


def recorded() -> list[tuple[str, str, str]]:
    decisions = AuditEntry.objects.filter(action__startswith="payout.").order_by("number")
    return list(decisions.values_list("action", "subject", "reason"))


# --- hold and release ------------------------------------------------------------------------------------------------


def test_a_held_payout_does_not_leave_until_it_is_released(db: None, at: datetime) -> None:
    # given
    one = payout(285)

    # when
    operations_actions.hold(transaction_id=one.pk, reason="The member asked us to wait.", by=BY, at=at)

    # then
    one.refresh_from_db()
    assert (one.status, one.reason) == ("HELD", "Held by a person: The member asked us to wait.")
    assert payout_steps.claims(at + timedelta(days=1)) == []

    # when
    operations_actions.release(transaction_id=one.pk, by=BY, at=at)

    # then
    (claim,) = payout_steps.claims(at)
    assert claim.transaction_id == one.pk
    assert recorded() == [
        ("payout.hold", f"transaction:{one.pk}", "The member asked us to wait."),
        ("payout.release", f"transaction:{one.pk}", ""),
    ]


def test_a_payout_that_waits_for_its_turn_is_made_due_now(db: None, at: datetime) -> None:
    one = payout(285, at=at)
    Transaction.objects.filter(pk=one.pk).update(due_at=at + timedelta(hours=3), reason="It leaves tomorrow.")
    assert payout_steps.claims(at) == []
    operations_actions.release(transaction_id=one.pk, by=BY, at=at)
    (claim,) = payout_steps.claims(at)
    assert claim.transaction_id == one.pk


def test_a_held_payout_whose_request_never_left_keeps_its_id(db: None, at: datetime) -> None:
    # given: the line was dead, so the request waits with its id, and a person holds the payout
    one = payout(285, at=at)
    attempt = payout_steps.sent(one, payout_steps.NO_CONNECTION, at=at)
    operations_actions.hold(transaction_id=one.pk, reason="Wait.", by=BY, at=at)
    with pytest.raises(operations_actions.PayoutNotRetryable):
        operations_actions.redirect_to_wallet(transaction_id=one.pk, by=BY, at=at)

    # when
    later = at + timedelta(minutes=2)
    operations_actions.release(transaction_id=one.pk, by=BY, at=later)

    # then
    (claim,) = payout_steps.claims(later, transaction_id=one.pk)
    assert claim.originator_conversation_id == attempt.originator_conversation_id


@pytest.mark.parametrize("said", [payout_steps.ACCEPTED, console_scenes.TIMED_OUT, payout_steps.REJECTED])
def test_what_has_left_or_failed_is_not_held(db: None, at: datetime, said: payout_steps.Said) -> None:
    one = payout(285, at=at)
    payout_steps.sent(one, said, at=at)
    with nothing_moved(), pytest.raises(operations_actions.NotToBeHeld):
        operations_actions.hold(transaction_id=one.pk, reason="Too late.", by=BY, at=at)


def test_what_is_in_doubt_under_way_or_failed_is_not_released(db: None, at: datetime) -> None:
    held = console_scenes.held_in_doubt(300, at)
    sent, failed = payout(285, at=at), payout(285, at=at)
    payout_steps.sent(sent, at=at)
    payout_steps.failed(failed, at=at)
    with nothing_moved():
        with pytest.raises(operations_actions.PayoutNotRetryable):
            operations_actions.release(transaction_id=held.pk, by=BY, at=at)
        for one in (sent, failed):
            with pytest.raises(operations_actions.NotToBeReleased):
                operations_actions.release(transaction_id=one.pk, by=BY, at=at)
        with pytest.raises(operations_actions.TransactionNotFound):
            operations_actions.release(transaction_id=10**9, by=BY, at=at)
    assert recorded() == []


# --- ask now ---------------------------------------------------------------------------------------------------------


def test_a_question_is_asked_now_rather_than_at_its_turn(db: None, at: datetime) -> None:
    one = payout(285, at=at)
    attempt = payout_steps.sent(one, at=at)
    soon = at + timedelta(seconds=2)
    operations_actions.ask_now(transaction_id=one.pk, by=BY, at=soon)
    assert payout_steps.question(attempt, soon).originator_conversation_id == attempt.originator_conversation_id
    assert recorded() == [("payout.ask", f"transaction:{one.pk}", "")]


def test_there_is_nothing_to_ask_about_what_never_left_or_is_known(db: None, at: datetime) -> None:
    pending, failed = payout(285, at=at), payout(285, at=at)
    payout_steps.failed(failed, at=at)
    with nothing_moved():
        for one in (pending, failed):
            with pytest.raises(operations_actions.NothingToAsk):
                operations_actions.ask_now(transaction_id=one.pk, by=BY, at=at)


# --- a word and a second one -----------------------------------------------------------------------------------------


def give(one: Transaction, by: CustomUser, receipt: str = "", at: datetime = payout_steps.AT) -> Verdict | None:
    return operations_decisions.decide_or_propose(
        transaction_id=one.pk, receipt=receipt, grounds="Line 7.", by=actor(by), at=at, policy=policy()
    )


def test_a_small_held_payout_is_decided_by_one_word(db: None, at: datetime) -> None:
    one, person = console_scenes.held_in_doubt(300, at), operator()
    assert give(one, person, "SKG7PAID01", at) is None
    one.refresh_from_db()
    assert (one.status, one.receipt) == ("COMPLETED", "SKG7PAID01")
    assert Verdict.objects.count() == 0


def test_a_large_one_waits_for_a_second_person_who_confirms_just_that(db: None, at: datetime) -> None:
    # given
    one, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()

    # when
    with nothing_moved():
        waiting = give(one, first, "SKG7PAID01", at)
        assert waiting is not None
        with pytest.raises(operations_decisions.SamePerson):
            operations_decisions.confirm(verdict_id=waiting.pk, by=actor(first), at=at, policy=policy())
        with pytest.raises(operations_decisions.SamePerson):
            operations_decisions.confirm(verdict_id=waiting.pk, by=BY, at=at, policy=policy())
        with pytest.raises(operations_decisions.NotToBeDecided):
            give(one, second, "", at)

    operations_decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())

    # then
    one.refresh_from_db()
    waiting.refresh_from_db()
    assert (one.status, one.receipt) == ("COMPLETED", "SKG7PAID01")
    assert (waiting.closed_by, waiting.confirmed) == (second, True)
    actions = [action for action, _, _ in recorded()]
    assert actions == ["payout.decision_proposed", "payout.decide_paid", "payout.decide_paid"]
    deciders = AuditEntry.objects.filter(action="payout.decide_paid").values_list("actor", flat=True)
    assert set(deciders) == {first.pk, second.pk}
    with pytest.raises(operations_decisions.DecisionNotOpen):
        operations_decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())


def test_a_word_that_is_taken_back_decides_nothing_and_makes_room_for_another(db: None, at: datetime) -> None:
    one, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()
    waiting = give(one, first, "SKG7PAID01", at)
    assert waiting is not None
    with nothing_moved():
        operations_decisions.refuse(verdict_id=waiting.pk, reason="Another line.", by=actor(second), at=at)
    again = give(one, second, "", at)
    assert again is not None
    operations_decisions.confirm(verdict_id=again.pk, by=actor(first), at=at, policy=policy())
    one.refresh_from_db()
    assert (one.status, journal.owed(one.pk)) == ("FAILED", 60_000)
    with pytest.raises(operations_decisions.DecisionNotOpen):
        operations_decisions.refuse(verdict_id=waiting.pk, reason="", by=actor(second), at=at)


def test_evidence_that_comes_meanwhile_beats_the_word(db: None, at: datetime) -> None:
    one, first, second = console_scenes.held_in_doubt(60_000, at), operator(), operator()
    waiting = give(one, first, "", at)
    assert waiting is not None
    attempt = Attempt.objects.get(transaction=one)
    payout_steps.hear(attempt, payout_steps.result_body(attempt, receipt="SKG7TRUE01"), at)
    payout_steps.ask_and_hear(attempt, payout_steps.status_body(attempt, receipt="SKG7TRUE01"), at + timedelta(hours=3))
    with nothing_moved(), pytest.raises(operations_decisions.NotToBeDecided):
        operations_decisions.confirm(verdict_id=waiting.pk, by=actor(second), at=at, policy=policy())
    one.refresh_from_db()
    assert (one.status, one.receipt) == ("COMPLETED", "SKG7TRUE01")


def test_the_database_too_takes_two_people(db: None, at: datetime) -> None:
    one, first = console_scenes.held_in_doubt(60_000, at), operator()
    waiting = give(one, first, "", at)
    assert waiting is not None
    with pytest.raises(IntegrityError, match="two_people_confirm_a_verdict"), transaction.atomic():
        Verdict.objects.filter(pk=waiting.pk).update(closed_by=first, closed_at=at, confirmed=True)
    with pytest.raises(IntegrityError, match="one_open_verdict_a_transaction"), transaction.atomic():
        Verdict.objects.create(transaction=one, grounds="x", proposed_by=first, proposed_from="x", proposed_at=at)


def test_two_who_confirm_at_once_decide_once(transactional_db: None, at: datetime) -> None:
    one, first = console_scenes.held_in_doubt(60_000, at), operator()
    waiting = give(one, first, "SKG7PAID01", at)
    assert waiting is not None
    seconds = [operator() for _ in range(4)]
    said = at_once(
        *(
            lambda person=person: operations_decisions.confirm(
                verdict_id=waiting.pk, by=actor(person), at=at, policy=policy()
            )
            for person in seconds
        )
    )
    assert sum(isinstance(answer, operations_decisions.DecisionNotOpen) for answer in said) == 3
    assert Transaction.objects.get(pk=one.pk).status == "COMPLETED"
    assert len(payout_steps.booked(one)) == 4  # send, won, paid, charge
