"""Nobody decides their own payout, on any road."""

from collections.abc import Callable
from typing import Any

import pytest

from payments import own_affairs
from payments.models import BulkRetry, Settlement, Transaction
from payments.payouts.operations import actions, bulk_retries, decisions, failures
from payments.settlement import market_sending
from testing import builders, payout_steps
from testing.builders import actor, nothing_moved, operator
from testing.payout_steps import READ_TIMEOUT, after
from users.models import CustomUser

pytestmark = pytest.mark.django_db

Act = Callable[[Transaction, CustomUser], Any]
NOW = after(60)


ROADS: dict[str, Act] = {
    "retry": lambda payout, by: actions.retry(transaction_id=payout.pk, by=actor(by), at=NOW),
    "to the wallet": lambda payout, by: actions.redirect_to_wallet(transaction_id=payout.pk, by=actor(by), at=NOW),
    "release": lambda payout, by: actions.release(transaction_id=payout.pk, by=actor(by), at=NOW),
}


def failed(user: CustomUser) -> Transaction:
    payout = builders.payout(285, user=user)
    payout_steps.failed(payout)
    return Transaction.objects.get(pk=payout.pk)


@pytest.mark.parametrize("road", ROADS)
def test_own_payout_is_refused_and_another_persons_is_not(road: str) -> None:
    # given
    boss, other = operator(), operator()
    payout = failed(boss)
    if road == "release":
        payout = builders.payout(285, user=boss)
        actions.hold(transaction_id=payout.pk, reason="Wait.", by=actor(other), at=after(1))

    # when, then
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout, match="Another member of staff"):
        ROADS[road](payout, boss)
    ROADS[road](payout, other)


def test_own_payout_is_not_held() -> None:
    boss = operator()
    payout = builders.payout(285, user=boss)
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        actions.hold(transaction_id=payout.pk, reason="Wait.", by=actor(boss), at=NOW)


def test_decision_on_ones_own_payout_is_not_rejected() -> None:
    # given
    boss, first = operator(), operator()
    payout = builders.payout(285, user=boss)
    payout_steps.question(payout_steps.sent(payout, READ_TIMEOUT), after(86_400))
    at = after(90_000)
    verdict = decisions.decide_or_propose(
        transaction_id=payout.pk,
        finding=decisions.Finding("", "No such line.", at),
        by=actor(first),
        at=at,
        policy=builders.policy(),
    )
    assert verdict is not None

    # when, then
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        decisions.refuse(verdict_id=verdict.pk, reason="It is mine.", by=actor(boss), at=at)
    decisions.refuse(verdict_id=verdict.pk, reason="Look again.", by=actor(first), at=at)


def test_pending_payout_of_ones_own_is_not_hastened() -> None:
    boss = operator()
    payout = builders.payout(285, user=boss)
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout):
        actions.release(transaction_id=payout.pk, by=actor(boss), at=NOW)


def test_bulk_retry_skips_ones_own_payouts_and_says_so() -> None:
    # given
    boss = operator()
    own, others = failed(boss), failed(builders.member())
    skipped = {failures.BLOCKED["own"]: 1}
    assert failures.plan(failures.chosen(), by=actor(boss), at=NOW).skipped == skipped

    # when
    result = bulk_retries.start(by=actor(boss), at=NOW)

    # then
    own.refresh_from_db()
    assert (result.retried, result.skipped, own.status) == ([others.pk], skipped, "FAILED")
    bulk = BulkRetry.objects.get()
    assert (bulk.retried, bulk.skipped) == (1, 1)


def test_stopped_release_is_not_let_go_by_a_winner() -> None:
    # given
    boss, other = operator(), operator()
    payout = builders.payout(285, user=boss)
    Settlement.objects.filter(pk=payout.settlement_id).update(
        release_open=False, canary_stopped_at=NOW, canary_stop_reason="1 of its first 1 payouts failed."
    )
    assert payout.settlement_id is not None

    # when, then
    with nothing_moved(), pytest.raises(own_affairs.OwnPayout, match="One of these payouts"):
        market_sending.let_go(settlement_id=payout.settlement_id, by=actor(boss), reason="Looked at.", at=NOW)
    assert not Settlement.objects.get(pk=payout.settlement_id).release_open
    market_sending.let_go(settlement_id=payout.settlement_id, by=actor(other), reason="Looked at.", at=NOW)
