"""M-Pesa's limit of the day for one member, across workers, midnight and failures."""

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from payments import failpoints, monitoring_tasks
from payments.models import DayTotal, Transaction
from payments.payouts import day_limit
from payments.settlement import undo
from testing import builders, payout_steps
from testing.payout_steps import after, claims, deliver_result, result_body, sent, states, status_body
from users.models import CustomUser

pytestmark = pytest.mark.django_db

TODAY = date(2026, 2, 16)
LATE = datetime(2026, 2, 16, 20, 50, tzinfo=UTC)  # 23:50 in Nairobi
# No result comes for days in some tests, and no breaker may open.
UNWATCHED = builders.policy(breaker_failure_share=Decimal(2))
TOMORROW = datetime(2026, 2, 16, 21, 5, tzinfo=UTC)  # 00:05 of the next day in Nairobi


def payouts(user: CustomUser, *amounts: int, at: datetime = builders.AT) -> list[Transaction]:
    return [builders.payout(amount, user=user, at=at) for amount in amounts]


def total(user: CustomUser, day: date = TODAY) -> Decimal:
    return DayTotal.objects.filter(user=user, day=day).values_list("amount", flat=True).first() or Decimal(0)


def left(ids: list[int]) -> int:
    """Return the shillings of the payouts with these ids."""
    return int(sum(Transaction.objects.filter(pk__in=ids).values_list("amount", flat=True)))


# --- workers at the same time ----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_concurrent_workers_stay_within_the_limit() -> None:
    member = builders.member()
    waiting = payouts(member, *[250_000] * 4)
    found = builders.at_once(*[lambda pk=payout.pk: claims(transaction_id=pk) for payout in waiting])
    assert sum(len(claimed) for claimed in found) == 2
    assert total(member) == 500_000


@pytest.mark.django_db(transaction=True)
def test_second_worker_waits_for_an_uncommitted_claim_of_the_member() -> None:
    # given: a worker has claimed two payouts of the member and has not committed yet
    member = builders.member()
    first, second, third, other = [*payouts(member, 250_000, 250_000, 250_000), builders.payout(100)]
    reached, go_on = threading.Event(), threading.Event()
    worker = threading.local()

    def stop(name: str) -> None:
        if name == "claim before commit" and getattr(worker, "stops", False):
            reached.set()
            assert go_on.wait(30)

    def claim_slowly() -> list[Any]:
        worker.stops = True
        return claims(transaction_id=first.pk) + claims(transaction_id=second.pk)

    sent(second)
    failpoints.arm(stop)
    try:
        slow = builders.begin(claim_slowly)
        assert reached.wait(30)
        # when: another worker claims the third payout, while a third worker claims another member's payout
        late = builders.begin(lambda: claims(transaction_id=third.pk))
        assert [claim.transaction_id for claim in claims(transaction_id=other.pk)] == [other.pk]
        assert not late.done()
        go_on.set()

        # then
        assert [claim.transaction_id for claim in slow.result(timeout=30)] == [first.pk]
        assert late.result(timeout=30) == []
    finally:
        go_on.set()
        failpoints.arm(None)
    third.refresh_from_db()
    assert (third.status, third.due_at) == ("PENDING", TOMORROW)
    assert total(member) == 500_000


@pytest.mark.django_db(transaction=True)
def test_members_are_locked_in_one_order() -> None:
    # given: each worker claims payouts of the same members, in opposite orders of sending
    members = [builders.member() for _ in range(8)]
    for user in members:
        payouts(user, 100_000, 100_000)
    for user in reversed(members):
        payouts(user, 100_000, 100_000)

    # then: no deadlock, and everybody's payouts leave
    found = builders.at_once(*[lambda: [claim.transaction_id for claim in claims(limit=9)]] * 4)
    assert sum(len(ids) for ids in found) + len(claims()) == 32
    assert {total(user) for user in members} == {Decimal(400_000)}


# --- midnight --------------------------------------------------------------------------------------------------------


def test_request_sent_again_after_midnight_counts_for_the_new_day() -> None:
    # given: two requests of 250,000 left before midnight, and M-Pesa does not know the first
    member = builders.member()
    policy = builders.policy(day_limit=500_000)
    first, second = payouts(member, 250_000, 250_000, at=LATE)
    attempt = sent(first, payout_steps.READ_TIMEOUT, at=LATE)
    sent(second, at=LATE)
    assert total(member) == 500_000
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), LATE + timedelta(seconds=20))

    # when: it is sent again after midnight
    early = datetime(2026, 2, 16, 21, 1, tzinfo=UTC)
    assert len(payout_steps.resends(early, policy)) == 1

    # then: only 250,000 more may leave on the new day
    assert (total(member), total(member, date(2026, 2, 17))) == (250_000, 250_000)
    more = payouts(member, 250_000, 250_000, at=early)
    assert left([claim.transaction_id for claim in claims(early)]) == 250_000
    more[1].refresh_from_db()
    assert more[1].due_at == TOMORROW + timedelta(days=1)


def test_request_is_not_sent_again_above_the_limit_of_the_new_day() -> None:
    member = builders.member()
    (first,) = payouts(member, 250_000, at=LATE)
    attempt = sent(first, payout_steps.READ_TIMEOUT, at=LATE)
    payout_steps.ask_and_answer(attempt, payout_steps.not_found_body(), LATE + timedelta(seconds=20))
    early = datetime(2026, 2, 16, 21, 1, tzinfo=UTC)
    payouts(member, 250_000, 250_000, at=early)
    assert len(claims(early)) == 2

    assert payout_steps.resends(early) == []
    attempt.refresh_from_db()
    assert (attempt.state, attempt.resend_at) == ("IN_DOUBT", None)
    assert attempt.next_query_at is not None
    assert total(member, date(2026, 2, 17)) == 500_000


def test_request_that_waits_past_midnight_counts_once() -> None:
    member = builders.member()
    (payout,) = payouts(member, 250_000, at=LATE)
    sent(payout, payout_steps.NO_CONNECTION, at=LATE)
    early = datetime(2026, 2, 16, 21, 1, tzinfo=UTC)
    assert len(claims(early)) == 1
    assert (total(member), total(member, date(2026, 2, 17))) == (0, 250_000)


# --- given back ------------------------------------------------------------------------------------------------------


def test_failed_request_gives_its_amount_back() -> None:
    member = builders.member()
    first, second, third = payouts(member, 250_000, 250_000, 250_000)
    payout_steps.failed(first)
    assert total(member) == 0
    assert len(claims(after(1), transaction_id=second.pk) + claims(after(1), transaction_id=third.pk)) == 2
    assert total(member) == 500_000


def test_request_paid_after_its_failure_counts_again() -> None:
    member = builders.member()
    (payout,) = payouts(member, 285)
    attempt = payout_steps.failed(payout)
    deliver_result(attempt, result_body(attempt), after(10))
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert total(member) == 285


def test_payout_that_the_breaker_keeps_does_not_count() -> None:
    member = builders.member()
    policy = builders.policy(paused=True)
    payouts(member, 250_000)
    assert claims(policy=policy) == []
    assert total(member) == 0


def test_undo_gives_back_requests_that_never_left() -> None:
    members = [builders.member() for _ in range(3)]
    market = builders.settled_market([(user, "Yes", 1_000) for user in members], fee_pct=0)
    for claim in claims():
        payout_steps.put_through(claim, payout_steps.NO_CONNECTION)
    assert [total(user) for user in members] == [1_000] * 3
    staff = builders.actor(builders.operator())
    undo.undo(market_id=market.pk, reason="Wrong.", by=staff, at=after(1), policy=payout_steps.POLICY)
    everything: Callable[[], bool] = lambda: True  # noqa: E731
    assert undo.carry_out(market_id=market.pk, at=after(2), policy=payout_steps.POLICY, keep_going=everything)
    assert [total(user) for user in members] == [0] * 3


# --- M-Pesa's own limit ----------------------------------------------------------------------------------------------


def test_payout_above_mpesas_own_limit_waits_for_the_next_day() -> None:
    # given: M-Pesa says in a result and in an answer that the member's limit of the day is exceeded
    payout = builders.payout(285)
    attempt = sent(payout)
    deliver_result(attempt, result_body(attempt, 4), after(5))
    payout_steps.ask_and_answer(attempt, status_body(attempt, "Failed"), after(6))

    # then: the request is proven not paid, and the payout waits by itself
    assert states(payout, attempt) == ("PENDING", "FAILED")
    payout.refresh_from_db()
    assert payout.due_at == TOMORROW
    assert payout.reason == "The payment would exceed the member's daily limit at M-Pesa. It leaves on the next day."
    assert claims(after(3_600)) == []
    (claim,) = claims(TOMORROW)
    assert claim.originator_conversation_id == f"{payout.external_ref}-2"


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "sent_today", "days"),
    [
        ([250_000] * 5, 0, [16, 16, 17, 17, 18]),
        ([250_000] * 2, 400_000, [17, 17]),
        ([250_000, 250_000, 3], 250_000, [16, 17, 17]),
        ([], 0, []),
    ],
)
def test_plan_names_the_day_of_each_tranche(amounts: list[int], sent_today: int, days: list[int]) -> None:
    planned = day_limit.plan(
        [Decimal(amount) for amount in amounts], sent_today=Decimal(sent_today), at=builders.AT, limit=500_000
    )
    assert [day.day for day in planned] == days


# --- old days --------------------------------------------------------------------------------------------------------


def test_totals_of_old_days_are_deleted_and_the_latest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    # given: eight days with a request of each of three members
    monkeypatch.setattr(day_limit, "PRUNED_AT_ONCE", 2)
    members = [builders.member() for _ in range(3)]
    first: list[Transaction] = []
    for day in range(9):
        at = builders.AT + timedelta(days=day)
        made = [payouts(member, 100, at=at)[0] for member in members]
        first = first or made
        assert len(claims(at, UNWATCHED)) == 3

    # when: a worker may do one batch; then the next one does the rest
    day_limit.prune(keep_going=iter([True, False]).__next__)
    assert DayTotal.objects.count() == 25
    day_limit.prune(keep_going=lambda: True)

    # then
    kept = [TODAY + timedelta(days=day) for day in range(2, 9)]
    assert sorted(set(DayTotal.objects.values_list("day", flat=True))) == kept
    assert DayTotal.objects.count() == 21
    day_limit.prune(keep_going=lambda: True)
    assert DayTotal.objects.count() == 21

    # when: requests of a deleted day end, one paid and one failed, then paid after all
    paid, failed = (payout.attempts.get() for payout in first[:2])
    deliver_result(paid, result_body(paid), builders.AT + timedelta(days=9))
    day_limit.give_back(failed, members[1].pk)
    day_limit.count_paid_late(failed, members[1].pk)

    # then: the total of the present day is not touched
    assert [total(member, kept[-1]) for member in members] == [100, 100, 100]


@pytest.mark.django_db(transaction=True)
def test_worker_that_holds_an_old_total_is_not_waited_for() -> None:
    member = builders.member()
    payouts(member, 100)
    claims()
    later = builders.AT + timedelta(days=8)
    payouts(member, 100, at=later)
    claims(later)
    with transaction.atomic():
        day_limit.lock([member.pk])
        builders.at_once(lambda: day_limit.prune(keep_going=lambda: True))
        assert DayTotal.objects.count() == 2


def test_minutely_task_deletes_old_totals() -> None:
    member = builders.member()
    DayTotal.objects.create(user=member, day=TODAY - timedelta(days=30), amount=0)
    payouts(member, 100)
    claims()
    monitoring_tasks.sum_up()
    assert list(DayTotal.objects.values_list("day", flat=True)) == [TODAY]


def test_payment_that_m_pesa_reversed_no_longer_counts() -> None:
    # given
    payout = builders.payout(285)
    attempt = sent(payout)
    asked = payout_steps.question(attempt, after(20))
    deliver_result(attempt, result_body(attempt), after(21))
    before = total(payout.user)

    # when
    payout_steps.answer(asked, status_body(attempt, "Reversed"), after(22))

    # then
    assert states(payout, attempt) == ("HELD", "REVERSED")
    assert (before, total(payout.user)) == (285, 0)
