"""Processes that are made to die and servers that are killed: what the journeys of the crash points stand on."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
import requests

from api import embedded
from api.embedded.keeper import Keeper
from api.embedded.server import Server
from testing.running import PATIENCE_SECONDS, Running, running, until


class Supervised(Running):
    """An installation with beat apart, whose web and worker can be armed to die at a named crash point."""

    def start_beat(self) -> None:
        schedule = str(self.directory / "beat-schedule")
        self._start("beat", [*self._celery(), "beat", "-l", "info", "-s", schedule])

    def start_web(self, crash_at: str = "") -> None:
        self._arm(crash_at)
        super().start_web()
        self._arm("")

    def start_worker(self, crash_at: str = "") -> None:
        """A worker without beat; armed, it does the work in its only process, so that this is the one that dies."""
        started = self.log("worker").count(" ready.")
        pool = "solo" if crash_at else "prefork"
        self._arm(crash_at)
        alone = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        self._start("worker", [*self._celery(), "worker", "-l", "info", "-c", "1", f"--pool={pool}", *alone])
        self._arm("")
        until(lambda: self.log("worker").count(" ready.") > started, "the worker", lambda: self.log("worker"))

    def await_death_of_worker(self) -> int:
        """Wait until the worker is dead, and return its exit status: minus the signal that killed it."""
        child = self._children["worker"]
        until(lambda: child.poll() is not None, "the worker's death", lambda: self.log("worker")[-4000:])
        self.bury("worker")
        return child.returncode

    def await_death_in_web(self, deaths_before: int) -> None:
        """Wait until one of the web server's processes was killed with SIGKILL, then kill the rest of it too."""
        until(lambda: self.deaths_in_web() > deaths_before, "a web process's death", lambda: self.log("web")[-4000:])
        self.bury("web")

    def deaths_in_web(self) -> int:
        return self.log("web").count("was sent SIGKILL")

    def bury(self, name: str) -> None:
        """See to it that nothing is left of a process that has died, or partly has."""
        child = self._children.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_SECONDS)

    def runs(self, name: str) -> bool:
        """Whether a process was started and has not been buried."""
        return name in self._children

    def names_of_the_dead(self) -> list[str]:
        """The processes that have ended by themselves."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def set_fault(self, phone: str, fault: str | None) -> None:
        """Have the simulator strike payments to a phone with a fault from now on, or with none."""
        body = {"phone": phone, "spec": fault}
        requests.post(f"{self.simulator_url}/sandbox/faults", json=body, timeout=PATIENCE_SECONDS).raise_for_status()

    def _celery(self) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "api"]

    def _arm(self, crash_at: str) -> None:
        self.environment["KASOKO_CRASH_AT"] = crash_at


@contextmanager
def supervised(directory: Path, **settings: str) -> Iterator[Supervised]:
    """A migrated database, empty queues, and no process yet; all of it is gone afterwards."""
    with running(directory, **settings) as made:
        place = Supervised(directory, made.environment["DATABASE_URL"], settings)
        try:
            yield place
        finally:
            place.stop_all()


class Servers:
    """A PostgreSQL and a Redis of a test's own, as durable as in production, without a keeper that restarts them.

    `base_dir` is a directory that any user may enter. To be used from one thread: the servers end with the thread that
    started them.
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
        return self._postgres.urls | self._redis.urls

    def crash_postgres(self) -> None:
        """Stop PostgreSQL at once, as `pg_ctl stop -m immediate` does: no client is waited for, nothing is flushed."""
        self._end(self._postgres, signal.SIGQUIT)

    def lose_redis(self) -> None:
        """FLUSHALL, then kill -9: every message, lease and counter in it is gone."""
        with redis.Redis.from_url(self._redis.urls["CACHE_URL"]) as client:
            client.flushall()
        self._end(self._redis, signal.SIGKILL)

    def restart(self) -> None:
        """Start again, on its port and data, what does not run."""
        for server in (self._postgres, self._redis):
            if server.child is None or server.child.poll() is not None:
                server.start()

    def stop(self) -> None:
        for server in (self._postgres, self._redis):
            server.stop()

    def _end(self, server: Server, number: signal.Signals) -> None:
        if server.child is not None:
            server.child.send_signal(number)
            server.child.wait(PATIENCE_SECONDS)
