"""Failed payouts together: their reasons in words, and what sending many again would do and does."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from payments.models import Attempt, Transaction
from payments.payouts.operations import failures
from testing import console_scenes, payout_steps
from testing.builders import nothing_moved, payout
from users import audit

BY = audit.Actor(user_id=None, source="test")


def test_failures_are_grouped_by_code_with_words_and_advice(db: None, at: datetime) -> None:
    for amount in (100, 200):
        console_scenes.not_registered(payout(amount, at=at), at)
    console_scenes.refused(payout(400, at=at), at)
    first, second = failures.reasons()
    assert (first.code, first.count, first.amount) == ("2040", 2, Decimal(300))
    assert first.words == "The number is not a registered M-Pesa customer."
    assert first.advice == "Correct the number, or pay to the wallet." and not first.retry_helps
    assert (second.code, second.count, second.amount, second.retry_helps) == ("400.002.02", 1, Decimal(400), True)


@pytest.mark.parametrize(("code", "helps"), [("", True), ("none", True), ("8", True), ("2", False), ("made up", True)])
def test_words_are_found_for_every_code(code: str, helps: bool) -> None:
    words, advice, may_help = failures.words_of(code)
    assert words and advice and may_help is helps


def test_a_plan_says_what_a_retry_would_do_and_does_nothing(db: None, at: datetime) -> None:
    # given: one that may go, one that a message reports as paid, one of another code
    free, reported, other = payout(100, at=at), payout(200, at=at), payout(400, at=at)
    console_scenes.not_registered(free, at)
    console_scenes.not_registered(reported, at)
    console_scenes.refused(other, at)
    Attempt.objects.filter(transaction=reported).update(next_query_at=at)

    # when
    with nothing_moved():
        found = failures.plan(failures.chosen(code="2040"))

    # then
    assert (found.transaction_ids, found.amount, found.beyond) == ([free.pk], Decimal(100), 0)
    assert found.skipped == {failures.BLOCKED["reported"]: 1}
    assert failures.plan(failures.chosen(market_id=other.settlement.market_id)).transaction_ids == [other.pk]
    assert failures.plan(failures.chosen(since=at + timedelta(hours=1))).transaction_ids == []
    assert failures.plan(failures.chosen()).transaction_ids == [free.pk, other.pk]


def test_a_plan_goes_as_far_as_one_press_and_says_how_many_are_beyond(
    db: None, at: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "AT_ONCE", 2)
    made = [payout(100, at=at) for _ in range(3)]
    for one in made:
        console_scenes.refused(one, at)
    found = failures.plan(failures.chosen())
    assert (found.transaction_ids, found.amount, found.beyond) == ([one.pk for one in made[:2]], Decimal(200), 1)


def test_many_are_sent_again_and_what_changed_meanwhile_is_told(db: None, at: datetime) -> None:
    first, second = payout(100, at=at), payout(200, at=at)
    for one in (first, second):
        console_scenes.refused(one, at)
    Attempt.objects.filter(transaction=second).update(next_query_at=at)
    done = failures.retry_each(transaction_ids=[first.pk, second.pk, 10**9], by=BY, at=at)
    assert done.retried == [first.pk]
    assert sum(done.skipped.values()) == 2 and len(done.skipped) == 2
    assert dict(Transaction.objects.values_list("pk", "status")) == {first.pk: "PENDING", second.pk: "FAILED"}
    assert payout_steps.claims(at)[0].transaction_id == first.pk
