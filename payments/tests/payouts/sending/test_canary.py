"""The canary of a settlement."""

from dataclasses import replace

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from payments.models import Breaker, Settlement, Transaction
from payments.payouts.operations import actions
from payments.payouts.sending import canary, responses
from payments.payouts.sending import claims as sending_claims
from payments.settlement import market_sending
from testing import builders, payout_steps
from testing.payout_steps import (
    ADDRESSES,
    POLICY,
    after,
    ask_and_answer,
    deliver_result,
    result_body,
    status_body,
)
from users import audit
from users.models import AuditEntry

pytestmark = pytest.mark.django_db


CANARY = replace(POLICY, canary=(1, 3))


def release(winners: int) -> Settlement:
    bets = [(builders.member(100), "Yes", 100) for _ in range(winners)]
    return builders.settled_market(bets, "Yes", policy=CANARY).settlements.get()


def claimed(limit: int = 100) -> list[sending_claims.Claim]:
    return sending_claims.claim(at=after(0), policy=CANARY, addresses=ADDRESSES, limit=limit)


def record(claim: sending_claims.Claim, response: payout_steps.Response) -> None:
    responses.record(claim, response, at=after(0), policy=CANARY)


def test_canary_sends_one_then_a_few_then_the_rest() -> None:
    # given
    release(10)

    # when, then
    (first,) = claimed()
    assert claimed() == []
    record(first, payout_steps.ACCEPTED)
    second_step = claimed()
    assert len(second_step) == 3
    for claim in second_step[:2]:
        record(claim, payout_steps.ACCEPTED)
    assert claimed() == []
    record(second_step[2], payout_steps.ACCEPTED)
    assert len(claimed()) == 6


@pytest.mark.parametrize("response", [payout_steps.REJECTED, payout_steps.THROTTLED], ids=str)
def test_refused_attempt_frees_its_slot_in_the_canary(response: payout_steps.Response) -> None:
    # given
    release(10)
    (first,) = claimed()

    # when
    record(first, response)
    Breaker.objects.update(opened_at=None, probe_at=None)

    # then
    assert len(claimed()) == 1


def test_attempt_in_doubt_keeps_its_slot_until_it_is_resolved() -> None:
    # given
    settlement = release(10)
    (first,) = claimed()

    # when
    record(first, payout_steps.READ_TIMEOUT)

    # then: no other winner takes its place, and the page shows why the release waits
    assert claimed() == []
    (waiting,) = canary.stopped(at=after(1), policy=CANARY)
    assert (waiting.settlement, "in doubt" in waiting.reason) == (settlement, True)


def test_bad_end_of_a_member_stops_the_release_until_a_person_lets_it_go() -> None:
    # given: the first payout is in doubt, and two status queries prove that it failed
    settlement = release(10)
    (first,) = claimed()
    record(first, payout_steps.READ_TIMEOUT)
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(20))
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(90))
    assert payout_steps.states(Transaction.objects.get(pk=first.transaction_id), attempt) == ("FAILED", "FAILED")

    # when, then: the place is not handed on
    assert claimed_at(100) == []
    settlement.refresh_from_db()
    assert (settlement.canary_stopped_at, settlement.release_open) == (after(100), False)
    assert "1 of its first 1 payouts failed" in settlement.canary_stop_reason
    assert [waiting.settlement for waiting in canary.stopped(at=after(101), policy=CANARY)] == [settlement]

    # when
    by = audit.Actor(user_id=builders.operator().pk, source="console")
    market_sending.let_go(settlement_id=settlement.pk, by=by, reason="One odd number", at=after(110))
    market_sending.let_go(settlement_id=settlement.pk, by=by, reason="Again", at=after(111))

    # then
    assert len(claimed_at(112)) == 9
    (entry,) = AuditEntry.objects.filter(action="release.let_go")
    assert (entry.reason, entry.actor_id) == ("One odd number", by.user_id)
    assert entry.before.startswith('{"release_open":false,"stopped_because":"1 of its first 1 payouts failed')
    assert canary.stopped(at=after(113), policy=CANARY) == []


def claimed_at(seconds: float) -> list[sending_claims.Claim]:
    return sending_claims.claim(at=after(seconds), policy=CANARY, addresses=ADDRESSES, limit=100)


def test_payout_that_a_person_sends_again_leaves_in_a_small_market() -> None:
    # given: the market never completes its canary, and its last payout failed by an unknown fault
    settlement = release(3)
    attempts = [payout_steps.put_through(claim, policy=CANARY) for second in range(2) for claim in claimed_at(second)]
    assert len(attempts) == 3
    last = attempts[-1]
    deliver_result(last, result_body(last, 17), after(2), policy=CANARY)
    for second in (22, 90):
        ask_and_answer(last, status_body(last, "Failed"), after(second))

    # when
    actions.retry(transaction_id=last.transaction_id, by=audit.MACHINE, at=after(100))
    ask_and_answer(last, status_body(last, "Failed"), after(100))

    # then
    (again,) = claimed_at(102)
    assert again.originator_conversation_id == f"{again.external_ref}-2"
    settlement.refresh_from_db()
    assert settlement.canary_stopped_at is None


def test_members_limit_of_the_day_does_not_stop_the_release() -> None:
    # given
    release(3)
    attempts = [payout_steps.put_through(claim, policy=CANARY) for second in range(2) for claim in claimed_at(second)]

    # when: M-Pesa's own limit of the day refuses all three members
    for attempt in attempts:
        deliver_result(attempt, result_body(attempt, 4), after(2), policy=CANARY)
        ask_and_answer(attempt, status_body(attempt, "Failed"), after(3))
    Breaker.objects.update(opened_at=None, probe_at=None)

    # then: they leave on the next day without a person
    assert len(claimed_at(86_400)) == 1


def test_members_own_faults_stop_a_release_only_if_they_are_many() -> None:
    # given
    settlement = release(10)

    # when
    for _ in range(3):
        settlement.refresh_from_db()
        assert settlement.canary_stopped_at is None
        (claim,) = claimed()
        record(claim, payout_steps.REJECTED)
        Breaker.objects.update(opened_at=None, probe_at=None)

    # then
    assert claimed() == []
    settlement.refresh_from_db()
    assert settlement.canary_stop_reason == "3 of its first 3 payouts failed."


def test_fault_of_ours_does_not_stop_the_release() -> None:
    # given
    release(10)
    (first,) = claimed()
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()
    record(first, payout_steps.ACCEPTED)

    # when: no float
    deliver_result(attempt, result_body(attempt, 1), after(1), policy=CANARY)
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(1))
    Breaker.objects.update(opened_at=None, probe_at=None)

    # then
    assert len(claimed_at(3)) == 3


def test_lost_acknowledgements_do_not_stop_a_canary_that_pays() -> None:
    # given
    release(10)
    (first,) = claimed()
    record(first, payout_steps.READ_TIMEOUT)
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when
    deliver_result(attempt, result_body(attempt), after(1), policy=CANARY)

    # then
    assert len(claimed()) == 3


def test_callback_before_the_response_does_not_stop_the_canary() -> None:
    # given
    release(10)
    (first,) = claimed()
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when: the attempt is proven failed before its acknowledgement is recorded
    deliver_result(attempt, result_body(attempt, 2040), after(1), policy=CANARY)
    ask_and_answer(attempt, status_body(attempt, "Failed"), after(1))
    record(first, payout_steps.ACCEPTED)

    # then
    assert payout_steps.states(Transaction.objects.get(pk=first.transaction_id), attempt) == ("FAILED", "FAILED")
    assert len(claimed()) == 3


def test_kill_before_the_response_keeps_the_slot_until_mpesa_answers() -> None:
    # given
    release(10)
    (first,) = claimed()
    attempt = Transaction.objects.get(pk=first.transaction_id).attempts.get()

    # when
    asked = payout_steps.question(attempt, after(20), CANARY)
    assert claimed() == []
    payout_steps.answer(asked, status_body(attempt), after(21), CANARY)

    # then
    assert len(claimed()) == 3


def test_complete_canary_is_opened_for_good_outside_the_claim() -> None:
    # given
    settlement = release(2)
    (first,) = claimed()
    policy = replace(CANARY, canary=(1,))

    # when
    responses.record(first, payout_steps.ACCEPTED, at=after(0), policy=policy)
    assert canary.in_canary(at=after(1), policy=policy) == [settlement.pk]
    settlement.refresh_from_db()
    assert settlement.release_open is False
    canary.review(at=after(1), policy=policy)

    # then
    settlement.refresh_from_db()
    assert settlement.release_open is True


def test_release_waits_for_people_only_if_its_last_free_slot_is_in_doubt() -> None:
    # given: the canary has two slots
    release(10)
    two = replace(CANARY, canary=(2, 3))
    assert canary.stopped(at=after(0), policy=two) == []

    # when: one slot is in doubt, then both are
    listed = []
    for second in (0, 1):
        (claim,) = sending_claims.claim(at=after(second), policy=two, addresses=ADDRESSES, limit=1)
        record(claim, payout_steps.READ_TIMEOUT)
        listed.append(len(canary.stopped(at=after(second), policy=two)))

    # then
    assert listed == [0, 1]
    (waiting,) = canary.stopped(at=after(2), policy=two)
    assert waiting.reason.startswith("2 of its first payouts are in doubt.")


def test_acknowledged_payout_in_doubt_is_no_reason_to_wait() -> None:
    # given: the first payout was acknowledged and has no result, and the second has no answer yet
    release(10)
    steps = replace(CANARY, canary=(1, 1))
    (first,) = sending_claims.claim(at=after(0), policy=steps, addresses=ADDRESSES, limit=100)
    record(first, payout_steps.ACCEPTED)
    payout_steps.question(Transaction.objects.get(pk=first.transaction_id).attempts.get(), after(20), steps)
    assert len(sending_claims.claim(at=after(20), policy=steps, addresses=ADDRESSES, limit=100)) == 1

    # then
    assert canary.stopped(at=after(21), policy=steps) == []


def test_settlement_without_a_pending_payout_is_in_no_canary() -> None:
    release(1)
    (only,) = claimed()
    record(only, payout_steps.ACCEPTED)
    other = release(10)
    assert canary.in_canary(at=after(1), policy=CANARY) == [other.pk]


def test_payout_of_a_stopped_settlement_gets_no_slot_and_no_other_settlement_is_locked() -> None:
    settlement, other = release(2), release(2)
    Settlement.objects.filter(pk=settlement.pk).update(release_open=True, stopped_at=after(0))
    payouts = list(Transaction.objects.filter(settlement=settlement, destination="mpesa"))

    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        assert canary.with_free_slot(payouts, CANARY) == []

    lock = queries[0]["sql"]
    assert "FOR NO KEY UPDATE" in lock
    assert f'"id" IN ({settlement.pk})' in lock
    assert str(other.pk) not in lock.split("WHERE")[1]


@pytest.mark.parametrize(
    ("filled", "occupied", "free"),
    [(0, 0, 1), (0, 1, 0), (0, 2, 0), (1, 0, 3), (1, 2, 1), (3, 0, 1), (3, 1, 0), (4, 0, None), (5, 1, None)],
)
def test_free_slots_are_those_of_the_first_step_that_is_not_filled(
    filled: int, occupied: int, free: int | None
) -> None:
    assert canary._Members(filled=filled, occupied=occupied).free_slots(CANARY) == free


def test_canary_without_an_attempt_has_all_slots_of_its_first_step() -> None:
    assert canary._Members() == canary._Members(0, 0, 0, 0, 0, 0)
    assert canary._Members().free_slots(replace(POLICY, canary=(2, 3))) == 2


@pytest.mark.parametrize(
    ("ended", "failed", "by_member", "reason"),
    [
        (4, 0, 0, ""),
        (4, 1, 0, "1 of its first 4 payouts failed, and not by a fault of the members."),
        (6, 4, 3, "1 of its first 6 payouts failed, and not by a fault of the members."),
        (3, 2, 2, ""),
        (6, 3, 3, "3 of its first 6 payouts failed."),
        (7, 3, 3, ""),
        (7, 4, 4, "4 of its first 7 payouts failed."),
    ],
)
def test_release_stops_for_other_faults_or_half_of_three(ended: int, failed: int, by_member: int, reason: str) -> None:
    assert canary._Members(ended=ended, failed=failed, failed_by_member=by_member).stop_reason == reason
