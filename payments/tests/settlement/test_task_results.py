"""`AsyncResult(settlement_task_id)` tells the truth about a settlement, whoever completes it."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from celery.result import AsyncResult
from django.conf import Settings
from django.utils import timezone

from api.celery import app
from markets.models import Market
from payments import settlement_tasks, wiring
from payments.models import Settlement
from payments.settlement import settling, task_results
from testing import builders

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[3]


def resolved() -> tuple[Market, AsyncResult]:
    """Resolve a market, and return it with the result that a client reads."""
    market = builders.market()
    for outcome in ("Yes", "Yes", "No"):
        builders.orm_bet(market, builders.member(), outcome, 100)
    builders.resolve(market)
    return market, AsyncResult(str(Settlement.objects.latest("pk").public_id), app=app)


def test_result_is_pending_until_the_settlement_stands() -> None:
    # given
    market, result = resolved()
    before = result.state

    # when
    settlement_tasks.settle_market(market.pk)

    # then
    assert (before, result.state) == ("PENDING", "SUCCESS")
    assert result.get(timeout=5) == {"market_id": market.pk, "settlement": 1, "state": "SETTLED"}
    assert Settlement.objects.get().stored_result == "SUCCESS"


def test_sweep_stores_the_result_if_the_message_was_lost() -> None:
    # given
    market, result = resolved()

    # when
    settlement_tasks.settle_resolved_markets()

    # then
    market.refresh_from_db()
    assert (market.status, result.state) == ("SETTLED", "SUCCESS")


def test_result_of_a_chunked_settlement_waits_for_the_last_chunk(settings: Settings) -> None:
    # given
    settings.SETTLEMENT_CHUNK = 1
    market, result = resolved()
    wiring.policy.cache_clear()
    steps = iter([True, True])
    settling.settle(
        market_id=market.pk, at=timezone.now(), policy=wiring.policy(), keep_going=lambda: next(steps, False)
    )  # fmt: skip
    settlement_tasks._store_results()
    before = (Settlement.objects.get().state, result.state)

    # when
    settlement_tasks.settle_resolved_markets()

    # then
    assert before == ("DIVIDING", "PENDING")
    assert result.state == "SUCCESS"


def test_worker_that_dies_after_the_commit_leaves_the_result_to_a_sweep() -> None:
    # given: the service committed, and the task never went on
    market, result = resolved()
    settling.settle(market_id=market.pk, at=timezone.now(), policy=wiring.policy(), keep_going=lambda: True)
    before = result.state

    # when
    settlement_tasks.settle_resolved_markets()

    # then
    assert (before, result.state) == ("PENDING", "SUCCESS")


def test_result_is_a_failure_with_the_reason_if_the_books_disagree() -> None:
    # given: a step failed, as test_failed_division does it with real books
    market, result = resolved()
    Settlement.objects.update(failure="Its bets sum to 300.00, its pool account holds 310.00.")

    # when
    settlement_tasks._store_results()

    # then
    assert result.state == "FAILURE"
    assert "its pool account holds 310.00" in str(result.result)

    # when: the books are corrected, and the settlement goes on
    settlement_tasks.settle_market(market.pk)

    # then: a new reader, because Celery's object keeps the failure that it has read
    assert AsyncResult(result.id, app=app).state == "SUCCESS"


def test_result_is_stored_later_if_the_backend_is_down() -> None:
    # given
    market, result = resolved()
    code = """
import django, sys
django.setup()
from payments import wiring
from payments.settlement.task_results import TaskResult
import uuid
print(wiring.store_result(TaskResult(1, uuid.uuid4(), 1, 1, "")), wiring.keeps_results())
"""
    down = {"CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1", "DJANGO_SETTINGS_MODULE": "api.settings"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | down, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.stdout.split() == ["False", "True"], ended.stderr

    # when: nothing was marked, so the list still has the result
    settling.settle(market_id=market.pk, at=timezone.now(), policy=wiring.policy(), keep_going=lambda: True)
    (waiting,) = task_results.unstored(at=timezone.now(), limit=10)
    assert wiring.store_result(waiting)
    task_results.mark_stored(waiting)

    # then
    assert result.state == "SUCCESS"
    assert task_results.unstored(at=timezone.now(), limit=10) == []


def test_only_results_that_somebody_may_still_read_are_listed() -> None:
    # given
    market, _ = resolved()
    settling.settle(market_id=market.pk, at=timezone.now(), policy=wiring.policy(), keep_going=lambda: True)

    # then
    assert len(task_results.unstored(at=timezone.now() + timedelta(hours=23), limit=10)) == 1
    assert task_results.unstored(at=timezone.now() + timedelta(hours=25), limit=10) == []


def test_without_a_result_backend_nothing_is_stored_or_marked() -> None:
    # given
    code = """
import django
django.setup()
from payments import wiring
print(wiring.keeps_results())
"""
    none = {"CELERY_RESULT_BACKEND": "", "DJANGO_SETTINGS_MODULE": "api.settings"}

    # when
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | none, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    # then
    assert ended.stdout.strip() == "False", ended.stderr
