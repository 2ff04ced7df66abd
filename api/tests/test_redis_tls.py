"""`rediss://` URLs: each spelling is corrected or refused, and every client verifies the server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from api import environment
from testing.own_redis import HOST, tls_entrance, write_certificate

ROOT = Path(__file__).resolve().parents[2]
# Each client of the project makes one call. The name of its error is the answer.
CLIENTS = """
import json, sys
import django
django.setup()
from django.core.cache import cache
from api.celery import app
from payments import wiring
def publish():
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
def store():
    app.backend.set("kasoko:tls-test", "1")
calls = {"redis": lambda: wiring.broker().ping(), "broker messages": lambda: wiring.message_broker().ping(),
         "cache": lambda: cache.set("kasoko-tls-test", 1, 5), "celery broker": publish, "celery results": store}
answers = {}
for name, call in calls.items():
    try:
        call()
        answers[name] = "ok"
    except Exception as error:
        answers[name] = type(error).__name__
print(json.dumps(answers))
"""
ALL = ("redis", "broker messages", "cache", "celery broker", "celery results")


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ("rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=required", "rediss://h:1/0?ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=CERT_REQUIRED", "rediss://h:1/0?ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=CERT_OPTIONAL", "rediss://h:1/0?ssl_cert_reqs=optional"),
        ("rediss://h:1/0?ssl_cert_reqs=None", "rediss://h:1/0?ssl_cert_reqs=none"),
        ("rediss://h:1/0?ssl_ca_certs=ca.pem", "rediss://h:1/0?ssl_ca_certs=ca.pem&ssl_cert_reqs=required"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("amqp://h:1//", "amqp://h:1//"),
    ],
)
def test_spelling_is_corrected(monkeypatch: pytest.MonkeyPatch, given: str, corrected: str) -> None:
    monkeypatch.setenv("CACHE_URL", given)
    assert environment.redis_url("CACHE_URL", production=False) == corrected


@pytest.mark.parametrize(
    ("url", "production", "words"),
    [
        ("rediss://h:1/0?ssl_cert_reqs=yes", False, "must have ssl_cert_reqs=required, optional or none, not 'yes'"),
        ("rediss://h:1/0?ssl_cert_reqs=", False, "must have ssl_cert_reqs=required"),
        ("rediss://:p@h:1/0?ssl_cert_reqs=none", True, "must not have ssl_cert_reqs=none in production"),
    ],
)
def test_wrong_spelling_is_refused(monkeypatch: pytest.MonkeyPatch, url: str, production: bool, words: str) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    with pytest.raises(ImproperlyConfigured, match=f"CELERY_BROKER_URL {words}"):
        environment.redis_url("CELERY_BROKER_URL", production=production)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def port(certificate: tuple[Path, Path]) -> Iterator[int]:
    plain = urlsplit(settings.REDIS_URL).port
    with tls_entrance(plain or 6379, certificate) as port:
        yield port


def answers(port: int, query: str) -> dict[str, Any]:
    """Return the answer of each client to a TLS URL with this query."""
    password = urlsplit(settings.REDIS_URL).password or ""
    urls = {
        name: f"rediss://:{password}@{HOST}:{port}{urlsplit(os.environ[name]).path}?{query}"
        for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")
    }
    ended = subprocess.run(
        [sys.executable, "-c", CLIENTS],
        cwd=ROOT, env=os.environ | urls, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("spelling", ["", "&ssl_cert_reqs=required", "&ssl_cert_reqs=CERT_REQUIRED"])
def test_every_client_talks_to_a_server_with_a_known_certificate(
    port: int, certificate: tuple[Path, Path], spelling: str
) -> None:
    assert answers(port, f"ssl_ca_certs={certificate[0]}{spelling}") == dict.fromkeys(ALL, "ok")


def test_every_client_refuses_a_server_with_an_unknown_certificate(port: int) -> None:
    told = answers(port, "")
    assert set(told) == set(ALL)
    assert "ok" not in told.values(), told
