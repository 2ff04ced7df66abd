"""Processes that are killed at a failpoint, and servers that a test kills."""

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
    """An installation with a separate beat. Its web process and worker can be killed at a failpoint."""

    def start_beat(self) -> None:
        """Start beat without a worker."""
        schedule = str(self.directory / "beat-schedule")
        self._start("beat", [*CELERY, "beat", "-l", "info", "-s", schedule])

    def start_web(self, crash_at: str = "") -> None:
        """Start the web process. `crash_at` names a failpoint at which it is killed."""
        self._arm(crash_at)
        super().start_web()
        self._arm("")

    def start_worker(self, crash_at: str = "") -> None:
        """Start a worker without beat. `crash_at` names a failpoint at which it is killed.

        With a failpoint the worker runs tasks in its main process, so that the kill ends the whole worker.
        """
        started = self.log("worker").count(" ready.")
        pool = "solo" if crash_at else "prefork"
        self._arm(crash_at)
        alone = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        self._start("worker", [*CELERY, "worker", "-l", "info", "-c", "1", f"--pool={pool}", *alone])
        self._arm("")
        until(lambda: self.log("worker").count(" ready.") > started, "the worker", lambda: self.log("worker"))

    def await_kill_of_worker(self) -> int:
        """Wait until the worker has ended. Return its exit status: minus the number of the signal that killed it."""
        child = self._children["worker"]
        until(lambda: child.poll() is not None, "the kill of the worker", lambda: self.log("worker")[-4000:])
        self.kill_rest_of("worker")
        return child.returncode

    def await_kill_in_web(self, kills_before: int) -> None:
        """Wait until SIGKILL has ended another process of the web server. Then kill its other processes."""
        until(lambda: self.kills_in_web() > kills_before, "the kill of a web process", lambda: self.log("web")[-4000:])
        self.kill_rest_of("web")

    def kills_in_web(self) -> int:
        """Return the number of processes of the web server that SIGKILL has ended so far."""
        return self.log("web").count("was sent SIGKILL")

    def kill_rest_of(self, name: str) -> None:
        """Kill what is left of the process group of a dead process, and forget the process."""
        child = self._children.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_SECONDS)

    def runs(self, name: str) -> bool:
        """Return True if a process was started and not stopped or killed."""
        return name in self._children

    def names_of_ended(self) -> list[str]:
        """Return the names of the processes that have ended but were not stopped."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def set_fault(self, phone: str, fault: str | None) -> None:
        """Make the simulator apply a fault to all later payments to a phone. None removes the fault."""
        body = {"phone": phone, "spec": fault}
        requests.post(f"{self.simulator_url}/sandbox/faults", json=body, timeout=PATIENCE_SECONDS).raise_for_status()

    def _arm(self, crash_at: str) -> None:
        self.environment["KASOKO_CRASH_AT"] = crash_at


@contextmanager
def supervised(directory: Path, **settings: str) -> Iterator[Supervised]:
    """Make a migrated database and empty queues, but start no process. Remove everything at the end."""
    with running(directory, **settings) as base:
        installation = Supervised(directory, base.owner_url, settings)
        try:
            yield installation
        finally:
            installation.stop_all()


class Servers:
    """A PostgreSQL and a Redis for one test, as durable as in production. No keeper restarts them.

    `base_dir` is a directory that any user may enter. Use the servers from one thread, because they end with the thread
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
        """Stop PostgreSQL as `pg_ctl stop -m immediate` does: it waits for no client and flushes nothing."""
        self._end(self._postgres, signal.SIGQUIT)

    def lose_redis(self) -> None:
        """Empty Redis and kill it with SIGKILL, so that every message, lease and counter is lost."""
        with redis.Redis.from_url(self._redis.urls["CACHE_URL"]) as client:
            client.flushall()
        self._end(self._redis, signal.SIGKILL)

    def restart(self) -> None:
        """Start each server that does not run, with its old port and data."""
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
