"""Tests of api/rest/health.py: the process runs, and the servers answer."""

import os
import subprocess
import sys
from pathlib import Path

from django.test import Client

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
        "503 {'postgresql': 'not reached', 'redis': 'not reached'}",
    ], ended.stderr


def test_ready_answers_200_while_both_servers_answer(db: None, client: Client) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"postgresql": "ok", "redis": "ok"})


def test_ready_answers_200_and_reports_redis_while_redis_is_down(db: None, client: Client, redis_down: None) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"postgresql": "ok", "redis": "not reached"})
