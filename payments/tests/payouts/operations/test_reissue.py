"""Re-issue of a payout to the member's new number, by two people."""

import json
from datetime import timedelta

import pytest
from django.db import DatabaseError, transaction

from payments import own_affairs
from payments.ledger import journal
from payments.models import Attempt, Breaker, Transaction, Verdict
from payments.payouts.evidence import orphans
from payments.payouts.operations import actions, bulk_retries, decisions, reissue, starting
from testing import builders, payout_steps
from testing.builders import actor, nothing_moved
from testing.lost_commits import Loss, answer_about_orphan, store_result, sweep
from testing.payout_steps import (
    KES_285,
    POLICY,
    after,
    answer,
    balances,
    booked,
    claims,
    deliver_result,
    question,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE
from users.models import AuditEntry, CustomUser

pytestmark = pytest.mark.django_db

OLD, NEW = "254712345678", "254798765432"


def failed_payout(*, new_number: str = NEW) -> tuple[Transaction, Attempt]:
    """Return a payout that failed at the member's old number, and its attempt. The member has a new number."""
    member = builders.member(phone_number=OLD)
    payout = builders.payout(285, user=member)
    attempt = payout_steps.failed(payout)
    change_number(payout, new_number)
    return payout, attempt


def change_number(payout: Transaction, number: str) -> None:
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=number)


def propose(payout: Transaction, by: CustomUser, at_second: float = 60) -> Verdict:
    return reissue.propose(
        transaction_id=payout.pk, grounds="The member showed the new SIM card.", by=actor(by), at=after(at_second)
    )


def reissued(payout: Transaction, at_second: float = 60) -> None:
    verdict = propose(payout, builders.operator(), at_second)
    reissue.confirm(verdict_id=verdict.pk, by=actor(builders.operator()), at=after(at_second + 1))


def test_retry_to_a_changed_number_is_refused() -> None:
    payout, _ = failed_payout()
    with nothing_moved(), pytest.raises(actions.NumberChanged) as refusal:
        actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(60))
    words = str(refusal.value)
    assert "678" in words
    assert "432" in words
    assert OLD not in words
    assert NEW not in words
    assert "No money moved. Re-issue it" in words
    assert bulk_retries.start(by=MACHINE, at=after(60)).retried == []
    assert claims(after(100)) == []


def test_two_people_reissue_a_payout_to_the_new_number() -> None:
    # given
    payout, _ = failed_payout()
    first, second = builders.operator(), builders.operator()

    # when
    verdict = propose(payout, first)
    payout.refresh_from_db()
    assert payout.status == "FAILED"
    reissue.confirm(verdict_id=verdict.pk, by=actor(second), at=after(61))

    # then
    payout.refresh_from_db()
    assert (payout.status, payout.phone_number, payout.receiver) == ("PENDING", OLD, NEW)
    (claim,) = claims(after(62))
    assert (claim.phone_number, claim.originator_conversation_id) == (NEW, f"{payout.external_ref}-2")
    assert list(payout.attempts.order_by("number").values_list("phone_number", flat=True)) == [OLD, NEW]
    entries = AuditEntry.objects.filter(action__startswith="payout.reissue").order_by("number")
    assert list(entries.values_list("action", "actor")) == [
        ("payout.reissue_proposed", first.pk),
        ("payout.reissue", first.pk),
        ("payout.reissue", second.pk),
    ]
    assert NEW not in str(list(entries.values()))


def test_one_person_cannot_reissue_alone() -> None:
    payout, _ = failed_payout()
    boss = builders.operator()
    verdict = propose(payout, boss)
    with nothing_moved(), pytest.raises(decisions.SamePerson):
        reissue.confirm(verdict_id=verdict.pk, by=actor(boss), at=after(61))
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided):
        propose(payout, boss)


def test_reissue_by_a_person_who_was_suspended_is_not_confirmed() -> None:
    payout, _ = failed_payout()
    boss, second = builders.operator(), builders.operator()
    verdict = propose(payout, boss)
    CustomUser.objects.filter(pk=boss.pk).update(is_active=False)
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="suspended"):
        reissue.confirm(verdict_id=verdict.pk, by=actor(second), at=after(61))


def test_member_cannot_reissue_their_own_payout() -> None:
    payout, _ = failed_payout()
    member = CustomUser.objects.get(pk=payout.user_id)
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        propose(payout, member)
    verdict = propose(payout, builders.operator())
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        reissue.confirm(verdict_id=verdict.pk, by=actor(member), at=after(61))


def test_number_that_changes_again_needs_a_new_proposal() -> None:
    payout, _ = failed_payout()
    verdict = propose(payout, builders.operator())
    change_number(payout, "254711111111")
    boss = builders.operator()
    with nothing_moved(), pytest.raises(actions.NumberChanged):
        reissue.confirm(verdict_id=verdict.pk, by=actor(boss), at=after(61))
    decisions.refuse(verdict_id=verdict.pk, reason="Changed again.", by=actor(boss), at=after(62))
    entry = AuditEntry.objects.get(action="payout.decision_refused")
    assert json.loads(entry.after) == {"verdict": verdict.pk, "number": "2547****432"}
    propose(payout, boss)


def test_payout_is_not_reissued_while_a_request_may_be_paid() -> None:
    # given: a request in doubt; a failed request that a callback reports as paid; a number that has not changed
    in_doubt = builders.payout(285)
    sent(in_doubt, payout_steps.READ_TIMEOUT)
    change_number(in_doubt, NEW)
    reported, attempt = failed_payout(new_number="254722222222")
    Attempt.objects.filter(pk=attempt.pk).update(next_query_at=after(70))
    same = builders.payout(285)
    payout_steps.failed(same)
    boss = builders.operator()

    # then
    for payout in (in_doubt, reported):
        with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
            propose(payout, boss)
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="present number"):
        propose(same, boss)


def test_result_decision_cannot_confirm_a_reissue() -> None:
    payout, _ = failed_payout()
    verdict = propose(payout, builders.operator())
    boss = builders.operator()
    with nothing_moved(), pytest.raises(decisions.DecisionNotOpen):
        decisions.confirm(verdict_id=verdict.pk, by=actor(boss), at=after(61), policy=payout_steps.POLICY)


def test_database_refuses_a_receiver_that_two_people_did_not_confirm() -> None:
    payout, _ = failed_payout()
    with pytest.raises(DatabaseError, match="Two people re-issue"), transaction.atomic():
        Transaction.objects.filter(pk=payout.pk).update(reissued_to=NEW)


# --- late payments to the old number ---------------------------------------------------------------------------------


def test_late_payment_to_the_old_number_is_misdirected() -> None:
    # given: the payout is re-issued and paid to the new number
    payout, old = failed_payout()
    reissued(payout)
    new = sent(payout, at=after(70))
    deliver_result(new, result_body(new, receipt="SKG7NEWNEW"), after(71))

    # when: M-Pesa reports that it paid the old number after all
    deliver_result(old, result_body(old, receipt="SKG7OLDOLD"), after(80))

    # then: it is no debt of the member
    assert states(payout, old) == ("COMPLETED", "PAID")
    assert (f"misdirected:{old.pk}", "misdirected", "mpesa_utility", KES_285) in booked(payout)
    assert journal.balance("misdirected") == KES_285
    assert journal.balance(journal.receivable(payout.user_id)) == 0


def test_reversal_of_a_misdirected_payment_empties_the_account() -> None:
    # given: M-Pesa paid the old number after all, and has not answered an early query yet
    payout = builders.payout(285, user=builders.member(phone_number=OLD))
    old = sent(payout)
    asked = question(old, after(20))
    deliver_result(old, result_body(old, 2040), after(22))
    answer(question(old, after(90)), status_body(old, "Failed"), after(91))
    change_number(payout, NEW)
    reissued(payout, 100)
    deliver_result(old, result_body(old, receipt="SKG7OLDOLD"), after(110))
    assert journal.balance("misdirected") == KES_285

    # when
    outcome = answer(asked, status_body(old, "Reversed"), after(120))

    # then: the payout goes on as before
    assert outcome == "reversed: M-Pesa took the payment to the replaced number back"
    assert journal.balance("misdirected") == 0
    assert (f"regained:{old.pk}", "mpesa_utility", "misdirected", KES_285) in booked(payout)
    payout.refresh_from_db()
    old.refresh_from_db()
    assert old.state == "REVERSED"
    assert payout.status == "PENDING"


def test_misdirected_payment_leaves_the_payout_owed() -> None:
    # given
    payout, old = failed_payout()
    reissued(payout)

    # when
    deliver_result(old, result_body(old, receipt="SKG7OLDOLD"), after(63))

    # then: the payout still leaves to the new number, and is paid once
    assert states(payout, old) == ("PENDING", "PAID")
    assert journal.owed(payout.pk) == KES_285
    new = sent(payout, at=after(70))
    deliver_result(new, result_body(new, receipt="SKG7NEWNEW"), after(71))
    assert states(payout, new) == ("COMPLETED", "PAID")
    assert balances(payout).get("in_flight", 0) == 0


def test_failure_at_the_new_number_after_a_misdirected_payment_keeps_the_debt() -> None:
    payout, old = failed_payout()
    reissued(payout)
    (claim,) = claims(after(62))
    deliver_result(old, result_body(old, receipt="SKG7OLDOLD"), after(63))
    new = payout_steps.put_through(claim, payout_steps.REJECTED, after(64))
    assert states(payout, new) == ("FAILED", "FAILED")
    assert journal.owed(payout.pk) == KES_285


def test_late_payment_to_the_old_number_before_the_decision_completes_the_payout() -> None:
    payout, old = failed_payout()
    verdict = propose(payout, builders.operator())
    deliver_result(old, result_body(old), after(61))
    assert states(payout, old) == ("COMPLETED", "PAID")
    boss = builders.operator()
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        reissue.confirm(verdict_id=verdict.pk, by=actor(boss), at=after(62))


# --- release ---------------------------------------------------------------------------------------------------------


def test_released_payout_with_a_changed_number_fails_instead_of_leaving() -> None:
    member = builders.member(phone_number=OLD)
    payout = builders.payout(285, user=member)
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(1))
    change_number(payout, NEW)
    actions.release(transaction_id=payout.pk, by=MACHINE, at=after(2))
    payout.refresh_from_db()
    assert payout.status == "FAILED"
    assert payout.reason.startswith("Its hold is ended.")
    assert claims(after(2) + timedelta(days=1)) == []
    reissued(payout)
    (claim,) = claims(after(62))
    assert claim.phone_number == NEW


def test_unsent_request_does_not_leave_to_the_old_number_after_a_release() -> None:
    # given: the request never left us, a person holds the payout, and the member's number changes
    payout = builders.payout(285, user=builders.member(phone_number=OLD))
    attempt = sent(payout, payout_steps.NO_CONNECTION)
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(1))
    change_number(payout, NEW)

    # when
    actions.release(transaction_id=payout.pk, by=MACHINE, at=after(30))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")
    assert (payout.held_by_person, payout.reason.startswith("Its hold is ended.")) == (False, True)
    assert claims(after(60)) == []
    reissued(payout)
    assert [claim.phone_number for claim in claims(after(90))] == [NEW]


def test_throttled_request_is_asked_about_after_a_release_with_a_changed_number() -> None:
    # given
    payout = builders.payout(285, user=builders.member(phone_number=OLD))
    attempt = sent(payout, payout_steps.THROTTLED)
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(1))
    change_number(payout, NEW)

    # when
    actions.release(transaction_id=payout.pk, by=MACHINE, at=after(60))

    # then: nothing leaves to the old number, and the request is decided like any other in doubt
    assert states(payout, attempt) == ("HELD", "IN_DOUBT")
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), after(61))
    assert (claims(after(120)), payout_steps.resends(after(120))) == ([], [])
    for second in (130, 250):
        payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), after(second))
    assert states(payout, attempt) == ("FAILED", "FAILED")
    reissued(payout, 300)
    payout_steps.ask_and_answer(attempt, payout_steps.status_body(attempt, "Failed"), after(301))
    assert [claim.phone_number for claim in claims(after(400))] == [NEW]


def test_number_that_was_paid_already_gets_no_other_request() -> None:
    # given: the old number is paid late, the new number fails, and the member has the old number again
    payout, first = failed_payout()
    reissued(payout)
    deliver_result(first, result_body(first), after(70))
    second = payout_steps.sent(payout, payout_steps.REJECTED, after(80))
    change_number(payout, OLD)
    boss = builders.operator()

    # when, then: the payout stays failed, and does not wait for ever
    with nothing_moved(), pytest.raises(decisions.NotToBeDecided, match="paid an earlier request"):
        propose(payout, boss, 90)
    assert states(payout, second) == ("FAILED", "FAILED")


def test_lost_payment_to_the_old_number_leaves_suspense() -> None:
    # given: a payout that failed twice, and M-Pesa paid a lost third request, whose amount is in suspense
    loss = Loss()
    loss.send(payout_steps.REJECTED, payout_steps.REJECTED, payout_steps.ACCEPTED)
    loss.lose()
    lost = loss.lost[2]
    store_result(lost, result_body(lost), after(10))
    answer_about_orphan(payout_steps.status_body(lost, receipt="SKG7OLDOLD"), after(11))
    sweep(after(400))
    starting.start(Breaker.Cause.ORPHAN, people=[MACHINE], reason="Looked at.", at=after(401))
    payout = loss.settle()
    for orphan_id in orphans.to_place(limit=10):
        orphans.place(orphan_id=orphan_id, at=after(500), policy=POLICY, addresses=payout_steps.ADDRESSES)
    found = Attempt.objects.get()
    assert states(payout, found) == ("PROCESSING", "IN_DOUBT")

    # when: the request counts as failed, the payout is re-issued, and then the stored result is applied
    code = payout_steps.status_body(found, "Failed")
    payout_steps.ask_and_answer(found, code, after(501))
    payout_steps.ask_and_answer(found, code, after(600))
    assert states(payout, found) == ("FAILED", "FAILED")
    change_number(payout, NEW)
    payout.refresh_from_db()
    reissued(payout, 700)
    sweep(after(702))

    # then
    assert states(payout, found) == ("PENDING", "PAID")
    assert journal.balance(journal.SUSPENSE) == 0
    assert journal.balance(journal.MISDIRECTED) == KES_285
    assert journal.balance(journal.MPESA_UTILITY) == -KES_285
