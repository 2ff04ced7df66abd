"""After a restore, a payout waits until M-Pesa denies the later requests of it that may be lost too."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from markets.models import NAIROBI
from payments.ledger import journal
from payments.models import AskFirst, Attempt, DayTotal, Dispute, Orphan, Restore, Transaction
from payments.payouts import breakers, outcomes
from payments.payouts.evidence import orphans
from payments.payouts.operations import actions, bulk_retries, failures, reissue
from payments.payouts.restores import decisions, detection, procedure
from testing import builders, dispute_steps, payout_steps
from testing.builders import AT, nothing_moved
from testing.lost_commits import Loss, answer_later, deny_later, store, store_result, sweep
from testing.payout_steps import (
    ACCEPTED,
    ADDRESSES,
    NO_CONNECTION,
    READ_TIMEOUT,
    REJECTED,
    after,
    ask_and_answer,
    claims,
    not_found_body,
    put_through,
    resends,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE
from users.models import CustomUser

pytestmark = pytest.mark.django_db
POLICY = builders.policy()
HOUR = 3_600.0
DAY = AT.astimezone(NAIROBI).date()


def restored(*, survived: float = 0, noticed: float = 10) -> Restore:
    """Record a restore to `survived`, noticed at `noticed`, and run the procedure once."""
    restore = detection.report(survived_at=after(survived), at=after(noticed), policy=POLICY)
    advance(after(noticed))
    return restore


def advance(at: datetime) -> None:
    procedure.advance(at=at, policy=POLICY, addresses=ADDRESSES, keep_going=lambda: True)


def lost(*responses: payout_steps.Response) -> tuple[Loss, Transaction]:
    """Send a payout once for each response, lose all of it, notice it, and settle the market again."""
    loss = Loss()
    loss.send(*responses)
    loss.lose()
    restored()
    payout = loss.settle()
    advance(after(11))
    return loss, payout


def counted(payout: Transaction) -> Decimal:
    """Return what counts for the member's limit of the day."""
    return sum((row.amount for row in DayTotal.objects.filter(user=payout.user_id, day=DAY)), Decimal(0))


# --- later numbers ----------------------------------------------------------------------------------------------------


def test_lost_retry_that_was_paid_settles_the_payout() -> None:
    # given: the first request was refused at once, the second was paid, and both are lost
    loss, payout = lost(REJECTED, ACCEPTED)
    first, second = Attempt.objects.get(), loss.lost[1]

    # when: M-Pesa does not know the first request
    ask_and_answer(first, not_found_body(), after(12))
    assert resends(after(15)) == []
    asked = answer_later(after(31), {second.originator_conversation_id: status_body(second)})
    found = payout.attempts.get(number=2)
    ask_and_answer(found, status_body(second), after(32))

    # then: nothing leaves
    assert second.originator_conversation_id in asked
    assert states(payout, found) == ("COMPLETED", "PAID")
    assert states(payout, first) == ("COMPLETED", "FAILED")
    assert (resends(after(60)), claims(after(60))) == ([], [])
    assert (journal.owed(payout.pk), journal.balance(journal.IN_FLIGHT)) == (0, 0)
    assert journal.balance(journal.MPESA_UTILITY) == -285


def test_payout_is_sent_once_m_pesa_denies_every_number() -> None:
    # given
    _, payout = lost(REJECTED)
    first = Attempt.objects.get()
    ask_and_answer(first, not_found_body(), after(12))

    # when
    assert deny_later(after(31)) == 1
    ask_and_answer(first, not_found_body(), after(31))

    # then
    (claim,) = resends(after(33))
    assert claim.originator_conversation_id == f"{payout.external_ref}-1"


def test_one_denial_of_a_later_request_lets_nothing_leave() -> None:
    # given: M-Pesa finds neither request, and its first answer about the second one is wrong
    loss, payout = lost(REJECTED, ACCEPTED)
    first, second = Attempt.objects.get(), loss.lost[1]
    answer_later(after(31), {})
    ask_and_answer(first, not_found_body(), after(32))
    assert (resends(after(40)), claims(after(40))) == ([], [])

    # when
    asked = answer_later(after(91), {second.originator_conversation_id: status_body(second)})

    # then
    found = payout.attempts.get(number=2)
    ask_and_answer(found, status_body(found), after(92))
    assert asked == [second.originator_conversation_id]
    assert states(payout, found) == ("COMPLETED", "PAID")
    assert resends(after(100)) == []


def test_later_request_waits_for_m_pesas_queue_before_it_is_denied() -> None:
    lost(REJECTED)
    assert deny_later(after(29)) == 0
    assert deny_later(after(30)) == 1


@pytest.mark.parametrize(("lost_seconds", "asked"), [(10, [2]), (60, [2, 3]), (1_500, [2, 3, 4])])
def test_longer_loss_asks_about_more_numbers(lost_seconds: float, asked: list[int]) -> None:
    payout = builders.payout(285)
    restored(noticed=lost_seconds)
    supposed = Orphan.objects.filter(is_supposed=True).values_list("originator_conversation_id", flat=True)
    assert sorted(supposed) == [f"{payout.external_ref}-{number}" for number in asked]


def test_lost_retry_that_failed_is_recorded_and_a_retry_takes_the_next_number() -> None:
    # given: M-Pesa says that the second request failed
    loss, payout = lost(REJECTED, ACCEPTED)
    second = loss.lost[1]
    answer_later(after(31), {second.originator_conversation_id: status_body(second, "Failed")})
    found = payout.attempts.get(number=2)

    # when
    ask_and_answer(found, status_body(found, "Failed"), after(32))
    ask_and_answer(found, status_body(found, "Failed"), after(400))

    # then
    assert states(payout, found) == ("FAILED", "FAILED")
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(500))
    ask_and_answer(payout.attempts.get(number=1), not_found_body(), after(501))
    assert claims(after(503)) == []
    advance(after(503))
    assert payout.attempts.get(state="IN_DOUBT").number == 3


def test_request_that_survived_is_not_sent_again_while_a_later_one_may_be_paid() -> None:
    # given: the row of the first request survived, its refusal and the paid retry are lost
    payout = builders.payout(285)
    first = sent(payout, READ_TIMEOUT)
    restored(survived=1)

    # when
    ask_and_answer(first, not_found_body(), after(31))

    # then
    assert resends(after(40)) == []
    later = f"{payout.external_ref}-2"
    answer_later(after(41), {later: status_body(first, ocid=later)})
    found = payout.attempts.get(number=2)
    ask_and_answer(found, status_body(found), after(42))
    assert states(payout, found) == ("COMPLETED", "PAID")


def test_untrusted_answer_denies_no_later_request() -> None:
    # given
    _, payout = lost(REJECTED)
    production = builders.policy(production=True)
    (query,) = orphans.ask(at=after(31), policy=production, addresses=ADDRESSES, limit=10, supposed=True)

    # when
    store("status", query.token, not_found_body(), after(32), trusted=False)
    orphans.place(orphan_id=Orphan.objects.get().pk, at=after(33), policy=production, addresses=ADDRESSES)

    # then
    assert Orphan.objects.get().state == "WAITING"
    assert payout.attempts.get().resend_at is None


def test_second_restore_asks_about_denied_requests_again() -> None:
    # given
    payout = builders.payout(285)
    restored()
    deny_later(after(30))
    first = payout.attempts.get()

    # when
    restored(survived=40, noticed=50)
    ask_and_answer(first, not_found_body(), after(51))

    # then: the older answer does not count
    assert resends(after(55)) == []
    assert deny_later(after(70)) == 2
    ask_and_answer(first, not_found_body(), after(70))
    assert len(resends(after(72))) == 1


def test_result_of_a_denied_request_still_arrives() -> None:
    # given: M-Pesa denied the lost retry too early
    loss, payout = lost(REJECTED, ACCEPTED)
    deny_later(after(31))

    # when
    store_result(loss.lost[1], result_body(loss.lost[1]), after(32))
    sweep(after(33))

    # then
    assert not Orphan.objects.get().is_supposed
    assert payout.attempts.filter(number=2, kind="found").exists()
    assert resends(after(40)) == []


# --- roads ------------------------------------------------------------------------------------------------------------


def retry(payout: Transaction) -> Any:
    return actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(40))


def retry_in_bulk(payout: Transaction) -> Any:
    if not bulk_retries.start(by=MACHINE, at=after(40)).retried:
        raise actions.PayoutNotRetryable("skipped")


def to_wallet(payout: Transaction) -> Any:
    return actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(40))


def remedy(kind: str) -> Callable[[Transaction], Any]:
    def uphold(payout: Transaction) -> Any:
        dispute = Dispute.objects.get(transaction=payout)
        return dispute_steps.decide(dispute, "uphold", CustomUser.objects.get(is_staff=True), at=after(40), remedy=kind)

    return uphold


def propose_reissue(payout: Transaction) -> Any:
    boss = builders.actor(CustomUser.objects.get(is_staff=True))
    return reissue.propose(transaction_id=payout.pk, grounds="Checked.", by=boss, at=after(40))


ROADS: dict[str, Callable[[Transaction], Any]] = {
    "retry": retry,
    "bulk retry": retry_in_bulk,
    "to the wallet": to_wallet,
    "remedy resend": remedy("resend"),
    "remedy to the wallet": remedy("pay_to_wallet"),
    "re-issue": propose_reissue,
}


def failed_payout(road: str) -> Transaction:
    """Return a failed and disputed payout of which a lost retry may have been paid."""
    builders.operator()
    payout = builders.payout(285)
    payout_steps.failed(payout)
    dispute_steps.dispute(payout, at=after(3))
    if road == "re-issue":
        CustomUser.objects.filter(pk=payout.user_id).update(phone_number="254798765432")
    restored(survived=4)
    return Transaction.objects.get(pk=payout.pk)


@pytest.mark.parametrize("road", ROADS)
def test_road_is_closed_until_m_pesa_has_been_asked(road: str) -> None:
    # given
    payout = failed_payout(road)

    # when, then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable, match=r"may have left before a restore|skipped"):
        ROADS[road](payout)


@pytest.mark.parametrize("road", ROADS)
def test_road_is_open_once_m_pesa_denies_every_request(road: str) -> None:
    payout = failed_payout(road)
    deny_later(after(31))
    ROADS[road](payout)
    assert claims(after(41)) == []


def test_release_is_refused_until_m_pesa_has_been_asked() -> None:
    # given
    payout = builders.payout(285)
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(1))
    restored()

    # when, then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable, match="may have left before a restore"):
        actions.release(transaction_id=payout.pk, by=MACHINE, at=after(20))
    deny_later(after(31))
    actions.release(transaction_id=payout.pk, by=MACHINE, at=after(32))


def test_bulk_plan_skips_a_payout_that_is_not_asked_about_yet() -> None:
    failed_payout("retry")
    assert failures.plan(failures.chosen(), by=MACHINE, at=after(40)).skipped == {failures.BLOCKED["unasked"]: 1}


def test_failed_payout_that_left_again_is_found_without_a_retry() -> None:
    # given
    payout = failed_payout("retry")
    later = f"{payout.external_ref}-2"

    # when
    answer_later(after(31), {later: status_body(payout.attempts.get(), ocid=later)})
    found = payout.attempts.get(number=2)
    ask_and_answer(found, status_body(found), after(32))

    # then
    assert states(payout, found) == ("COMPLETED", "PAID")


def test_wallet_waits_for_two_people_after_a_long_loss() -> None:
    # given
    payout = builders.payout(285)
    payout_steps.failed(payout)
    restored(noticed=2 * HOUR)
    deny_later(after(2 * HOUR + 30))
    at = after(2 * HOUR + 40)

    # when, then
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable, match="two people"):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=at)
    by = [builders.actor(builders.operator()) for _ in range(2)]
    decisions.decide(reference="all", grounds="Statement.", by=by, at=at)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=at)


def test_wallet_is_refused_while_the_next_number_has_not_been_asked_about() -> None:
    # given: a pending payout whose next request is not opened becomes failed, because its number changed
    payout = builders.payout(285)
    Transaction.objects.filter(pk=payout.pk).update(due_at=after(HOUR))
    restored()
    deny_later(after(31))
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(32))
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number="254798765432")
    actions.release(transaction_id=payout.pk, by=MACHINE, at=after(33))

    # when, then
    payout.refresh_from_db()
    assert payout.status == "FAILED"
    with pytest.raises(actions.PayoutNotRetryable, match="cannot go to the wallet"):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(34))


# --- refusals at the door ---------------------------------------------------------------------------------------------


def test_refusal_of_a_number_that_may_have_left_before_the_loss_proves_nothing() -> None:
    # given: a failed payout, whose lost retry may have had the next number, leaves again and fails; then the next one
    payout = builders.payout(285)
    payout_steps.failed(payout)
    restored(survived=5)
    deny_later(after(31))
    AskFirst.objects.update(ended_at=after(32))
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(33))

    # when
    attempt = sent(payout, REJECTED, after(34))

    # then
    assert attempt.number == 2
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_refusal_that_arrives_after_the_restore_proves_nothing() -> None:
    # given: a request was under way when the database lost its last commits
    payout = builders.payout(285)
    (claim,) = claims(AT)
    detection.report(survived_at=AT, at=after(10), policy=POLICY)
    procedure.listing.list_payouts(at=after(10), keep_going=lambda: True)

    # when
    attempt = put_through(claim, REJECTED, after(11))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_refusal_of_a_number_above_the_lost_ones_fails_the_payout() -> None:
    # given
    payout = builders.payout(285)
    payout_steps.failed(payout)
    restored()
    AskFirst.objects.update(ended_at=after(20), last_number=1)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(33))

    # when
    attempt = sent(payout, REJECTED, after(34))

    # then
    assert states(payout, attempt) == ("FAILED", "FAILED")


def test_request_that_waits_for_a_connection_stays_with_its_id() -> None:
    payout = builders.payout(285)
    attempt = sent(payout, NO_CONNECTION)
    restored(survived=5)
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.number == 1


# --- limit of the day and breakers ------------------------------------------------------------------------------------


def test_request_that_was_found_counts_for_the_limit_of_the_day() -> None:
    loss, payout = lost(REJECTED, ACCEPTED)
    second = loss.lost[1]
    before = counted(payout)
    answer_later(after(31), {second.originator_conversation_id: status_body(second)})
    assert (before, counted(payout)) == (0, 285)
    found = payout.attempts.get(number=2)
    ask_and_answer(found, status_body(found), after(32))
    assert counted(payout) == 285


def test_request_that_was_found_and_failed_gives_its_amount_back_and_opens_no_breaker() -> None:
    # given
    loss, payout = lost(REJECTED, ACCEPTED)
    second = loss.lost[1]
    answer_later(after(31), {second.originator_conversation_id: status_body(second, "Failed")})
    found = payout.attempts.get(number=2)

    # when
    ask_and_answer(found, status_body(found, "Failed"), after(32))
    ask_and_answer(found, status_body(found, "Failed"), after(400))

    # then
    assert states(payout, found) == ("FAILED", "FAILED")
    assert counted(payout) == 0
    assert outcomes.latest(since=None, at=after(500), window=20).count == 0
    assert not breakers.any_open()


@pytest.mark.parametrize("word", ["status answer", "result"])
def test_payment_that_left_before_the_restore_counts_for_the_limit_of_the_day(word: str) -> None:
    # given
    _, payout = lost(ACCEPTED)
    attempt = Attempt.objects.get()
    before = counted(payout)

    # when
    if word == "result":
        store_result(attempt, result_body(attempt), after(12))
        sweep(after(12))
    else:
        ask_and_answer(attempt, status_body(attempt), after(12))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert (before, counted(payout)) == (0, 285)
