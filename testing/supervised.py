"""Processes that die at a named failpoint, and servers that a test kills."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
import requests

from api import embedded
from api.embedded.keeper import Keeper
from api.embedded.server import Server
from testing.running import CELERY, PATIENCE_SECONDS, Running, running, until


class Supervised(Running):
    """An installation with a separate beat, whose web and worker can be told to die at a named failpoint."""

    def start_beat(self) -> None:
        """Start beat without a worker."""
        schedule = str(self.directory / "beat-schedule")
        self._start("beat", [*CELERY, "beat", "-l", "info", "-s", schedule])

    def start_web(self, crash_at: str = "") -> None:
        """Start the web process, which dies at the failpoint if one is named."""
        self._arm(crash_at)
        super().start_web()
        self._arm("")

    def start_worker(self, crash_at: str = "") -> None:
        """Start a worker without beat. With a failpoint it works in its only process, so that this process dies."""
        started = self.log("worker").count(" ready.")
        pool = "solo" if crash_at else "prefork"
        self._arm(crash_at)
        alone = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        self._start("worker", [*CELERY, "worker", "-l", "info", "-c", "1", f"--pool={pool}", *alone])
        self._arm("")
        until(lambda: self.log("worker").count(" ready.") > started, "the worker", lambda: self.log("worker"))

    def await_death_of_worker(self) -> int:
        """Wait until the worker is dead, and return its exit status: minus the signal that killed it."""
        child = self._children["worker"]
        until(lambda: child.poll() is not None, "the worker's death", lambda: self.log("worker")[-4000:])
        self.bury("worker")
        return child.returncode

    def await_death_in_web(self, deaths_before: int) -> None:
        """Wait until one of the web server's processes died by SIGKILL, then kill the others."""
        until(lambda: self.deaths_in_web() > deaths_before, "a web process's death", lambda: self.log("web")[-4000:])
        self.bury("web")

    def deaths_in_web(self) -> int:
        """Return how many processes of the web server have died by SIGKILL so far."""
        return self.log("web").count("was sent SIGKILL")

    def bury(self, name: str) -> None:
        """Kill the rest of the group of a process that has died."""
        child = self._children.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_SECONDS)

    def runs(self, name: str) -> bool:
        """Return True if a process was started and not buried."""
        return name in self._children

    def names_of_the_dead(self) -> list[str]:
        """Return the processes that have ended by themselves."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def set_fault(self, phone: str, fault: str | None) -> None:
        """Let the simulator apply a fault to payments to a phone from now on, or none."""
        body = {"phone": phone, "spec": fault}
        requests.post(f"{self.simulator_url}/sandbox/faults", json=body, timeout=PATIENCE_SECONDS).raise_for_status()

    def _arm(self, crash_at: str) -> None:
        self.environment["KASOKO_CRASH_AT"] = crash_at


@contextmanager
def supervised(directory: Path, **settings: str) -> Iterator[Supervised]:
    """Make a migrated database and empty queues, without any process. Remove everything at the end."""
    with running(directory, **settings) as base:
        place = Supervised(directory, base.environment["DATABASE_URL"], settings)
        try:
            yield place
        finally:
            place.stop_all()


class Servers:
    """A test's own PostgreSQL and Redis, as durable as in production, without a keeper that restarts them.

    `base_dir` is a directory that any user may enter. Use it from one thread, because the servers end with the thread
    that started them.
    """

    def __init__(self, base_dir: Path) -> None:
        state = embedded.state_dir(base_dir, "durable")
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        keeper = Keeper(state, "durable")
        self._postgres, self._redis = keeper.make_server("postgres"), keeper.make_server("redis")
        for server in (self._postgres, self._redis):
            server.start()

    @property
    def urls(self) -> dict[str, str]:
        """The URLs of both servers, by setting."""
        return self._postgres.urls | self._redis.urls

    def crash_postgres(self) -> None:
        """Stop PostgreSQL like `pg_ctl stop -m immediate`: it waits for no client and flushes nothing."""
        self._end(self._postgres, signal.SIGQUIT)

    def lose_redis(self) -> None:
        """Empty Redis and kill it with kill -9, so that every message, lease and counter is lost."""
        with redis.Redis.from_url(self._redis.urls["CACHE_URL"]) as client:
            client.flushall()
        self._end(self._redis, signal.SIGKILL)

    def restart(self) -> None:
        """Start each server that does not run, on its old port and data."""
        for server in (self._postgres, self._redis):
            if server.child is None or server.child.poll() is not None:
                server.start()

    def stop(self) -> None:
        """Stop both servers."""
        for server in (self._postgres, self._redis):
            server.stop()

    def _end(self, server: Server, number: signal.Signals) -> None:
        if server.child is not None:
            server.child.send_signal(number)
            server.child.wait(PATIENCE_SECONDS)
