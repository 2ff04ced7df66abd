"""Wiring: messages that wake the workers, and objects built from settings."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings

from payments import wiring
from testing.running import until

ROOT = Path(__file__).resolve().parents[2]
NAMES = "payments.settlement_tasks."
Queued = Callable[[], list[tuple[str, str, list[Any]]]]


@pytest.mark.django_db
def test_hint_carries_its_argument_and_id(queued: Queued) -> None:
    # when
    wiring.hint(wiring.SETTLE_MARKET, 7, task_id="0d6f2b1e-0000-4000-8000-000000000007")

    # then
    assert queued() == [(f"{NAMES}settle_market", "0d6f2b1e-0000-4000-8000-000000000007", [7])]


@pytest.mark.django_db
def test_repeated_nudges_are_one_message_until_the_sweep_begins(queued: Queued) -> None:
    # given
    sweep = wiring.SEND_DUE_PAYOUTS
    for _ in range(3):
        wiring.nudge(sweep)
    before = len(queued())

    # when
    wiring.sweep_began(sweep)
    wiring.nudge(sweep)

    # then
    assert before == 1
    assert [name for name, _, _ in queued()] == [f"{NAMES}send_due_payouts"] * 2


@pytest.mark.django_db
def test_nudges_of_two_sweeps_do_not_block_each_other(queued: Queued) -> None:
    # when
    wiring.nudge(wiring.SEND_DUE_PAYOUTS)
    wiring.nudge(wiring.APPLY_STORED_CALLBACKS)

    # then
    assert [name for name, _, _ in queued()] == [f"{NAMES}send_due_payouts", f"{NAMES}apply_stored_callbacks"]


@pytest.mark.django_db
def test_lost_nudge_blocks_the_next_for_half_a_minute_only(queued: Queued) -> None:
    # when
    wiring.nudge(wiring.SEND_DUE_PAYOUTS)

    # then
    left = wiring.broker().ttl(f"kasoko:nudged:{NAMES}send_due_payouts")
    assert 0 < left <= 30


def test_hint_and_nudge_without_a_broker_do_not_raise() -> None:
    # given
    code = """
import django
django.setup()
from payments import wiring
wiring.hint(wiring.SETTLE_MARKET, 1)
wiring.nudge(wiring.SEND_DUE_PAYOUTS)
print("went on")
"""
    down = {
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1",
        "CACHE_URL": "",
        "DJANGO_SETTINGS_MODULE": "api.settings",
    }

    # when
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **down}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    # then
    assert ended.stdout.strip() == "went on", ended.stderr
    assert f"the sweep will run {NAMES}settle_market" in ended.stderr
    assert f"the sweep will run {NAMES}send_due_payouts" in ended.stderr


@pytest.mark.django_db
def test_frequent_callbacks_nudge_at_once_and_once_more_after_the_interval(
    queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: an interval that 50 calls never reach, however slow the machine is
    monkeypatch.setattr(wiring, "NUDGE_INTERVAL_SECONDS", 2.0)
    # given: the first callback is nudged at once, and the sweep has begun
    wiring.after_callback()
    assert len(queued()) == 1
    wiring.sweep_began(wiring.APPLY_STORED_CALLBACKS)

    # when
    for _ in range(50):
        wiring.after_callback()

    # then
    until(lambda: len(queued()) == 2, "the nudge after the interval")
    wiring.sweep_began(wiring.APPLY_STORED_CALLBACKS)
    time.sleep(1.5 * wiring.NUDGE_INTERVAL_SECONDS)
    assert [name for name, _, _ in queued()] == [f"{NAMES}apply_stored_callbacks"] * 2


def test_wiring_builds_from_the_settings() -> None:
    # when
    gateway, addresses = wiring.gateway(), wiring.addresses()

    # then
    assert addresses.callback_url == django_settings.MPESA_CALLBACK_URL
    assert django_settings.CALLBACK_TOKEN_KEY not in repr(addresses)
    assert django_settings.MPESA_BASE_URL in repr(gateway)
    gateway.close()
