"""`make demo` and `make run`: a whole KASOKO on this machine, with a simulator instead of M-Pesa.

    python -m api.demo           run one market from bets to payouts (story.py), check the books, and stop
    python -m api.demo --stay    start the same programs, make a market to look at, and run until Ctrl-C

Exit status:
0 if every invariant holds, the simulator's book agrees with ours, and every winner has exactly their dividend;
1 with the first difference, or with the reason why the demo could not start;
128 plus the number of the signal if it was interrupted (130 for Ctrl-C), but 0 with --stay.

The demo runs on this checkout's own PostgreSQL and Redis, or on the servers that DATABASE_URL and CELERY_BROKER_URL
name in the environment. It ignores a developer's `.env` and other exported settings. Its files (logs, pids, the
simulator's book) go to `.kasoko/`, or to KASOKO_DEMO_DIR.
"""

import argparse
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, connection
from rich.console import Console

from api.celery import app as celery_app
from api.demo import supervisor
from api.demo.screen import Screen
from api.embedded import EmbeddedServerError

# The waits are shorter than the defaults, so that queries and retries come soon. The rate of payouts is lower, so that
# one can see payouts leave.
PACE = {
    "PAYOUT_TPS": "3",
    "PAYOUT_QUERY_AFTER": "3",
    "PAYOUT_QUERY_GAP": "3",
    "PAYOUT_RETRY_AFTER": "2",
    "SWEEP_EVERY_SECONDS": "1",
}


class CannotRun(Exception):
    """The demo must not or cannot run here. The message gives the reason and the remedy."""


def main(arguments: Sequence[str]) -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m api.demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stay", action="store_true", help="leave everything running until Ctrl-C")
    stay = parser.parse_args(arguments).stay
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    screen = Screen(Console(highlight=False))
    try:
        return _run(screen, stay=stay)
    except supervisor.Interrupted as interrupted:
        screen.plain(f"Stopped by {interrupted}.")
        return 0 if stay else 128 + interrupted.signal_number
    except (
        CannotRun,
        supervisor.StackError,
        EmbeddedServerError,
        ImproperlyConfigured,
        DatabaseError,
        OSError,
    ) as error:
        screen.console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1


def _run(screen: Screen, *, stay: bool) -> int:
    if os.environ.get("MPESA_PRODUCTION", "").lower() in {"true", "1", "yes", "on"}:
        raise CannotRun(
            "MPESA_PRODUCTION is set in this shell. The demo uses play money only. Unset MPESA_PRODUCTION first."
        )
    supervisor.isolate(os.environ)
    state = Path(os.environ.get("KASOKO_DEMO_DIR") or supervisor.BASE_DIR / ".kasoko").resolve()
    web_port, simulator_port = supervisor.free_port(preferred=8000), supervisor.free_port()
    web, simulator = f"http://{supervisor.HOST}:{web_port}", f"http://{supervisor.HOST}:{simulator_port}"
    os.environ.update(
        PACE,
        DJANGO_SETTINGS_MODULE="api.settings",
        MPESA_PRODUCTION="False",
        # The demo's operator logs in with a PIN alone, but may set up an authenticator app.
        STAFF_TOTP="False",
        MPESA_BASE_URL=simulator,
        MPESA_CALLBACK_URL=f"{web}/api/payments/b2c-callback/",
    )
    with supervisor.Stack(state, say=lambda line: screen.say(f"! {line}", "yellow")) as running:
        lock = _lock_state_directory(state, web)
        screen.step("Starting PostgreSQL, Redis, the M-Pesa simulator, web, worker and beat")
        # This reads the settings. They start the embedded servers if no servers are given.
        django.setup()
        call_command("migrate", verbosity=0)
        # The programs log in as the application's role. They do not get the owner's login.
        os.environ.pop("DATABASE_OWNER_URL", None)
        _refuse_other_workers(running)
        # The story imports models, which is possible only now.
        from api.demo.story import Story

        book = state / "demo" / f"book-{_database_identity()}.jsonl"
        story = Story(screen=screen, running=running, web=web, simulator=simulator, state=state, book=book)
        programs = supervisor.programs(
            state=state,
            web_port=web_port,
            simulator_port=simulator_port,
            book=book,
            phone_faults=story.cast.faults(),
        )
        running.start(*programs)
        for name, address in (("web", web), ("simulator", simulator), ("logs", str(state / "logs"))):
            screen.say(f"{name:<10} {address}", "dim")
        status = story.stay() if stay else story.tell()
        os.close(lock)
    return status


def _lock_state_directory(state: Path, web: str) -> int:
    """Lock the state directory until this process ends, because two simulators cannot write one book.

    The lock file has the address of the web process. Raises: CannotRun, with that address, if the lock is taken.
    """
    (state / "demo").mkdir(mode=0o700, exist_ok=True)
    path = state / "demo" / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        running_web = path.read_text().strip()
        raise CannotRun(
            f"This checkout's `make demo` or `make run` is running already: {running_web}/admin/\n"
            "Use it, or stop it with Ctrl-C in its terminal."
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{web}\n".encode(), 0)
    return lock


def _refuse_other_workers(running: supervisor.Stack) -> None:
    """Refuse to share the queue, because another worker would send the demo's payouts to another M-Pesa.

    The worker of a run that was just killed gets time to end.
    """
    others: list[str] = []

    def none_answers() -> bool:
        others[:] = [name for answer in celery_app.control.ping(timeout=0.5) for name in answer]
        return not others

    try:
        running.until(none_answers, what="other workers to end", seconds=15)
    except supervisor.StackError:
        raise CannotRun(f"Another Celery worker uses the same Redis ({', '.join(others)}). Stop it first.") from None


def _database_identity() -> str:
    """Return a name that only this database has, so that each database has its own book of the provider."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT system_identifier || '-' || oid FROM pg_control_system(), pg_database"
            " WHERE datname = current_database()"
        )
        (identity,) = cursor.fetchone()
    return str(identity)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
