"""Orphans: results of requests that the server forgot with its last commits. Nobody is paid twice or left out."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from payments import settlement_tasks
from payments.ledger import journal, trial_balance
from payments.models import Attempt, Breaker, Callback, Orphan, Recovery, Transaction
from payments.payouts.evidence import callbacks, orphans
from payments.payouts.operations import actions, starting
from testing import builders
from testing.builders import transfers
from testing.lost_commits import Loss, answer_about_orphan, store, store_result, sweep
from testing.payout_steps import (
    ACCEPTED,
    ADDRESSES,
    CHARGE,
    DUPLICATE,
    KES_285,
    POLICY,
    PRODUCTION,
    RECEIPT,
    REJECTED,
    after,
    answer,
    ask_and_answer,
    claims,
    not_found_body,
    question,
    resends,
    result_body,
    sent,
    states,
    status_body,
)
from users.audit import MACHINE

pytestmark = pytest.mark.django_db
LATER = 301  # Seconds after which an orphan that no payout has claimed goes to suspense.
DAY = 86_400


def lost_and_paid(stake: builders.Amount = 285) -> tuple[Loss, Attempt]:
    """Send a payout, lose its commits, and store M-Pesa's result that it was paid."""
    loss = Loss(stake)
    loss.send(ACCEPTED)
    loss.lose()
    (attempt,) = loss.lost
    store_result(attempt, result_body(attempt), after(10))
    return loss, attempt


def lost_and_proven() -> tuple[Loss, Attempt]:
    """Do the same, and let M-Pesa answer our query about the orphan."""
    loss, attempt = lost_and_paid()
    answer_about_orphan(status_body(attempt), after(11))
    return loss, attempt


def orphan_breaker() -> Breaker:
    return Breaker.objects.get(cause=Breaker.Cause.ORPHAN)


# --- the payout takes its lost request over --------------------------------------------------------------------------


def test_payout_settled_again_takes_its_lost_payment_over(alarms: Callable[[], list[str]]) -> None:
    # given
    loss, lost = lost_and_paid()
    assert Orphan.objects.get().state == "WAITING"
    assert any("which we sent and do not have" in alarm for alarm in alarms())

    # when: the market is settled again
    payout = loss.settle()

    # then: no request leaves, and the parked result completes the payout
    assert claims(after(20)) == []
    assert sweep(after(20)) == [f"claimed by transaction {payout.pk}", "paid"]
    found = Attempt.objects.get()
    assert states(payout, found) == ("COMPLETED", "PAID")
    assert (found.kind, found.originator_conversation_id) == ("found", lost.originator_conversation_id)
    assert (payout.receipt, Orphan.objects.get().state) == (RECEIPT, "CLAIMED")
    assert claims(after(30)) == []
    assert orphan_breaker().opened_at is None


def test_lost_payment_of_a_later_request_stops_the_first_one() -> None:
    # given: the first request was rejected, the second was paid, and both are lost
    loss = Loss()
    loss.send(REJECTED, ACCEPTED)
    loss.lose()
    second = loss.lost[1]
    store_result(second, result_body(second), after(10))

    # when
    payout = loss.settle()
    assert claims(after(20)) == []
    sweep(after(20))

    # then
    assert second.originator_conversation_id.endswith("-2")
    assert Attempt.objects.get().number == 2
    assert states(payout, Attempt.objects.get()) == ("COMPLETED", "PAID")


def test_result_that_comes_after_settling_again_is_taken_over() -> None:
    # given: the settlement is made again before the lost result arrives, and the payout waits for a probe
    loss = Loss()
    loss.send(REJECTED, ACCEPTED)
    loss.lose()
    payout = loss.settle()

    # when
    store_result(loss.lost[1], result_body(loss.lost[1]), after(10))
    sweep(after(11))

    # then
    assert claims(after(12)) == []
    assert states(payout, Attempt.objects.get()) == ("COMPLETED", "PAID")


def test_lost_request_that_failed_is_proven_by_two_sources() -> None:
    # given
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    store_result(lost, result_body(lost, 2040), after(10))
    payout = loss.settle()

    # when: the result's code alone proves nothing
    sweep(after(20))
    found = Attempt.objects.get()
    assert states(payout, found) == ("PROCESSING", "IN_DOUBT")
    ask_and_answer(found, status_body(found, "Failed"), after(21))

    # then: the payout fails, and a retry leaves under the next number
    assert states(payout, found) == ("FAILED", "FAILED")
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(30))
    assert sent(payout, at=after(31)).number == 2


def test_found_request_is_never_sent_again() -> None:
    # given: only a queue timeout tells of the lost request
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    store_result(lost, result_body(lost, 17), after(10), kind=Callback.Kind.TIMEOUT)
    payout = loss.settle()
    sweep(after(20))
    found = Attempt.objects.get()

    # when: M-Pesa does not find it
    ask_and_answer(found, not_found_body(), after(21))

    # then: it stays in doubt until a person decides
    assert (resends(after(22)), claims(after(22))) == ([], [])
    assert states(payout, found) == ("PROCESSING", "IN_DOUBT")
    ask_and_answer(found, not_found_body(), after(DAY + 30))
    assert states(payout, found) == ("HELD", "IN_DOUBT")


def test_large_lost_payment_needs_an_answer_too() -> None:
    loss, _ = lost_and_paid(50_000)
    payout = loss.settle()
    sweep(after(20))
    found = Attempt.objects.get()
    assert states(payout, found) == ("PROCESSING", "IN_DOUBT")
    ask_and_answer(found, status_body(found), after(21))
    assert states(payout, found) == ("COMPLETED", "PAID")


def test_lost_payment_of_a_payout_that_went_to_the_wallet_is_owed_back() -> None:
    # given: before the lost result arrives, staff pay the payout into the wallet
    loss = Loss()
    loss.send(REJECTED, ACCEPTED)
    loss.lose()
    payout = loss.settle()
    first = sent(payout, REJECTED, at=after(3))
    actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(4))

    # when
    store_result(loss.lost[1], result_body(loss.lost[1]), after(10))
    sweep(after(11))

    # then
    found = Attempt.objects.get(kind="found")
    assert states(payout, found) == ("COMPLETED", "PAID")
    assert first.number == 1
    assert Recovery.objects.get().amount == KES_285


def test_lost_payment_while_another_request_is_open_holds_the_payout() -> None:
    # given: the payout is settled again, and its first request is on its way
    loss = Loss()
    loss.send(REJECTED, ACCEPTED)
    loss.lose()
    payout = loss.settle()
    first = sent(payout, at=after(3))

    # when: the lost second request turns up, and the first is paid as well
    store_result(loss.lost[1], result_body(loss.lost[1]), after(10))
    sweep(after(11))
    store_result(first, result_body(first, receipt="SKG8SECOND"), after(12))
    sweep(after(13))

    # then: one payment settles the payout, and the member owes the other one
    assert states(payout, first) == ("COMPLETED", "PAID")
    assert Attempt.objects.get(kind="found").state == "PAID"
    assert Recovery.objects.get().amount == KES_285


# --- another amount --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paid", "short", "owed"), [(200, "85.00", None), (300, None, "15.00")])
def test_lost_payment_of_another_amount_is_booked_as_m_pesa_paid_it(
    paid: int, short: str | None, owed: str | None
) -> None:
    # given: the lost settlement owed another amount
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    store_result(lost, result_body(lost, amount=paid), after(10))
    payout = loss.settle()
    assert any("mismatch" in outcome for outcome in sweep(after(20)))
    found = Attempt.objects.get()

    # when
    ask_and_answer(found, status_body(found, amount=paid), after(21))

    # then: the wallet gets the shortfall, or the member owes the excess
    assert states(payout, found) == ("COMPLETED", "PAID")
    assert (found.amount, found.paid_amount) == (KES_285, paid)
    assert journal.balance(journal.MPESA_UTILITY) == -paid
    loss.user.refresh_from_db()
    assert loss.user.balance == Decimal(short or 0)
    assert [str(recovery.amount) for recovery in Recovery.objects.all()] == ([owed] if owed else [])


def test_duplicate_of_a_lost_request_books_what_m_pesa_paid() -> None:
    # given: another amount is sent under the lost id before any result arrives
    loss = Loss()
    payout = loss.settle()
    attempt = sent(payout, DUPLICATE)

    # when
    ask_and_answer(attempt, status_body(attempt, amount=200), after(21))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert transfers(code="short") == [(f"short:{attempt.pk}", "in_flight", f"wallet:{loss.user.pk}", Decimal("85.00"))]


def test_other_amount_without_a_duplicate_changes_nothing() -> None:
    loss = Loss()
    payout = loss.settle()
    attempt = sent(payout)
    ask_and_answer(attempt, status_body(attempt, amount=200), after(21))
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


# --- suspense and the stop -------------------------------------------------------------------------------------------


def test_unclaimed_payment_goes_to_suspense_and_stops_the_sending() -> None:
    # given
    lost_and_proven()
    sweep(after(12))
    assert (Orphan.objects.get().state, orphan_breaker().opened_at) == ("WAITING", None)

    # when
    assert sweep(after(10 + LATER)) == ["booked in suspense"]

    # then
    orphan = Orphan.objects.get()
    assert (orphan.state, orphan.amount, orphan.receipt) == ("SUSPENSE", KES_285, RECEIPT)
    assert transfers()[-1:] == [(f"foreign:{RECEIPT}", "suspense", "mpesa_utility", KES_285)]
    assert orphan_breaker().opened_at == after(10 + LATER)
    lines = {line.kind: line.balance for line in trial_balance.trial_balance()}
    assert (lines["suspense"], lines["mpesa_utility"]) == (KES_285, -KES_285)


def test_same_orphan_stops_the_sending_only_once() -> None:
    # given: a person has looked at the first orphan
    lost_and_proven()
    sweep(after(10 + LATER))
    starting.start(Breaker.Cause.ORPHAN, people=[MACHINE], reason="looked", at=after(400))

    # when, then: the same id does not stop it again
    sweep(after(500))
    assert orphan_breaker().opened_at is None

    # when, then: another orphan does
    loss = Loss(40)
    starting.start(Breaker.Cause.ORPHAN, people=[MACHINE], reason="none", at=after(501))
    loss.send(ACCEPTED)
    loss.lose()
    store_result(loss.lost[0], result_body(loss.lost[0], receipt="SKG9OTHER0"), after(510))
    sweep(after(510 + LATER))
    assert orphan_breaker().opened_at == after(510 + LATER)


def test_payout_settled_later_takes_its_suspense_over() -> None:
    # given: the loss is noticed late, and a person has looked
    loss, _ = lost_and_proven()
    sweep(after(10 + LATER))
    starting.start(Breaker.Cause.ORPHAN, people=[MACHINE], reason="looked", at=after(400))

    # when
    payout = loss.settle()
    assert claims(after(500)) == []
    sweep(after(500))

    # then: the payment leaves suspense, and nothing leaves M-Pesa
    found = Attempt.objects.get()
    assert states(payout, found) == ("COMPLETED", "PAID")
    assert transfers(transaction=payout)[1:] == [
        (f"send:{found.pk}", "payable", "in_flight", KES_285),
        (f"claimed:{RECEIPT}", "in_flight", "suspense", KES_285),
        (f"charge:{found.pk}", "charge_expense", "mpesa_charges_paid", CHARGE),
    ]
    assert (journal.balance(journal.SUSPENSE), journal.balance(journal.MPESA_UTILITY)) == (0, -KES_285)


def test_payment_from_suspense_that_m_pesa_reverses_is_owed_again() -> None:
    # given: the payout takes its suspense over while a query is under way
    loss, lost = lost_and_paid()
    answer_about_orphan(status_body(lost), after(11))
    sweep(after(10 + LATER))
    payout = loss.settle()
    for orphan_id in orphans.to_place(limit=10):
        orphans.place(orphan_id=orphan_id, at=after(500), policy=POLICY, addresses=ADDRESSES)
    found = Attempt.objects.get()
    asked = question(found, after(501))
    sweep(after(502))
    assert states(payout, found) == ("COMPLETED", "PAID")

    # when
    outcome = answer(asked, status_body(found, "Reversed"), after(503))

    # then
    assert outcome == "held: M-Pesa reversed the payment, so we owe it again"
    assert states(payout, found) == ("HELD", "REVERSED")
    assert journal.owed(payout.pk) == KES_285
    assert (journal.balance(journal.SUSPENSE), journal.balance(journal.MPESA_UTILITY)) == (0, 0)


def test_database_refuses_to_hold_a_payout_paid_from_suspense() -> None:
    loss, lost = lost_and_paid()
    answer_about_orphan(status_body(lost), after(11))
    sweep(after(10 + LATER))
    payout = loss.settle()
    sweep(after(500))
    with pytest.raises(IntegrityError, match="transfers that take its payment back"), transaction.atomic():
        Transaction.objects.filter(pk=payout.pk).update(status="HELD")


def test_result_again_after_suspense_is_booked_once() -> None:
    # given
    loss, lost = lost_and_proven()
    sweep(after(10 + LATER))
    loss.settle()

    # when: M-Pesa repeats its result before and after the payout takes the suspense over
    store_result(lost, result_body(lost) + b" ", after(400))
    sweep(after(401))
    store_result(lost, result_body(lost) + b"\n", after(402))
    sweep(after(403))

    # then
    assert journal.balance(journal.MPESA_UTILITY) == -KES_285
    assert journal.balance(journal.SUSPENSE) == 0


def test_orphan_is_asked_about_and_its_answer_counts() -> None:
    # given: only a failure with an unknown code arrives
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    store_result(lost, result_body(lost, 17), after(10))

    # when
    answer_about_orphan(status_body(lost), after(11))
    sweep(after(10 + LATER))

    # then
    assert (Orphan.objects.get().state, Orphan.objects.get().receipt) == ("SUSPENSE", RECEIPT)


def test_orphan_that_m_pesa_did_not_pay_ends_but_tells_of_the_loss() -> None:
    # given
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    store_result(lost, result_body(lost, 2040), after(10))

    # when
    answer_about_orphan(status_body(lost, "Failed"), after(11))

    # then
    assert sweep(after(12)) == ["not paid"]
    sweep(after(10 + LATER))
    assert (Orphan.objects.get().state, journal.balance(journal.SUSPENSE)) == ("NOT_PAID", 0)
    assert orphan_breaker().opened_at == after(10 + LATER)

    # when: proof of payment comes after all
    store_result(lost, result_body(lost), after(400))
    answer_about_orphan(status_body(lost), after(401))
    sweep(after(402))

    # then
    assert Orphan.objects.get().state == "SUSPENSE"


def test_queries_about_an_orphan_come_at_growing_gaps() -> None:
    lost_and_paid()
    asked = []
    for second in range(10, 600, 10):
        for query in orphans.ask(at=after(second), policy=POLICY, addresses=ADDRESSES, limit=10):
            asked.append(second)
            orphans.record_put(query)
    assert asked == [10, 70, 190, 430]


def test_query_about_an_orphan_whose_worker_dies_does_not_count() -> None:
    # given: three queries were put, so the next gap is eight minutes
    lost_and_paid()
    for second in (10, 70, 190):
        (query,) = orphans.ask(at=after(second), policy=POLICY, addresses=ADDRESSES, limit=10)
        orphans.record_put(query)

    # when: a worker commits the fourth query and dies
    orphans.ask(at=after(430), policy=POLICY, addresses=ADDRESSES, limit=10)

    # then: the next query is due soon, and the usual gap follows
    orphan = Orphan.objects.get()
    assert (orphan.queries, orphan.next_query_at) == (3, after(430) + POLICY.query_after)
    (query,) = orphans.ask(at=orphan.next_query_at, policy=POLICY, addresses=ADDRESSES, limit=10)
    orphans.record_put(query)
    again = Orphan.objects.get()
    assert (again.queries, again.next_query_at) == (4, orphan.next_query_at + 8 * POLICY.query_gap)


def test_message_during_a_query_about_an_orphan_keeps_the_next_query_due() -> None:
    lost_and_paid()
    (query,) = orphans.ask(at=after(10), policy=POLICY, addresses=ADDRESSES, limit=10)
    Orphan.objects.update(next_query_at=after(12))
    orphans.record_put(query)
    assert (Orphan.objects.get().queries, Orphan.objects.get().next_query_at) == (1, after(12))


def test_query_about_an_orphan_that_never_left_does_not_count() -> None:
    # given
    lost_and_paid()
    (query,) = orphans.ask(at=after(10), policy=POLICY, addresses=ADDRESSES, limit=10)

    # when
    orphans.withdraw(query, at=after(11), policy=POLICY)

    # then: due again soon, and the gap has not grown
    orphan = Orphan.objects.get()
    assert (orphan.queries, orphan.next_query_at) == (0, after(11) + POLICY.retry_after)
    assert orphans.count_due(at=after(60), limit=10) == 1


def test_result_alone_puts_nothing_into_suspense() -> None:
    lost_and_paid()
    sweep(after(10 + LATER))
    assert (Orphan.objects.get().state, Orphan.objects.get().receipt) == ("WAITING", RECEIPT)
    assert orphan_breaker().opened_at is not None


def test_untrusted_report_changes_no_figure_of_a_proven_payment() -> None:
    # given: in production, an untrusted caller repeats the result with another receipt
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    store_result(lost, result_body(lost), after(10))
    answer_about_orphan(status_body(lost), after(11), PRODUCTION)
    store_result(lost, result_body(lost, receipt="FORGED1234", amount=9), after(12), trusted=False)

    # when
    sweep(after(10 + LATER), PRODUCTION)

    # then
    orphan = Orphan.objects.get()
    assert (orphan.state, orphan.receipt, orphan.amount) == ("SUSPENSE", RECEIPT, KES_285)


# --- addresses -------------------------------------------------------------------------------------------------------


def test_token_of_another_id_is_no_orphan() -> None:
    loss = Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    body = result_body(lost, ocid=lost.originator_conversation_id[:-1] + "7")
    with pytest.raises(callbacks.UnknownAddress):
        store_result(lost, body, after(10))
    with pytest.raises(callbacks.UnknownAddress):
        store(Callback.Kind.STATUS, ADDRESSES.token("nothing"), status_body(lost), after(10))
    assert (Orphan.objects.count(), Callback.objects.count()) == (0, 0)


def test_token_of_a_query_makes_no_orphan() -> None:
    attempt = sent(builders.payout())
    named = f"{attempt.originator_conversation_id}?1"
    with pytest.raises(callbacks.UnknownAddress):
        store(Callback.Kind.RESULT, ADDRESSES.token(named), result_body(attempt, ocid=named), after(5))
    assert Orphan.objects.count() == 0


def test_sweep_of_the_worker_places_orphans() -> None:
    # given
    loss, _ = lost_and_paid()
    payout = loss.settle()

    # when
    settlement_tasks.apply_stored_callbacks()

    # then
    payout.refresh_from_db()
    assert payout.status == "COMPLETED"


def test_suspense_without_receipt_is_refused() -> None:
    lost_and_paid()
    with pytest.raises(IntegrityError, match="orphan_in_suspense"), transaction.atomic():
        Orphan.objects.update(state="SUSPENSE", amount=5)
