"""`make demo` and `make run`: a whole KASOKO on this machine, with a simulator in the place of M-Pesa.

    python -m api.demo           tell the story of a market from stakes to payouts (demo_story.py), prove it, stop
    python -m api.demo --stay    the same stack with something to look at in it, until Ctrl-C

Exit status: 0 only if the books close, the provider's book agrees with ours and every winner has exactly their
dividend; 1 with the first difference, or with what could not be started; 130 when interrupted.

It runs on this checkout's own PostgreSQL and Redis, or on those that DATABASE_URL and CELERY_BROKER_URL name in the
environment; a developer's `.env` and other exported settings play no part. What it writes (logs, pids, the simulator's
book) goes to `.kasoko/`, or to KASOKO_DEMO_DIR.
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
from api.embedded import EmbeddedServerError

# Quicker than the defaults, so that nobody waits for what M-Pesa does slowly; slow enough to see payouts go out.
PACE = {
    "PAYOUT_TPS": "3",
    "PAYOUT_QUERY_AFTER": "3",
    "PAYOUT_QUERY_GAP": "3",
    "PAYOUT_RETRY_AFTER": "2",
    "SWEEP_EVERY_SECONDS": "1",
}


class CannotRun(Exception):
    """The demo must not or cannot run here; the message says why and what to do."""


def main(arguments: Sequence[str]) -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m api.demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stay", action="store_true", help="leave everything running until Ctrl-C")
    stay = parser.parse_args(arguments).stay
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console(highlight=False)
    try:
        return _run(console, stay=stay)
    except supervisor.Interrupted as interrupted:
        console.print(f"Stopped by {interrupted}.")
        return 0 if stay else 128 + interrupted.signal_number
    except (
        CannotRun,
        supervisor.StackError,
        EmbeddedServerError,
        ImproperlyConfigured,
        DatabaseError,
        OSError,
    ) as error:
        console.print(str(error), style="red", markup=False)
        return 1


def _run(console: Console, *, stay: bool) -> int:
    if os.environ.get("MPESA_PRODUCTION", "").lower() in {"true", "1", "yes", "on"}:
        raise CannotRun("MPESA_PRODUCTION is set in this shell: the demo pays with play money and must not meet it.")
    supervisor.isolate(os.environ)
    state = Path(os.environ.get("KASOKO_DEMO_DIR") or supervisor.BASE_DIR / ".kasoko").resolve()
    web_port, simulator_port = supervisor.free_port(preferred=8000), supervisor.free_port()
    web, simulator = f"http://{supervisor.HOST}:{web_port}", f"http://{supervisor.HOST}:{simulator_port}"
    os.environ.update(
        PACE,
        DJANGO_SETTINGS_MODULE="api.settings",
        MPESA_PRODUCTION="False",
        # The demo's operator logs in with a PIN alone; an app may be set up all the same.
        STAFF_TOTP="False",
        MPESA_BASE_URL=simulator,
        MPESA_CALLBACK_URL=f"{web}/api/payments/b2c-callback/",
    )
    with supervisor.Stack(state, say=lambda line: console.print(f"  ! {line}", style="yellow")) as running:
        lock = _only_one(state)
        console.print("Starting PostgreSQL, Redis, the M-Pesa simulator, web, worker and beat", style="bold")
        # From here on the settings are read, which starts the embedded servers where none are given.
        django.setup()
        call_command("migrate", verbosity=0)
        _no_other_worker(running)
        # Models can be imported only now, and the story uses them.
        from api.demo import story as demo_story

        book = state / "demo" / f"book-{_database_identity()}.jsonl"
        story = demo_story.Story(console=console, running=running, web=web, simulator=simulator, state=state, book=book)
        programs = supervisor.programs(
            state=state,
            web_port=web_port,
            simulator_port=simulator_port,
            book=book,
            phone_faults=story.faults(),
        )
        running.start(*programs)
        console.print(f"  web {web} · simulator {simulator} · logs {state / 'logs'}\n", style="dim", soft_wrap=True)
        status = story.stay() if stay else story.tell()
        os.close(lock)
    return status


def _only_one(state: Path) -> int:
    """Hold the lock of the state directory until this ends: two simulators cannot write one book."""
    (state / "demo").mkdir(mode=0o700, exist_ok=True)
    lock = os.open(state / "demo" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise CannotRun("A `make demo` or `make run` of this checkout is running already; stop it first.") from None
    return lock


def _no_other_worker(running: supervisor.Stack) -> None:
    """Refuse to share the queue: another worker would send the demo's payouts to an M-Pesa of its own.

    The worker of a run that was killed a moment ago is given time to end.
    """
    others: list[str] = []

    def none_answers() -> bool:
        others[:] = [name for answer in celery_app.control.ping(timeout=0.5) for name in answer]
        return not others

    try:
        running.until(none_answers, what="other workers to end", seconds=15)
    except supervisor.StackError:
        raise CannotRun(f"Another Celery worker uses the same Redis ({', '.join(others)}); stop it first.") from None


def _database_identity() -> str:
    """What tells this database from any other, so that each has a provider's book of its own."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT system_identifier || '-' || oid FROM pg_control_system(), pg_database"
            " WHERE datname = current_database()"
        )
        (identity,) = cursor.fetchone()
    return str(identity)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
