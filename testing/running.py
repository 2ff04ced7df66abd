"""Real processes of the project for end-to-end tests ("journeys"): web, worker with beat, and simulator.

They have their own database. The processes are started with the guide's commands. A start waits until its process is
ready. All processes are stopped at the end, also after a failure.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import psycopg2
import redis
import requests

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 300.0
CELERY = (sys.executable, "-m", "celery", "-A", "api")
OPERATOR, PIN = "254700000001", "1234"
REDIS_VARIABLES = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")
Json = dict[str, Any]


def until(holds: Callable[[], Any], what: str, tail: Callable[[], str] = str) -> Any:
    """Wait until `holds()` returns a true value, and return that value.

    If the wait takes too long, the error names `what` and shows the log that `tail` returns.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := holds()):
        if time.monotonic() > deadline:
            # We raise instead of using `assert`, which `python -O` removes in the soak.
            raise AssertionError(f"Waited {PATIENCE_SECONDS:.0f} seconds for {what}, without success.\n{tail()}")
        time.sleep(0.05)
    return result


class Running:
    """An installation under test. `environment` is the environment of its processes."""

    def __init__(self, directory: Path, database_url: str, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._session = requests.Session()
        self._session.trust_env = False
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.simulator_url = ""
        self.environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | {
            **logins(database_url),
            "MPESA_CALLBACK_URL": f"{self.url}/api/payments/b2c-callback/",
            **settings,
        }

    # --- processes

    def start_simulator(self, *options: str) -> None:
        """Start the simulator and wait until it answers."""
        url_file = self.directory / "simulator.url"
        url_file.unlink(missing_ok=True)
        book = str(self.directory / "book.jsonl")
        command = [sys.executable, "manage.py", "daraja_sandbox", "--url-file", str(url_file), "--book", book]
        self._start("simulator", [*command, *options])
        until(url_file.exists, "the simulator", lambda: self.log("simulator"))
        self.simulator_url = self.environment["MPESA_BASE_URL"] = url_file.read_text().strip()

    def start_web(self) -> None:
        """Start the web process and wait until it is ready."""
        self._start_web("web", self.url)

    def start_web_and_worker(self) -> None:
        """Start the web process and the guide's worker at the same time, because this is faster."""
        self._launch_web("web", self.url)
        self.start_worker()
        self._await_web("web", self.url)

    def start_second_web(self) -> str:
        """Start a second web process, as on a second host, and return its URL."""
        url = f"http://127.0.0.1:{free_port()}"
        self._start_web("second web", url)
        return url

    def _start_web(self, name: str, url: str) -> None:
        self._launch_web(name, url)
        self._await_web(name, url)

    def _launch_web(self, name: str, url: str) -> None:
        command = [sys.executable, "-m", "gunicorn", "api.wsgi", "--bind", urlsplit(url).netloc, "--threads", "4"]
        self._start(name, [*command, "--no-control-socket"])

    def _await_web(self, name: str, url: str) -> None:
        until(lambda: self._web_is_ready(url), f"the {name} process", lambda: self.log(name))

    def start_worker(self) -> None:
        """Start the worker of the guide's part 3.2, with beat inside."""
        self._start_worker("worker", "-B", "-s", str(self.directory / "beat-schedule"))

    def start_second_worker(self) -> None:
        """Start a second worker without beat, as on a second host."""
        self._start_worker("second worker", "-n", "second@%h")

    def _start_worker(self, name: str, *options: str) -> None:
        started = self.log(name).count(" ready.")
        self._start(name, [*CELERY, "worker", "-l", "info", "--concurrency=1", *options])
        until(lambda: self.log(name).count(" ready.") > started, f"the {name}", lambda: self.log(name))

    def start_events(self) -> None:
        """Start the event monitor of the guide's part 3.4. It prints the events, because a test has no terminal."""
        self._start("events", [*CELERY, "events", "--loglevel=info", "--dump"])
        until(lambda: "starting capture" in self.log("events"), "the event monitor", lambda: self.log("events"))

    def start_flower(self) -> str:
        """Start the Flower of the guide's part 3.4 and return its URL."""
        url = f"http://127.0.0.1:{free_port()}"
        self._start("flower", [*CELERY, "flower", "--address=127.0.0.1", f"--port={urlsplit(url).port}"])
        until(lambda: self._answers(url), "Flower", lambda: self.log("flower"))
        return url

    def kill(self, name: str) -> None:
        """Kill a process and all processes that it started, with SIGKILL."""
        child = self._children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_SECONDS)

    def stop(self, name: str) -> None:
        """Ask a process to end. Then kill what is left of its process group."""
        child = self._children.pop(name)
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_SECONDS)

    def stop_all(self) -> None:
        """Ask all processes to end at the same time. Then kill what is left of their process groups."""
        for child in self._children.values():
            child.terminate()
        for name in list(self._children):
            self.stop(name)
        self._session.close()

    def log(self, name: str) -> str:
        """Return the output of a process so far."""
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def _start(self, name: str, command: list[str]) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment_of("application"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment_of(self, command: str) -> dict[str, str]:
        """Return the environment of a process. Only the commands of the owner know the owner's login."""
        hidden = () if command in ("migrate", "database_roles", "erase_member") else ("DATABASE_OWNER_URL",)
        return {name: value for name, value in self.environment.items() if name not in hidden}

    def _web_is_ready(self, url: str) -> bool:
        return self._answers(f"{url}/readyz")

    def _answers(self, url: str) -> bool:
        try:
            return self._session.get(url, timeout=5).status_code == 200
        except (requests.ConnectionError, requests.Timeout):  # A process may listen before its application is loaded.
            return False

    # --- people's calls and commands

    def manage(self, *words: str, typed: str = "", **environment: str) -> str:
        """Run `python manage.py …` to its end and return its output. An exit status other than 0 fails the test."""
        finished = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=ROOT,
            env=self._environment_of(words[0]) | environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if finished.returncode != 0:
            raise AssertionError(finished.stdout + finished.stderr)
        return finished.stdout

    def log_in(self) -> None:
        """Create an operator, and send the operator's token with all later calls."""
        words = ("createsuperuser", "--noinput", "--phone_number", OPERATOR, "--full_name", "Operator")
        self.manage(*words, DJANGO_SUPERUSER_PASSWORD=PIN)
        login = self.post("/api/users/login/", {"phone_number": OPERATOR, "pin": PIN})
        self._session.headers["Authorization"] = f"Bearer {login.json()['token']}"

    def post(self, path: str, body: Json, url: str = "") -> requests.Response:
        """POST to the web process, or to the web process at `url`."""
        return self._session.post(f"{url or self.url}{path}", json=body, timeout=PATIENCE_SECONDS)

    def get(self, path: str) -> requests.Response:
        """GET from the web process."""
        return self._session.get(f"{self.url}{path}", timeout=PATIENCE_SECONDS)

    def status(self, market_id: int) -> Json:
        """Return the settlement status of a market."""
        answer = self.get(f"/api/markets/admin/settlement-status/{market_id}/")
        if answer.status_code != 200:
            raise AssertionError(answer.text)
        return answer.json()

    def book(self) -> Json:
        """Return the simulator's record of its payments (the book)."""
        return self._session.get(f"{self.simulator_url}/sandbox/book", timeout=PATIENCE_SECONDS).json()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement on the database as its owner, and return its rows."""
        return _sql(self.owner_url, statement)

    @property
    def owner_url(self) -> str:
        """The URL by which the owner of the tables logs in."""
        return self.environment.get("DATABASE_OWNER_URL") or self.environment["DATABASE_URL"]


def logins(database_url: str) -> dict[str, str]:
    """Return the settings of a test database, given its owner's URL: the logins of the application and of the owner."""
    application = os.environ.get("KASOKO_TEST_APPLICATION_URL")
    if not application:
        return {"DATABASE_URL": database_url}
    application_url = urlsplit(application)._replace(path=urlsplit(database_url).path).geturl()
    return {"DATABASE_URL": application_url, "DATABASE_OWNER_URL": database_url}


def _sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def free_port() -> int:
    # The ports are below the range of outgoing connections, so no such connection takes the port before our server.
    for port in (15_000 + secrets.randbelow(15_000) for _ in range(100)):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No free port was found.")


def _database(url: str, name: str) -> SplitResult:
    return urlsplit(url)._replace(path=f"/{name}")


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[Running]:
    """Create and migrate a database, and empty the queues. Start no process. Remove everything at the end."""
    name = f"kasoko_journey_{os.getpid()}"
    server = _database(os.environ["DATABASE_URL"], "postgres").geturl()
    _sql(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    _sql(server, f"CREATE DATABASE {name}")
    _empty_queues()
    installation = Running(directory, _database(os.environ["DATABASE_URL"], name).geturl(), settings)
    try:
        installation.manage("migrate", "--verbosity", "0")
        yield installation
    finally:
        installation.stop_all()
        _sql(server, f"DROP DATABASE {name} WITH (FORCE)")
        _empty_queues()


def _empty_queues() -> None:
    for variable in REDIS_VARIABLES:
        with redis.Redis.from_url(os.environ[variable]) as client:
            client.flushdb()
