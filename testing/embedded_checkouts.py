"""Checkouts in temporary directories, and processes that use their embedded servers."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis

from api import embedded
from api.embedded import places, processes, state

# A program that prints the URLs and holds the lease until its input ends. Its fork may hold the lease longer. It does
# not import the package `api`.
USER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import embedded
checkout, profile = Path(sys.argv[2]), sys.argv[3]
urls = embedded.ensure(checkout, postgres="postgres" in sys.argv, redis="redis" in sys.argv, profile=profile)
print(json.dumps(urls), flush=True)
if "fork" in sys.argv and os.fork():
    os._exit(0)
sys.stdin.read()
if "leave" in sys.argv:
    embedded.leave(checkout, profile)
    print("left", flush=True)
"""


class Checkout:
    """A directory with its own servers, and the processes that use them."""

    def __init__(self, base_dir: Path, profile: embedded.Profile) -> None:
        base_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.base_dir = base_dir
        self.profile = profile
        self.state = embedded.state_dir(base_dir, profile)
        self.users: list[subprocess.Popen[str]] = []
        self.environment = os.environ | {"KASOKO_EMBEDDED_GRACE_SECONDS": "0.2"}

    def launch(self, *servers: str) -> "subprocess.Popen[str]":
        """Start a process that asks for servers. By default it asks for both servers."""
        api = str(Path(embedded.__file__).parents[1])
        servers = servers or ("postgres", "redis")
        command = [sys.executable, "-P", "-c", USER, api, str(self.base_dir), self.profile, *servers]
        pipe = subprocess.PIPE
        user = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self.environment)
        self.users.append(user)
        return user

    def use(self, *servers: str) -> dict[str, str]:
        """Start a process that asks for servers, and return the URLs that it gets."""
        user = self.launch(*servers)
        line = user.stdout.readline() if user.stdout else ""
        return json.loads(line) if line else pytest.fail(user.communicate()[1])

    def leave(self) -> None:
        """End all users, and wait until the servers have stopped."""
        self.end_users()
        until(lambda: not state.keeper_is_alive(self.state))

    def end_users(self) -> None:
        """End all processes that use the servers."""
        for user in self.users:
            user.communicate()
        self.users.clear()

    @property
    def keeper(self) -> int:
        return state.announcement(self.state)["pid"]

    @property
    def place(self) -> Path:
        return places.choose_place(self.state, processes.server_account())

    @property
    def database(self) -> Path:
        (directory,) = self.place.glob("postgresql*")
        return directory


class MakeCheckout(Protocol):
    """A factory of checkouts."""

    def __call__(self, name: str, profile: embedded.Profile = "durable") -> Checkout: ...


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, for at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "The condition was still false after a minute."
        time.sleep(0.02)


def sql(urls: dict[str, str], statement: str, *, url: str = "DATABASE_URL") -> list[tuple[Any, ...]]:
    """Run one statement as the application and return its rows."""
    connection = psycopg2.connect(urls[url])
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def owner_sql(urls: dict[str, str], statement: str) -> list[tuple[Any, ...]]:
    """Run one statement as the owner, who alone may make tables."""
    return sql(urls, statement, url="DATABASE_OWNER_URL")


def broker(urls: dict[str, str]) -> redis.Redis:
    """Return a client of the broker's database."""
    return redis.Redis.from_url(urls["CELERY_BROKER_URL"])


def answers(url: str) -> bool:
    """Return True if a server accepts connections on the URL's port."""
    try:
        socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=5).close()
    except OSError:
        return False
    return True
