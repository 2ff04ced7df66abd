"""Procedure after a restore: the payouts that may have left are asked about before they leave; others go on."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from payments.models import AskFirst, Attempt, Breaker, Restore, Transaction
from payments.payouts import breakers
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions, reissue
from payments.payouts.restores import decisions, detection, procedure
from payments.settlement import undo
from testing import builders, payout_steps
from testing.builders import AT
from testing.lost_commits import deny_later
from testing.payout_steps import (
    ADDRESSES,
    NO_CONNECTION,
    READ_TIMEOUT,
    after,
    answer,
    ask_and_answer,
    claims,
    deliver_result,
    not_found_body,
    put_through,
    question,
    resends,
    result_body,
    sent,
    states,
    status_body,
)
from users import proposals
from users.audit import MACHINE
from users.models import AuditEntry

pytestmark = pytest.mark.django_db
# Two payouts a settlement may have left in ten seconds.
POLICY = builders.policy(payouts_a_second=Decimal("0.1"), in_flight=0)
HOUR = 3600.0


def restored(*, survived: float = 0, noticed: float = 10, advanced: float | None = None) -> Restore:
    """Record a restore to `survived`, noticed at `noticed`, and run the procedure once."""
    restore = detection.report(survived_at=after(survived), at=after(noticed), policy=POLICY)
    advance(after(noticed if advanced is None else advanced))
    restore.refresh_from_db()
    return restore


def advance(at: datetime) -> None:
    procedure.advance(at=at, policy=POLICY, addresses=ADDRESSES, keep_going=lambda: True)


def settled(members: int = 4) -> list[Transaction]:
    """Settle a market whose winners get one payout each, and return the payouts."""
    market = builders.market()
    for _ in range(members):
        builders.orm_bet(market, builders.member(), "Yes", 100)
    builders.orm_bet(market, builders.member(), "No", 100)
    builders.resolve(market, "Yes", at=AT, policy=POLICY)
    builders.settle(market, at=AT, policy=POLICY)
    return list(Transaction.objects.filter(settlement__market=market, destination="mpesa").order_by("pk"))


def asked_first() -> list[int]:
    return list(AskFirst.objects.filter(ended_at=None).order_by("transaction").values_list("transaction", flat=True))


def is_stopped() -> bool:
    return Breaker.objects.filter(cause="restore", opened_at__isnull=False).exists()


def open_attempt(payout: Transaction) -> Attempt:
    return payout.attempts.get(state__in=Attempt.OPEN)


def two_people() -> list[Any]:
    return [builders.actor(builders.operator()) for _ in range(2)]


def test_next_payouts_of_each_settlement_are_asked_about_and_others_leave() -> None:
    # given
    first, second = settled(), settled()

    # when
    restore = restored()

    # then
    assert restore.state == "ASKING"
    assert not is_stopped()
    assert asked_first() == [payout.pk for payout in (*first[:2], *second[:2])]
    assert {claim.transaction_id for claim in claims(after(11))} == {p.pk for p in (*first[2:], *second[2:])}
    for payout in (*first[:2], *second[:2]):
        assert states(payout, open_attempt(payout)) == ("PROCESSING", "IN_DOUBT")


def test_payout_that_left_unseen_is_booked_and_never_sent() -> None:
    # given
    payout = settled()[0]
    restored()
    attempt = open_attempt(payout)

    # when
    ask_and_answer(attempt, status_body(attempt), after(11))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert attempt.originator_conversation_id == f"{payout.external_ref}-1"
    assert attempt.posted_at is None
    assert resends(after(60)) == []


def test_a_hundred_requests_sent_again_open_no_breaker() -> None:
    # given: 100 payouts may have left; M-Pesa knows ten of them and does not know the others
    rules = replace(POLICY, payouts_a_second=Decimal(10))
    payouts = settled(100)
    detection.report(survived_at=AT, at=after(10), policy=rules)
    procedure.advance(at=after(10), policy=rules, addresses=ADDRESSES, keep_going=lambda: True)
    assert len(asked_first()) == 100
    deny_later(after(30))
    queries = status_queries.ask(at=after(30), policy=rules, addresses=ADDRESSES, limit=100)
    for number, query in enumerate(queries):
        attempt = Attempt.objects.get(queries=query.query_id)
        known = status_body(attempt, receipt=f"SKG7{number:06}")
        answer(query, known if number < 10 else not_found_body(), after(31), rules)

    # when: the others are sent again under the same ids, and M-Pesa accepts them
    again = [put_through(claim, at=after(34), policy=rules) for claim in resends(after(33))]
    assert len(again) == 90
    breakers.judge(at=after(35), policy=rules)

    # then
    assert not Breaker.objects.filter(opened_at__isnull=False).exists()
    for number, attempt in enumerate(again):
        deliver_result(attempt, result_body(attempt, receipt=f"SKG8{number:06}"), after(40), policy=rules)
    assert Transaction.objects.filter(pk__in=[payout.pk for payout in payouts], status="COMPLETED").count() == 100


def test_silence_after_requests_sent_again_still_opens_the_breaker() -> None:
    # given: ten requests were sent again and acknowledged
    rules = replace(POLICY, payouts_a_second=Decimal(1))
    settled(10)
    detection.report(survived_at=AT, at=after(10), policy=rules)
    procedure.advance(at=after(10), policy=rules, addresses=ADDRESSES, keep_going=lambda: True)
    deny_later(after(30))
    for query in status_queries.ask(at=after(30), policy=rules, addresses=ADDRESSES, limit=100):
        answer(query, not_found_body(), after(31), rules)
    for claim in resends(after(33)):
        put_through(claim, at=after(34), policy=rules)

    # when: no result comes in time
    breakers.judge(at=after(52), policy=rules)
    assert not Breaker.objects.filter(cause="doubt", opened_at__isnull=False).exists()
    breakers.judge(at=after(55), policy=rules)

    # then
    assert Breaker.objects.filter(cause="doubt", opened_at__isnull=False).exists()


def test_lost_payment_of_another_amount_is_booked_as_m_pesa_paid_it() -> None:
    # given: the settlement that was lost had another amount
    payout = settled(1)[0]
    restored()
    attempt = open_attempt(payout)

    # when
    ask_and_answer(attempt, status_body(attempt, amount=150), after(11))

    # then: the wallet gets the rest
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert payout.amount == 190
    payout.user.refresh_from_db()
    assert payout.user.balance == 40


def test_payout_that_did_not_leave_is_sent_under_the_same_id() -> None:
    # given
    payout = settled()[0]
    restored()
    attempt = open_attempt(payout)

    # when
    deny_later(after(30))
    ask_and_answer(attempt, not_found_body(), after(30))
    (claim,) = resends(after(33))

    # then
    assert claim.originator_conversation_id == f"{payout.external_ref}-1"
    assert payout.pk not in asked_first()
    assert states(payout, put_through(claim, at=after(33))) == ("PROCESSING", "ACCEPTED")


def test_rejected_resend_after_a_restore_proves_no_failure() -> None:
    # given
    payout = settled()[0]
    restored()
    attempt = open_attempt(payout)
    deny_later(after(30))
    ask_and_answer(attempt, not_found_body(), after(30))
    (claim,) = resends(after(33))

    # when
    put_through(claim, payout_steps.REJECTED, after(33))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")


def test_nothing_leaves_after_a_long_loss_until_two_people_decide() -> None:
    # given: more time was lost than an id may be sent again in
    listed, *_ = payouts = settled()
    restore = restored(noticed=2 * HOUR)
    attempt = open_attempt(listed)

    # when: M-Pesa does not know the id, but it may have forgotten
    ask_and_answer(attempt, not_found_body(), after(2 * HOUR + 1))

    # then
    assert (restore.state, is_stopped()) == ("STOPPED", True)
    assert resends(after(2 * HOUR + 3)) == []
    assert claims(after(2 * HOUR + 3)) == []
    assert states(listed, attempt) == ("PROCESSING", "IN_DOUBT")
    assert all(payout.status == "PENDING" for payout in payouts[2:])


def test_decision_of_two_people_lets_all_payouts_leave_after_one_more_question() -> None:
    # given
    listed, *_ = settled()
    restore = restored(noticed=2 * HOUR)
    attempt = open_attempt(listed)
    ask_and_answer(attempt, not_found_body(), after(2 * HOUR + 1))
    deny_later(after(2 * HOUR + 20))
    first, second = two_people()

    # when
    decision = decisions.propose(reference="all", grounds="Statement checked.", by=first, at=after(2 * HOUR + 30))
    before = (is_stopped(), resends(after(2 * HOUR + 31)))
    decisions.confirm(decision_id=decision.pk, by=second, at=after(2 * HOUR + 32))
    ask_and_answer(attempt, not_found_body(), after(2 * HOUR + 33))

    # then
    restore.refresh_from_db()
    assert before == (True, [])
    assert (restore.state, is_stopped()) == ("DECIDED", False)
    assert [claim.transaction_id for claim in resends(after(2 * HOUR + 35))] == [listed.pk]
    actions_recorded = set(AuditEntry.objects.values_list("action", flat=True))
    assert {"restore.decision_proposed", "restore.decide", "sending.lift"} <= actions_recorded


def test_decision_for_one_payout_lets_only_this_payout_leave() -> None:
    # given: the stop is over for all others
    first, *others = settled()
    restored(noticed=60, advanced=2 * HOUR)
    queries = status_queries.ask(at=after(2 * HOUR + 1), policy=POLICY, addresses=ADDRESSES, limit=100)
    for query in queries:
        answer(query, not_found_body(), after(2 * HOUR + 2))
    deny_later(after(2 * HOUR + 2))
    assert len(queries) == 1 + len(others)
    assert resends(after(2 * HOUR + 3)) == []

    # when
    decisions.decide(reference=first.external_ref, grounds="Checked.", by=two_people(), at=after(2 * HOUR + 10))
    ask_and_answer(open_attempt(first), not_found_body(), after(2 * HOUR + 11))

    # then
    assert [claim.transaction_id for claim in resends(after(2 * HOUR + 13))] == [first.pk]


def test_word_of_mpesa_counts_more_than_the_decision() -> None:
    # given
    listed, *_ = settled()
    restored(noticed=2 * HOUR)
    attempt = open_attempt(listed)
    decisions.decide(reference="all", grounds="Checked.", by=two_people(), at=after(2 * HOUR + 10))

    # when
    ask_and_answer(attempt, status_body(attempt), after(2 * HOUR + 11))

    # then
    assert states(listed, attempt) == ("COMPLETED", "PAID")


def test_one_person_cannot_decide_alone() -> None:
    # given
    settled()
    restored(noticed=2 * HOUR)
    person = two_people()[0]
    decision = decisions.propose(reference="all", grounds="Checked.", by=person, at=after(2 * HOUR))

    # when, then
    with pytest.raises(proposals.ProposerCannotApprove):
        decisions.confirm(decision_id=decision.pk, by=person, at=after(2 * HOUR))
    with pytest.raises(proposals.ProposerCannotApprove):
        decisions.confirm(decision_id=decision.pk, by=MACHINE, at=after(2 * HOUR))
    assert is_stopped()


def test_refused_decision_changes_nothing_and_can_be_proposed_again() -> None:
    # given
    settled()
    restored(noticed=2 * HOUR)
    first, second = two_people()
    decision = decisions.propose(reference="all", grounds="Checked.", by=first, at=after(2 * HOUR))

    # when
    decisions.refuse(decision_id=decision.pk, by=second, at=after(2 * HOUR), reason="Not yet.")

    # then
    assert is_stopped()
    assert decisions.waiting() == []
    with pytest.raises(decisions.NothingToDecide):
        decisions.confirm(decision_id=decision.pk, by=second, at=after(2 * HOUR))
    decisions.propose(reference="all", grounds="Checked again.", by=first, at=after(2 * HOUR))
    with pytest.raises(decisions.NothingToDecide):
        decisions.propose(reference="all", grounds="Twice.", by=second, at=after(2 * HOUR))


@pytest.mark.parametrize("reference", ["all", "KASOKO-1-1-00000000"])
def test_decision_without_a_restore_is_refused(reference: str) -> None:
    with pytest.raises(decisions.NothingToDecide):
        decisions.decide(reference=reference, grounds="Checked.", by=two_people(), at=AT)


def test_settlement_made_again_after_the_restore_is_asked_about_too() -> None:
    # given: the market exists, but its settlement was lost
    market = builders.market()
    for _ in range(4):
        builders.orm_bet(market, builders.member(), "Yes", 100)
    restored()

    # when: it is settled hours later
    builders.resolve(market, "Yes", at=after(HOUR), policy=POLICY)
    builders.settle(market, at=after(HOUR), policy=POLICY)

    # then
    payouts = list(Transaction.objects.filter(destination="mpesa").order_by("pk").values_list("pk", flat=True))
    assert asked_first() == payouts[:2]
    assert [claim.transaction_id for claim in claims(after(HOUR + 1))] == payouts[2:]


def test_every_payout_of_a_settlement_made_again_after_a_long_loss_is_asked_about() -> None:
    # given
    market = builders.market()
    for _ in range(4):
        builders.orm_bet(market, builders.member(), "Yes", 100)
    restored(noticed=2 * HOUR, survived=2 * HOUR - 1900)

    # when
    builders.resolve(market, "Yes", at=after(2 * HOUR), policy=POLICY)
    builders.settle(market, at=after(2 * HOUR), policy=POLICY)

    # then
    assert len(asked_first()) == 4


def test_market_made_after_the_restore_is_not_asked_about() -> None:
    restored()
    assert len(settled()) == 4
    assert asked_first() == []


def test_failed_payout_is_asked_about_before_its_next_request() -> None:
    # given: a retry may have left unseen
    payout = builders.payout(285)
    payout_steps.failed(payout)
    restored()
    deny_later(after(30))

    # when
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(31))
    claimed = claims(after(32))
    advance(after(32))

    # then
    assert claimed == []
    attempt = open_attempt(payout)
    assert (attempt.number, attempt.state, attempt.first_sent_at) == (2, "IN_DOUBT", AT)


def test_failed_payout_that_may_have_left_again_does_not_go_to_the_wallet() -> None:
    payout = builders.payout(285)
    payout_steps.failed(payout)
    restored()
    with pytest.raises(actions.PayoutNotRetryable, match="may have left before a restore"):
        actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=after(20))


def test_request_that_waited_to_be_sent_is_asked_about_first() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, NO_CONNECTION)
    assert (attempt.state, attempt.first_sent_at) == ("WAITING", None)

    # when
    restored(survived=5)

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.first_sent_at == after(5)
    assert claims(after(60)) == []


def test_request_that_was_to_be_sent_again_is_asked_about_once_more() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout, READ_TIMEOUT)
    ask_and_answer(attempt, not_found_body(), after(25))

    # when
    restored(survived=30, noticed=40)

    # then
    assert resends(after(41)) == []
    deny_later(after(60))
    ask_and_answer(attempt, not_found_body(), after(60))
    assert len(resends(after(62))) == 1
    assert states(payout, attempt) == ("PROCESSING", "SENDING")


def test_waiting_for_two_people_holds_no_payout_before_a_day() -> None:
    # given: the lost time alone is longer than a day
    listed, *_ = settled()
    restored(noticed=30 * HOUR)
    attempt = open_attempt(listed)

    # when
    query = question(attempt, after(30 * HOUR + 1))
    answer(query, not_found_body(), after(30 * HOUR + 2))

    # then
    assert states(listed, attempt) == ("PROCESSING", "IN_DOUBT")


def test_late_decision_frees_the_payout_that_was_held_meanwhile() -> None:
    # given: nobody decided for a day
    listed, other, *_ = settled()
    restored(noticed=2 * HOUR)
    for payout in (listed, other):
        assert states(payout, open_attempt(payout)) == ("PROCESSING", "IN_DOUBT")
    status_queries.ask(at=after(27 * HOUR), policy=POLICY, addresses=ADDRESSES, limit=100)
    attempt = open_attempt(listed)
    assert states(listed, attempt) == ("HELD", "IN_DOUBT")
    Attempt.objects.filter(transaction=other).update(paid_report="trusted")

    deny_later(after(27 * HOUR))

    # when
    decisions.decide(reference="all", grounds="Checked.", by=two_people(), at=after(28 * HOUR))
    ask_and_answer(attempt, not_found_body(), after(28 * HOUR + 1))

    # then: a payout with contradicting reports stays held
    assert [claim.transaction_id for claim in resends(after(28 * HOUR + 3))] == [listed.pk]
    assert states(other, open_attempt(other)) == ("HELD", "IN_DOUBT")


def test_payouts_of_a_held_settlement_are_asked_about_when_the_hold_ends() -> None:
    # given
    policy = builders.policy(holds=((Decimal(0), timedelta(hours=1)),))
    market = builders.market()
    builders.orm_bet(market, builders.member(), "Yes", 100)
    builders.resolve(market, "Yes", at=AT, policy=policy)
    builders.settle(market, at=AT, policy=policy)

    # when
    restored()
    before = Attempt.objects.count()
    advance(after(HOUR))

    # then
    assert before == 0
    assert Attempt.objects.get().state == "IN_DOUBT"


def test_undo_waits_until_payouts_that_may_have_left_are_asked_about() -> None:
    # given
    payout, *_ = payouts = settled(2)
    detection.report(survived_at=AT, at=after(10), policy=POLICY)
    procedure.listing.list_payouts(at=after(10), keep_going=lambda: True)
    market_id = payout.settlement.market_id
    undo.undo(market_id=market_id, reason="Wrong.", by=MACHINE, at=after(11), policy=POLICY)

    # when
    undo.carry_out(market_id=market_id, at=after(12), policy=POLICY, keep_going=lambda: True)
    payout.refresh_from_db()
    waiting = payout.status
    advance(after(13))
    undo.carry_out(market_id=market_id, at=after(14), policy=POLICY, keep_going=lambda: True)

    # then: the request counts as sent, so the member owes it until M-Pesa's answer
    assert waiting == "PENDING"
    assert [states(each, open_attempt(each)) for each in payouts] == [("PROCESSING", "IN_DOUBT")] * 2
    attempt = open_attempt(payout)
    ask_and_answer(attempt, status_body(attempt), after(15))
    assert states(payout, attempt) == ("COMPLETED", "PAID")


def test_undone_payout_that_did_not_leave_is_cancelled_once_two_people_decided() -> None:
    # given: its settlement is undone, so the member owes the amount until we know that it did not leave
    payout, *_ = settled(1)
    restored()
    market_id = payout.settlement.market_id
    undo.undo(market_id=market_id, reason="Wrong.", by=MACHINE, at=after(11), policy=POLICY)
    undo.carry_out(market_id=market_id, at=after(12), policy=POLICY, keep_going=lambda: True)
    attempt = open_attempt(payout)
    ask_and_answer(attempt, not_found_body(), after(13))
    before = states(payout, attempt)

    deny_later(after(40))

    # when
    decisions.decide(reference=payout.external_ref, grounds="Checked.", by=two_people(), at=after(50))
    ask_and_answer(attempt, not_found_body(), after(51))

    # then
    assert before == ("PROCESSING", "IN_DOUBT")
    assert states(payout, attempt) == ("CANCELLED", "FAILED")


def test_second_restore_keeps_the_older_entry_of_a_payout() -> None:
    # given
    payout = settled(1)[0]
    first = restored()

    # when
    restored(survived=20, noticed=30)

    # then
    assert AskFirst.objects.get(transaction=payout).restore == first
    assert payout.attempts.count() == 1


def test_decision_for_all_never_frees_a_payout_that_an_earlier_request_paid() -> None:
    # given: after a long loss a retry is asked about, and then the first request turns out to be paid
    payout = builders.payout(285)
    first = payout_steps.failed(payout)
    restored(survived=10, noticed=2 * HOUR)
    deny_later(after(2 * HOUR + 20))
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(2 * HOUR + 21))
    advance(after(2 * HOUR + 22))
    second = open_attempt(payout)
    payout_steps.deliver_result(first, payout_steps.result_body(first), after(2 * HOUR + 23))
    assert states(payout, second) == ("HELD", "IN_DOUBT")

    # when
    decisions.decide(reference="all", grounds="Checked.", by=two_people(), at=after(2 * HOUR + 30))
    ask_and_answer(second, not_found_body(), after(2 * HOUR + 31))

    # then
    assert resends(after(2 * HOUR + 33)) == []
    assert states(payout, second) == ("HELD", "IN_DOUBT")


def test_request_is_not_sent_again_after_an_earlier_one_was_paid() -> None:
    # given: a request that M-Pesa does not know, of a payout that another request paid
    payout = builders.payout(285)
    first, second = payout_steps.retried(payout, READ_TIMEOUT)
    ask_and_answer(second, not_found_body(), after(60))
    payout_steps.deliver_result(first, payout_steps.result_body(first), after(62))
    for status in ("PENDING", "PROCESSING"):
        Transaction.objects.filter(pk=payout.pk).update(status=status)

    # when, then
    assert resends(after(63)) == []
    second.refresh_from_db()
    assert second.resend_at is None


def test_payment_to_a_replaced_number_does_not_end_the_wait_after_a_restore() -> None:
    # given: a payout is re-issued, and its first request is paid to the old number
    payout = builders.payout(285, user=builders.member(phone_number="254712345678"))
    first = payout_steps.failed(payout)
    type(payout.user).objects.filter(pk=payout.user_id).update(phone_number="254798765432")
    one, other = two_people()
    verdict = reissue.propose(transaction_id=payout.pk, grounds="New SIM card.", by=one, at=after(5))
    reissue.confirm(verdict_id=verdict.pk, by=other, at=after(6))
    payout_steps.deliver_result(first, payout_steps.result_body(first), after(7))

    # when
    restored(survived=8, noticed=20)

    # then: the request to the new number is asked about, and leaves
    second = open_attempt(payout)
    deny_later(after(40))
    ask_and_answer(second, not_found_body(), after(40))
    (claim,) = resends(after(43))
    assert (claim.phone_number, claim.attempt_id) == ("254798765432", second.pk)
