"""PostgreSQL and Redis of the bench, set up as in production.

They are as durable and have as much memory as in production. The programs are those of the checkout's embedded servers,
but with a state directory of the bench in `.kasoko/bench`. Each part of the bench gets an empty, migrated database on
these servers. PostgreSQL runs with the settings that docs/scale.md recommends. A second PostgreSQL with its own default
settings, in `.kasoko/bench-defaults`, shows that our costs do not depend on these settings.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg2

from api import embedded
from testing.parts import ROOT

TUNED = ROOT / ".kasoko" / "bench"
DEFAULTS = ROOT / ".kasoko" / "bench-defaults"
# Settings with these prefixes belong to the developer. The bench leaves them out, as the tests do.
DEVELOPER_PREFIXES = (
    "MPESA_",
    "PAYOUT_",
    "CELERY_",
    "DJANGO_SECRET",
    "DEBUG",
    "ALLOWED_HOSTS",
    "DATABASE_",
    "CACHE_URL",
)
REPORTED_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "shared_buffers",
    "max_wal_size",
    "wal_compression",
    "jit",
)


def _settings() -> dict[str, str]:
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "shared_buffers": f"{min(2048, memory_mb // 8)}MB",
        "effective_cache_size": f"{min(6144, memory_mb // 4)}MB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "15min",
        "random_page_cost": "1.1",
        "work_mem": "16MB",
        "maintenance_work_mem": "256MB",
        "jit": "off",
    }


@contextmanager
def started(*, tuned: bool = True) -> Iterator[dict[str, str]]:
    """Start the servers, yield the environment for processes that use them, and stop the servers at the end.

    With `tuned=False` the PostgreSQL server has only its own default settings.
    Raises: embedded.EmbeddedServerError.
    """
    place = TUNED if tuned else DEFAULTS
    for directory in (place.parent, place):
        directory.mkdir(mode=0o711, exist_ok=True)
    try:
        urls = embedded.ensure(place, postgres=True, redis=True)
        if tuned and _write_settings(_root_url(place, urls["DATABASE_URL"])):
            embedded.stop(place, "durable")
            urls = embedded.ensure(place, postgres=True, redis=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(DEVELOPER_PREFIXES)}
        yield inherited | {
            "KASOKO_ENV_FILE": os.devnull,
            "KASOKO_BENCH_ROOT_URL": _root_url(place, urls["DATABASE_URL"]),
            **urls,
        }
    finally:
        embedded.leave(place, "durable")


def _root_url(place: Path, url: str) -> str:
    password = json.loads((embedded.state_dir(place, "durable") / "secrets.json").read_text())["root"]
    parts = urlsplit(url)
    return parts._replace(
        netloc=f"kasoko_root:{quote(password)}@{parts.hostname}:{parts.port}", path="/postgres"
    ).geturl()


def _write_settings(root_url: str) -> bool:
    """Write the settings into the server's configuration. Return True if the server must start again to use them."""
    for name, value in _settings().items():
        run_sql(root_url, f"ALTER SYSTEM SET {name} = '{value}'")
    run_sql(root_url, "SELECT pg_reload_conf()")
    return bool(run_sql(root_url, "SELECT name FROM pg_file_settings WHERE error IS NOT NULL"))


def fresh_database(environment: dict[str, str], part: str) -> dict[str, str]:
    """Make an empty, migrated database for one part, and return the environment for processes that use it."""
    name = f"bench_{part}"
    root_url = environment["KASOKO_BENCH_ROOT_URL"]
    run_sql(root_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    run_sql(root_url, f"CREATE DATABASE {name} OWNER kasoko")
    for role in ("pg_read_server_files", "pg_write_server_files", "pg_checkpoint", "pg_monitor"):
        # The measurement of the lowest possible cost uses COPY on the server, checkpoints and statistics.
        run_sql(root_url, f"GRANT {role} TO kasoko")
    # The floor makes tables of its own, so the bench runs as the owner. The triggers are the same for both roles.
    url = urlsplit(environment["DATABASE_OWNER_URL"])._replace(path=f"/{name}").geturl()
    own = environment | {"DATABASE_URL": url, "DATABASE_OWNER_URL": url}
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(command, cwd=ROOT, env=own, check=True)
    return own


def drop_database(environment: dict[str, str], part: str) -> None:
    """Drop the database of one part."""
    run_sql(environment["KASOKO_BENCH_ROOT_URL"], f"DROP DATABASE IF EXISTS bench_{part} WITH (FORCE)")


def conditions(environment: dict[str, str]) -> str:
    """Return the version and the settings of the servers as one line of text."""
    root_url = environment["KASOKO_BENCH_ROOT_URL"]
    shown = [f"{name} {run_sql(root_url, f'SHOW {name}')[0][0]}" for name in REPORTED_SETTINGS]
    return f"PostgreSQL with {', '.join(shown)}; Redis with an append-only file"


def run_sql(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on a new connection, outside a transaction, and return the rows of its answer."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def server_directory(root_url: str) -> Path:
    """Return a directory in which the PostgreSQL server may write files for COPY."""
    ((directory,),) = run_sql(root_url, "SHOW data_directory")
    return Path(str(directory))
