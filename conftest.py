"""Shared fixtures: fast PIN hashing, empty queues, clean caches, and a check of the books after each test."""

import base64
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import hypothesis
import pytest
import redis
from django.apps import apps
from django.conf import Settings
from django.conf import settings as django_settings
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management.commands import flush as flush_command
from django.core.management.sql import emit_post_migrate_signal
from django.db import connections, transaction
from django.db.backends.postgresql.operations import DatabaseOperations
from django.db.models.signals import post_migrate
from kombu import pools
from playwright.sync_api import Browser, sync_playwright

from api.celery import app as celery_app
from payments import settlement_tasks, wiring
from payments.ledger import invariants
from payments.models import Breaker, DatabaseProfile
from payments.policy import Policy
from testing import browsing, builders, database
from users import figures, first_figures, roles
from users.models import Figure

# The time of a test says nothing about the code: the machine may be busy.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

BUILT_FROM_SETTINGS = ("policy", "acts", "addresses", "gateway", "bulk_gateway", "restore_watch", "dispatcher")
BUILT_FROM_SETTINGS += ("credentials", "tokens", "dispatcher_thread", "broker", "message_broker")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broken_books: breaks the books on purpose, so they are not checked")
    # Look for no directory of collected static files. The live server outlives a test, so a fixture
    # would end too early.
    django_settings.STATIC_ROOT = None


@pytest.fixture
def at() -> datetime:
    """The time at which a test takes place."""
    return builders.AT


@pytest.fixture
def policy() -> Policy:
    """The default policy of the tests."""
    return builders.policy()


@pytest.fixture(autouse=True)
def _fast_pin_hashing(settings: Settings) -> None:
    """Hash PINs fast, and let a PIN alone open the console unless a test sets STAFF_TOTP."""
    settings.STAFF_TOTP = False
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher", *settings.PASSWORD_HASHERS]


@pytest.fixture(autouse=True)
def _fresh_wiring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Discard the objects that a test built from its settings, and the state of its broker."""
    monkeypatch.setattr(wiring, "_broker_retry_at", 0.0)
    monkeypatch.setattr(wiring, "_nudge_retry_at", 0.0)
    monkeypatch.setattr(wiring, "_callback_nudges", wiring._ThrottledNudges())
    yield
    settlement_tasks.finish_requests()
    figures.forget()
    for name in BUILT_FROM_SETTINGS:
        getattr(wiring, name).cache_clear()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Run the tests as the application's role, which owns nothing, after the owner has migrated."""
    with django_db_blocker.unblock(), database.acting_as_application():
        yield


@pytest.fixture(scope="session", autouse=True)
def _flush_guarded_tables() -> Iterator[None]:
    """Let Django empty the tables after a transactional test, although their triggers refuse TRUNCATE."""
    flush = DatabaseOperations.execute_sql_flush

    def flush_without_triggers(self: DatabaseOperations, sql_list: list[str]) -> None:
        alias = self.connection.alias
        with transaction.atomic(using=alias), database.as_owner(), connections[alias].cursor() as cursor:
            cursor.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1")
            guarded = [table for (table,) in cursor.fetchall()]
            for table in guarded:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            flush(self, sql_list)
            for table in guarded:
                cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    # The flush also removes rows that migrations added. Add them again after Django has created its permissions.
    post_migrate.connect(_restore_migrated_rows, sender=apps.get_app_config("payments"))

    def emit_as_owner(*args: Any, **kwargs: Any) -> None:
        with database.as_owner():
            emit_post_migrate_signal(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "execute_sql_flush", flush_without_triggers)
        patch.setattr(flush_command, "emit_post_migrate_signal", emit_as_owner)
        yield


def _restore_migrated_rows(**_: Any) -> None:
    DatabaseProfile.objects.get_or_create(defaults={"production": False})
    roles.install(Group, Permission, ContentType)
    first_figures.install(Figure)
    Breaker.objects.bulk_create([Breaker(cause=cause) for cause in Breaker.Cause.values], ignore_conflicts=True)


@pytest.fixture
def as_owner(db: None) -> Iterator[None]:
    """Let a test act as the owner of the tables, for example to prove that the triggers refuse even the owner."""
    with database.as_owner():
        yield


@pytest.fixture(scope="session")
def _redis_of_this_run() -> Iterator[tuple[redis.Redis, redis.Redis]]:
    from django.conf import settings

    with redis.Redis.from_url(settings.REDIS_URL) as cache, redis.Redis.from_url(settings.CELERY_BROKER_URL) as broker:
        yield cache, broker


@pytest.fixture(autouse=True)
def _books_close(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty the queues and check every invariant after each test that used the database."""
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
    """A function that returns the messages waiting on the broker, oldest first: (task name, task id, arguments)."""

    def read() -> list[tuple[str, str, list[Any]]]:
        messages = [json.loads(raw) for raw in reversed(_redis_of_this_run[1].lrange("celery", 0, -1))]
        return [
            (message["headers"]["task"], message["headers"]["id"], json.loads(base64.b64decode(message["body"]))[0])
            for message in messages
        ]

    return read


@pytest.fixture
def redis_down(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[None]:
    """Point the broker and the cache at a port where nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # Bound but not listening: no other program gets it, and nobody can connect.
        closed_url = f"redis://127.0.0.1:{reserved.getsockname()[1]}/0"
        monkeypatch.setenv("CELERY_BROKER_WRITE_URL", closed_url)
        settings.REDIS_URL = settings.CELERY_BROKER_URL = closed_url
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": closed_url}}
        wiring.broker.cache_clear()
        wiring.message_broker.cache_clear()
        _forget_broker_connections()
        yield
    monkeypatch.undo()
    _forget_broker_connections()


@pytest.fixture
def cache_down(settings: Settings) -> Iterator[None]:
    """Point the cache at a port where nothing listens. The broker of messages stays."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        closed_url = f"redis://127.0.0.1:{reserved.getsockname()[1]}/0"
        settings.REDIS_URL = closed_url
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": closed_url}}
        for name in BUILT_FROM_SETTINGS:
            getattr(wiring, name).cache_clear()
        yield


def _forget_broker_connections() -> None:
    celery_app.amqp._producer_pool = None
    pools.reset()


# --- a browser -------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the longest files first, because otherwise they would run alone at the end.

    If there is no Chromium, leave out the tests that need one. The last lines of the run say so.
    """
    items.sort(key=lambda item: "simulation" not in item.path.parts)
    left_out = [item for item in items if item.get_closest_marker("browser")] if browsing.find() is None else []
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if browsing.find() is None:
        terminalreporter.section("left out", sep="=", yellow=True)
        terminalreporter.line(f"The tests marked `browser`, which open the console, were left out. {browsing.MISSING}")


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Browser]:
    # Playwright runs an event loop in this thread. The tests call the ORM outside of the loop, so Django's check
    # is turned off.
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = browsing.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def opened(_chromium: Browser, live_server: Any) -> Iterator[Callable[..., browsing.Window]]:
    """A function that opens browser windows on the test's server: `opened(size=browsing.PHONE, dark=True)`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(browsing.window(_chromium, live_server.url, **options))
