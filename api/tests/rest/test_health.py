"""Tests of api/rest/health.py: the process runs, and the servers answer."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import Settings
from django.test import Client
from django.utils import timezone

from payments import wiring
from payments.monitoring import overview
from testing.own_redis import own_redis

ROOT = Path(__file__).resolve().parents[3]


def test_health_answers_200_without_any_server() -> None:
    # given: neither PostgreSQL nor Redis answers at these addresses
    code = """
import django
django.setup()
from django.test import Client
for path in ("/healthz", "/readyz"):
    answer = Client().get(path)
    print(answer.status_code, answer.json())
"""
    down = {
        "DJANGO_SETTINGS_MODULE": "api.settings",
        "DATABASE_URL": "postgres://kasoko:secret@127.0.0.1:1/kasoko",
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CACHE_URL": "redis://127.0.0.1:1/1",
        "ALLOWED_HOSTS": "testserver",
        "KASOKO_ENV_FILE": os.devnull,
    }

    # when
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | down, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    # then
    assert ended.stdout.splitlines() == [
        "200 {'status': 'ok'}",
        "503 {'postgresql': 'not reached', 'redis': 'not reached', 'broker': 'not reached', 'beat': 'unknown', "
        "'workers': 'unknown'}",
    ], ended.stderr


def beat_was_seen(seconds_ago: float) -> None:
    overview.beat(worker="celery@host", at=timezone.now() - timedelta(seconds=seconds_ago))


def test_ready_answers_200_while_all_run(db: None, client: Client) -> None:
    # given
    beat_was_seen(5)

    # when
    answer = client.get("/readyz")

    # then
    everything = {"postgresql": "ok", "redis": "ok", "broker": "ok", "beat": "ok", "workers": "ok"}
    assert (answer.status_code, answer.json()) == (200, everything)


@pytest.mark.parametrize("seen", [True, False], ids=["stopped", "never started"])
def test_ready_names_beat_if_no_heartbeat_comes_and_no_message_waits(db: None, client: Client, seen: bool) -> None:
    # given
    if seen:
        beat_was_seen(90)

    # when
    answer = client.get("/readyz")

    # then
    assert (answer.status_code, answer.json()["beat"], answer.json()["workers"]) == (200, "silent", "unknown")


def test_ready_names_the_workers_if_messages_wait(db: None, client: Client) -> None:
    # given
    beat_was_seen(90)
    wiring.hint(wiring.SETTLE_MARKET, 1)

    # when
    answer = client.get("/readyz")

    # then
    assert (answer.status_code, answer.json()["beat"], answer.json()["workers"]) == (200, "unknown", "silent")


def test_ready_answers_200_and_reports_redis_while_redis_is_down(db: None, client: Client, redis_down: None) -> None:
    # when
    answer = client.get("/readyz")

    # then
    unsure = {"beat": "silent, or the workers are", "workers": "silent, or beat is"}
    servers = {"postgresql": "ok", "redis": "not reached", "broker": "not reached"}
    assert (answer.status_code, answer.json()) == (200, servers | unsure)


@pytest.mark.servers
@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "SET", "maxmemory", "1"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
    ],
    ids=["full", "a replica", "without its replica"],
)
def test_ready_reports_a_redis_that_refuses_writes(
    db: None, client: Client, settings: Settings, command: tuple[str, ...]
) -> None:
    with own_redis() as server:
        # given
        server.command(*command)
        settings.REDIS_URL = settings.CELERY_BROKER_URL = server.url

        # when
        answer = client.get("/readyz")

    # then
    assert answer.status_code == 200
    assert (answer.json()["redis"], answer.json()["broker"]) == ("refuses writes", "refuses writes")
