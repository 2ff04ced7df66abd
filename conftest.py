"""What every test shares: quick PINs, empty queues, clean caches, and books that close after each test."""

import base64
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
import redis
from django.apps import apps
from django.conf import Settings
from django.conf import settings as django_settings
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, transaction
from django.db.backends.postgresql.operations import DatabaseOperations
from django.db.models.signals import post_migrate
from kombu import pools
from playwright.sync_api import Browser, sync_playwright

from api.celery import app as celery_app
from payments import settlement_tasks, wiring
from payments.ledger import invariants
from payments.models import Breaker
from payments.policy import Policy
from testing import browsing, builders
from users import roles

BUILT_FROM_SETTINGS = ("policy", "addresses", "gateway", "bulk_gateway", "dispatcher", "dispatcher_thread", "broker")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broken_books: leaves books behind that do not close, and means to")
    # No directory of collected static files is looked for, not even by the live server, which outlives a test.
    django_settings.STATIC_ROOT = None


@pytest.fixture
def at() -> datetime:
    """The moment at which a test's story happens."""
    return builders.AT


@pytest.fixture
def policy() -> Policy:
    return builders.policy()


@pytest.fixture(autouse=True)
def _quick_pins(settings: Settings) -> None:
    """PINs are hashed fast, and a PIN alone opens the console where a test does not say otherwise."""
    settings.STAFF_TOTP = False
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher", *settings.PASSWORD_HASHERS]


@pytest.fixture(autouse=True)
def _built_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the edges built from one test's settings, or learnt of its broker, is not the next one's."""
    monkeypatch.setattr(wiring, "_broker_gone_until", 0.0)
    monkeypatch.setattr(wiring, "_callbacks_came", wiring._Echo())
    yield
    settlement_tasks.hear_out()
    for name in BUILT_FROM_SETTINGS:
        getattr(wiring, name).cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _flush_guarded_tables() -> Iterator[None]:
    """Let Django empty the tables after a transactional test although their triggers refuse TRUNCATE."""
    flush = DatabaseOperations.execute_sql_flush

    def flush_without_triggers(self: DatabaseOperations, sql_list: list[str]) -> None:
        with transaction.atomic(using=self.connection.alias), connections[self.connection.alias].cursor() as cursor:
            cursor.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1")
            guarded = [table for (table,) in cursor.fetchall()]
            for table in guarded:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            flush(self, sql_list)
            for table in guarded:
                cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    # What migrations planted goes with the rest, and is planted again once Django has made its permissions anew.
    post_migrate.connect(_plant_again, sender=apps.get_app_config("payments"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "execute_sql_flush", flush_without_triggers)
        yield


def _plant_again(**_: Any) -> None:
    roles.install(Group, Permission, ContentType)
    Breaker.objects.bulk_create([Breaker(cause=cause) for cause in Breaker.Cause.values], ignore_conflicts=True)


@pytest.fixture(scope="session")
def _redis_of_this_run() -> Iterator[tuple[redis.Redis, redis.Redis]]:
    from django.conf import settings

    with redis.Redis.from_url(settings.REDIS_URL) as cache, redis.Redis.from_url(settings.CELERY_BROKER_URL) as broker:
        yield cache, broker


@pytest.fixture(autouse=True)
def _books_close(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that touched the database, nothing of the money is out of place; and its queues are emptied."""
    uses = {"db", "transactional_db", "live_server"} & set(request.fixturenames)
    if not uses and request.node.get_closest_marker("django_db") is None:
        yield
        return
    request.getfixturevalue("db")
    cache, broker = request.getfixturevalue("_redis_of_this_run")
    yield
    for connection, pattern in ((cache, "kasoko:*"), (broker, "celery*"), (broker, "unacked*")):
        if keys := list(connection.scan_iter(pattern, count=1000)):
            connection.delete(*keys)
    if request.node.get_closest_marker("broken_books") is None:
        assert [str(difference) for difference in invariants.differences()] == []


@pytest.fixture
def queued(_redis_of_this_run: tuple[redis.Redis, redis.Redis]) -> Callable[[], list[tuple[str, str, list[Any]]]]:
    """The messages that wait on the broker, oldest first: (task's name, task's id, its arguments)."""

    def read() -> list[tuple[str, str, list[Any]]]:
        messages = [json.loads(raw) for raw in reversed(_redis_of_this_run[1].lrange("celery", 0, -1))]
        return [
            (message["headers"]["task"], message["headers"]["id"], json.loads(base64.b64decode(message["body"]))[0])
            for message in messages
        ]

    return read


@pytest.fixture
def redis_down(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[None]:
    """The broker and the cache are at a port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and never listening: nobody else gets it, and connecting is refused.
        nowhere = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        monkeypatch.setenv("CELERY_BROKER_WRITE_URL", nowhere)
        settings.REDIS_URL = nowhere
        wiring.broker.cache_clear()
        _forget_broker_connections()
        yield
    monkeypatch.undo()
    _forget_broker_connections()


def _forget_broker_connections() -> None:
    celery_app.amqp._producer_pool = None
    pools.reset()


# --- a browser -------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest file comes first, or it would run alone at the end.

    Without a Chromium the tests that need one are left out, and the last lines of the run say so.
    """
    items.sort(key=lambda item: item.path.name != "test_simulation.py")
    left_out = [item for item in items if item.get_closest_marker("browser")] if browsing.find() is None else []
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if browsing.find() is None:
        terminalreporter.section("left out", sep="=", yellow=True)
        terminalreporter.line(f"The tests marked `browser`, which walk the console, were left out. {browsing.MISSING}")


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Browser]:
    # Playwright keeps a loop in this thread; the ORM is called beside it, never inside it.
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = browsing.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def opened(_chromium: Browser, live_server: Any) -> Iterator[Callable[..., browsing.Window]]:
    """Opens browser windows on the test's own server: `opened(size=browsing.PHONE, dark=True)`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(browsing.window(_chromium, live_server.url, **options))
