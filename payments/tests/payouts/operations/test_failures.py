"""Failed payouts: their reasons with advice, and their bulk retry."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from payments.models import Attempt
from payments.mpesa import result_codes
from payments.payouts.operations import failures
from testing import console_scenes
from testing.builders import nothing_moved, payout
from users import audit
from users.audit import MACHINE

pytestmark = pytest.mark.django_db

BY = audit.Actor(user_id=None, source="test")


def test_failures_are_grouped_by_code_with_words_and_advice(db: None, at: datetime) -> None:
    for amount in (100, 200):
        console_scenes.send_to_unregistered_phone(payout(amount, at=at), at)
    console_scenes.send_and_refuse(payout(400, at=at), at)
    first, second = failures.reasons()
    assert (first.code, first.count, first.amount) == ("2040", 2, Decimal(300))
    assert first.words == "The number is not a registered M-Pesa customer."
    assert first.advice == result_codes.NEW_NUMBER
    assert not first.retry_helps
    assert (second.code, second.count, second.amount, second.retry_helps) == ("400.002.02", 1, Decimal(400), True)


@pytest.mark.parametrize(("code", "helps"), [("", True), ("none", True), ("8", True), ("2", False), ("made up", True)])
def test_every_code_has_words_and_advice(code: str, helps: bool) -> None:
    words, advice, may_help = failures.words_of(code)
    assert words
    assert advice
    assert may_help is helps


def test_plan_previews_a_bulk_retry_and_changes_nothing(db: None, at: datetime) -> None:
    # given: one payout to retry, one that a message reports as paid, one with another code
    free, reported, other = payout(100, at=at), payout(200, at=at), payout(400, at=at)
    console_scenes.send_to_unregistered_phone(free, at)
    console_scenes.send_to_unregistered_phone(reported, at)
    console_scenes.send_and_refuse(other, at)
    Attempt.objects.filter(transaction=reported).update(next_query_at=at)

    # when
    with nothing_moved():
        plan = failures.plan(failures.chosen(code="2040"), by=MACHINE, at=at)

    # then
    assert (plan.transaction_ids, plan.amount, plan.beyond) == ([free.pk], Decimal(100), 0)
    assert plan.skipped == {failures.BLOCKED["reported"]: 1}
    assert failures.plan(failures.chosen(market_id=other.settlement.market_id), by=MACHINE, at=at).transaction_ids == [
        other.pk
    ]
    assert failures.plan(failures.chosen(since=at + timedelta(hours=1)), by=MACHINE, at=at).transaction_ids == []
    assert failures.plan(failures.chosen(), by=MACHINE, at=at).transaction_ids == [free.pk, other.pk]


def test_plan_is_bounded_and_counts_the_payouts_beyond(db: None, at: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "AT_ONCE", 2)
    payouts = [payout(100, at=at) for _ in range(3)]
    for failed in payouts:
        console_scenes.send_and_refuse(failed, at)
    plan = failures.plan(failures.chosen(), by=MACHINE, at=at)
    assert (plan.transaction_ids, plan.amount, plan.beyond) == ([failed.pk for failed in payouts[:2]], Decimal(200), 1)
