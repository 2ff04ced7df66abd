"""The Redis of the cache is away and the broker lives: work that needs only the database goes on, the rest waits."""

from datetime import timedelta

import pytest
from django.utils import timezone

from payments import settlement_tasks, wiring
from payments.models import Attempt, Callback, StatusQuery, Transaction
from payments.payouts.evidence import callbacks
from testing import builders, payout_steps
from testing.builders import nothing_moved
from testing.payout_steps import result_body

pytestmark = pytest.mark.django_db


def in_doubt() -> Attempt:
    """Return an attempt whose next status query is due now."""
    attempt = payout_steps.sent(builders.payout(285), payout_steps.READ_TIMEOUT)
    Attempt.objects.update(next_query_at=timezone.now() - timedelta(seconds=1))
    attempt.refresh_from_db()
    return attempt


def test_stored_proof_is_applied(cache_down: None) -> None:
    # given: M-Pesa's result, stored under the address that the settings build
    attempt = payout_steps.sent(builders.payout(285))
    token = payout_steps.ADDRESSES.token(attempt.originator_conversation_id)
    callbacks.store(
        kind=Callback.Kind.RESULT, token=token, body=result_body(attempt), source_ip="196.201.214.200", trusted=True,
        at=timezone.now(), addresses=payout_steps.ADDRESSES,
    )  # fmt: skip

    # when
    settlement_tasks.apply_stored_callbacks()

    # then
    assert Transaction.objects.get().status == "COMPLETED"


def test_status_queries_wait_and_do_not_count(cache_down: None, caplog: pytest.LogCaptureFixture) -> None:
    # given
    attempt = in_doubt()

    # when
    with nothing_moved():
        settlement_tasks.ask_about_doubts()

    # then
    assert StatusQuery.objects.count() == 0
    assert Attempt.objects.get().next_query_at == attempt.next_query_at
    assert "Status queries wait until Redis answers" in caplog.text


def test_payouts_wait_and_no_task_fails(cache_down: None, caplog: pytest.LogCaptureFixture) -> None:
    # given
    payout = builders.payout(285)

    # when
    with nothing_moved():
        settlement_tasks.send_b2c_payout(payout.pk)
        settlement_tasks.send_due_payouts()
        wiring.dispatcher_thread().wait_until_idle(60)

    # then
    assert Attempt.objects.count() == 0
    assert "Payouts wait until Redis answers" in caplog.text


def test_market_is_settled(cache_down: None) -> None:
    # given
    market = builders.market()
    builders.orm_bet(market, builders.member(), "Yes", 100)
    builders.resolve(market)

    # when
    settlement_tasks.settle_market(market.pk)

    # then
    market.refresh_from_db()
    assert market.status == "SETTLED"


def test_second_nudge_does_not_wait_for_the_dead_cache_again(
    cache_down: None, caplog: pytest.LogCaptureFixture
) -> None:
    # when
    for _ in range(5):
        wiring.nudge(wiring.APPLY_STORED_CALLBACKS)

    # then
    assert caplog.text.count("Redis does not answer") == 1
