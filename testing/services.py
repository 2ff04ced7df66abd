"""Pytest plugin that sets the URLs of PostgreSQL and Redis before the settings are read.

It is loaded by `-p testing.services`, because pytest-django imports the settings before any conftest.py. It starts this
checkout's fast PostgreSQL and Redis, unless KASOKO_TEST_DATABASE_URL and KASOKO_TEST_REDIS_URL name other servers. The
number of the first Redis database is then in the URL. KASOKO_TEST_APPLICATION_URL is then the application's login to
that PostgreSQL; without it the tests run as the owner. Each pytest process or xdist worker has its own database name
and three Redis databases, so several runs can share a checkout. A developer's `.env` and exported settings are ignored.
Temporary directories are in `.kasoko/`. The servers stop with the last run.
"""

import fcntl
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import redis

BASE_DIR = Path(__file__).resolve().parents[1]
SETTINGS = (
    "MPESA_",
    "PAYOUT_",
    "CELERY_",
    "DJANGO_SECRET",
    "DEBUG",
    "ALLOWED_HOSTS",
    "DATABASE_",
    "CACHE_URL",
    "STAFF_",
)

_slots: list[int] = []


def _load_embedded() -> ModuleType:
    # `import api.embedded` would first import the package api, which reads the settings.
    spec = importlib.util.spec_from_file_location("kasoko_embedded", BASE_DIR / "api" / "embedded" / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError("api/embedded is missing.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _slot(state: Path, slots: int) -> int:
    """Take the lowest slot number that no other pytest process holds. This process holds it until it ends."""
    for number in range(slots):
        descriptor = os.open(state / f"slot-{number}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            _slots.append(descriptor)
            return number
    raise RuntimeError(f"{slots} pytest processes already use the test servers. Wait until one of them has ended.")


def _prepare() -> None:
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]
    os.environ["KASOKO_ENV_FILE"] = os.devnull
    temporary = embedded.state_dir(BASE_DIR, "fast") / "tmp"
    for directory in (temporary.parents[1], temporary.parent, temporary):
        directory.mkdir(mode=0o700, exist_ok=True)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(temporary)
    database_url = os.environ.get("KASOKO_TEST_DATABASE_URL")
    redis_url = os.environ.get("KASOKO_TEST_REDIS_URL")
    urls = embedded.ensure(BASE_DIR, postgres=not database_url, redis=not redis_url, profile="fast")
    if database_url:
        os.environ["DATABASE_URL"] = database_url
    # The tests log in as the owner and act as the application (testing/database.py).
    if application_url := os.environ.get("KASOKO_TEST_APPLICATION_URL") or urls.get("DATABASE_URL"):
        os.environ["KASOKO_TEST_APPLICATION_URL"] = application_url
    if redis_url:
        broker = urlsplit(redis_url)
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw")
        first = int(broker.path.strip("/") or 0) + 3 * (int(worker) + 1)
    else:
        broker = urlsplit(urls["CELERY_BROKER_URL"])
        first = 0
    if urls:
        slot = _slot(embedded.state_dir(BASE_DIR, "fast"), embedded.REDIS_DATABASES // 3)
        if not database_url:
            os.environ["DATABASE_URL"] = f"{urls['DATABASE_OWNER_URL']}_{slot}"
        if not redis_url:
            first = 3 * slot
    for number, name in enumerate(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"), start=first):
        os.environ[name] = broker._replace(path=f"/{number}").geturl()
        if not redis_url:
            with redis.Redis.from_url(os.environ[name]) as client:
                client.flushdb()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    # Only the process that started xdist's workers leaves the servers, because it ends after the workers.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        embedded.leave(BASE_DIR, "fast")


embedded = _load_embedded()
_prepare()
