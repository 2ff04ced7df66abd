"""The project's real processes for the journeys: web, worker with beat, and the simulator, on a database of their own.

They are started by the guide's commands, wait for each other on conditions, and are gone at the end, also on failure.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import psycopg2
import redis
import requests

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 90.0
OPERATOR, PIN = "254700000001", "1234"
QUEUES = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")
Json = dict[str, Any]


def until(holds: Callable[[], Any], what: str, tail: Callable[[], str] = str) -> Any:
    """Wait until something holds, and return it; `tail` gives the end of a log for the failure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        if time.monotonic() > deadline:  # No assert: the soak uses this, and python -O skips those.
            raise AssertionError(f"Waited in vain for {what}.\n{tail()}")
        time.sleep(0.05)
    return found


class Running:
    """One installation under test. `environment` is what its processes get."""

    def __init__(self, directory: Path, database_url: str, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._session = requests.Session()
        self._session.trust_env = False
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.simulator_url = ""
        self.environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | {
            "DATABASE_URL": database_url,
            "MPESA_CALLBACK_URL": f"{self.url}/api/payments/b2c-callback/",
            **settings,
        }

    # --- processes

    def start_simulator(self, *options: str) -> None:
        url_file = self.directory / "simulator.url"
        url_file.unlink(missing_ok=True)
        book = str(self.directory / "book.jsonl")
        command = [sys.executable, "manage.py", "daraja_sandbox", "--url-file", str(url_file), "--book", book]
        self._start("simulator", [*command, *options])
        until(url_file.exists, "the simulator", lambda: self.log("simulator"))
        self.simulator_url = self.environment["MPESA_BASE_URL"] = url_file.read_text().strip()

    def start_web(self) -> None:
        self._start_web("web", self.url)

    def start_second_web(self) -> str:
        """A second web process beside the first, as on a second host; its URL."""
        url = f"http://127.0.0.1:{_free_port()}"
        self._start_web("second web", url)
        return url

    def _start_web(self, name: str, url: str) -> None:
        command = [sys.executable, "-m", "gunicorn", "api.wsgi", "--bind", urlsplit(url).netloc, "--threads", "4"]
        self._start(name, [*command, "--no-control-socket"])
        until(lambda: self._web_is_ready(url), f"the {name} process", lambda: self.log(name))

    def start_worker(self) -> None:
        """The guide's worker of part 3.2, with beat inside."""
        self._start_worker("worker", "-B", "-s", str(self.directory / "beat-schedule"))

    def start_second_worker(self) -> None:
        """A second worker beside the first, as on a second host; there is one beat."""
        self._start_worker("second worker", "-n", "second@%h")

    def _start_worker(self, name: str, *options: str) -> None:
        started = self.log(name).count(" ready.")
        command = [sys.executable, "-m", "celery", "-A", "api", "worker", "-l", "info", "--concurrency=1"]
        self._start(name, [*command, *options])
        until(lambda: self.log(name).count(" ready.") > started, f"the {name}", lambda: self.log(name))

    def kill(self, name: str) -> None:
        """kill -9 a process and everything it has started, at once."""
        child = self._children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_SECONDS)

    def stop(self, name: str) -> None:
        """Ask a process to end, and see to it that nothing of its group is left."""
        child = self._children.pop(name)
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait(PATIENCE_SECONDS)

    def stop_all(self) -> None:
        for name in list(self._children):
            self.stop(name)
        self._session.close()

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def _start(self, name: str, command: list[str]) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _web_is_ready(self, url: str) -> bool:
        try:
            return self._session.get(f"{url}/readyz", timeout=5).status_code == 200
        except (requests.ConnectionError, requests.Timeout):  # It listens before the application is loaded.
            return False

    # --- what people do

    def manage(self, *words: str, typed: str = "", **environment: str) -> str:
        """Run `python manage.py …` to its end and return what it printed; anything but exit 0 fails the test."""
        ended = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=ROOT,
            env=self.environment | environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if ended.returncode != 0:
            raise AssertionError(ended.stdout + ended.stderr)
        return ended.stdout

    def log_in(self) -> None:
        """Make the operator, and use their token from now on."""
        words = ("createsuperuser", "--noinput", "--phone_number", OPERATOR, "--full_name", "Operator")
        self.manage(*words, DJANGO_SUPERUSER_PASSWORD=PIN)
        answered = self.post("/api/users/login/", {"phone_number": OPERATOR, "pin": PIN})
        self._session.headers["Authorization"] = f"Bearer {answered.json()['token']}"

    def post(self, path: str, body: Json, url: str = "") -> requests.Response:
        """POST to the web process, or to the one at `url`."""
        return self._session.post(f"{url or self.url}{path}", json=body, timeout=PATIENCE_SECONDS)

    def get(self, path: str) -> requests.Response:
        return self._session.get(f"{self.url}{path}", timeout=PATIENCE_SECONDS)

    def status(self, market_id: int) -> Json:
        answered = self.get(f"/api/markets/admin/settlement-status/{market_id}/")
        if answered.status_code != 200:
            raise AssertionError(answered.text)
        return answered.json()

    def book(self) -> Json:
        """What the provider says it did."""
        return self._session.get(f"{self.simulator_url}/sandbox/book", timeout=PATIENCE_SECONDS).json()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return _sql(self.environment["DATABASE_URL"], statement)


def _sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def _free_port() -> int:
    # Below the range that outgoing connections are given, so that none of them takes it before our server does.
    for port in (15_000 + secrets.randbelow(15_000) for _ in range(100)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No free port was found.")


def _database(url: str, name: str) -> SplitResult:
    return urlsplit(url)._replace(path=f"/{name}")


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[Running]:
    """A migrated database, empty queues, and no process yet; all of it is gone afterwards."""
    name = f"kasoko_journey_{os.getpid()}"
    server = _database(os.environ["DATABASE_URL"], "postgres").geturl()
    _sql(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    _sql(server, f"CREATE DATABASE {name}")
    _empty_queues()
    place = Running(directory, _database(os.environ["DATABASE_URL"], name).geturl(), settings)
    try:
        place.manage("migrate", "--verbosity", "0")
        yield place
    finally:
        place.stop_all()
        _sql(server, f"DROP DATABASE {name} WITH (FORCE)")
        _empty_queues()


def _empty_queues() -> None:
    for variable in QUEUES:
        with redis.Redis.from_url(os.environ[variable]) as client:
            client.flushdb()
