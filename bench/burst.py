"""Burst of a hundred markets, resolved at once over HTTP and settled by one worker."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import django
import requests

from bench.figures import Measured, Row, hand_over
from testing.figures import Progress
from testing.parts import ROOT

MARKETS, BETS = 100, 100
PATIENCE_SECONDS = 180
PHONE, PIN = "254799000001", "1234"


@contextmanager
def processes(port: int, directory: Path, **settings: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start a web process and a worker that includes beat, and stop both processes at the end."""
    environment = os.environ | settings
    commands = {
        "web": ["gunicorn", "api.wsgi", "--bind", f"127.0.0.1:{port}", "--threads", "16", "--backlog", "512"],
        "worker": [
            "celery", "-A", "api", "worker", "-l", "warning", "--concurrency=1", "-B", "-s", str(directory / "beat"),
        ],
    }  # fmt: skip
    started = {}
    try:
        for name, command in commands.items():
            with (directory / f"{name}.log").open("wb") as log:
                started[name] = subprocess.Popen(
                    [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=log
                )
        yield started
    finally:
        for child in started.values():
            child.terminate()
        for child in started.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


def wait_for(url: str) -> None:
    """Wait until the web process is ready. Raises: AssertionError, after 60 seconds."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            pass
        time.sleep(0.1)
    raise AssertionError("The web process was not ready after 60 seconds")


def free_port() -> int:
    """Return a port on which nothing listens."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def operator_of(url: str) -> dict[str, str]:
    """Create a member of staff, log in, and return the headers that authenticate their calls."""
    from users.models import CustomUser

    CustomUser.objects.create_user(phone_number=PHONE, full_name="Operator", pin=PIN, is_staff=True, is_superuser=True)
    answered = requests.post(f"{url}/api/users/login/", json={"phone_number": PHONE, "pin": PIN}, timeout=30)
    return {"Authorization": f"Bearer {answered.json()['token']}"}


def main(arguments: list[str]) -> None:
    """Resolve all markets at once, wait until they are settled, and report the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.parse_args(arguments)
    django.setup()
    from bench import winners
    from payments.models import Settlement, Transaction

    progress = Progress("burst", MARKETS, every_seconds=5)
    markets = [winners.market_to_resolve(BETS).pk for _ in range(MARKETS)]
    url = f"http://127.0.0.1:{(port := free_port())}"
    with TemporaryDirectory() as directory, processes(port, Path(directory), PAYOUTS_PAUSED="True"):
        wait_for(url)
        headers = operator_of(url)

        def resolve(market_id: int) -> tuple[int, float]:
            began = time.monotonic()
            answered = requests.post(
                f"{url}/api/markets/admin/resolve/",
                json={"market_id": market_id, "outcome": "Yes"},
                headers=headers,
                timeout=PATIENCE_SECONDS,
            )
            return answered.status_code, time.monotonic() - began

        began = time.monotonic()
        with ThreadPoolExecutor(MARKETS) as threads:
            answers = list(threads.map(resolve, markets))
        resolved = time.monotonic() - began
        settled = 0
        while settled < MARKETS and time.monotonic() - began < PATIENCE_SECONDS:
            settled = Settlement.objects.filter(state="SETTLED").count()
            progress.at(settled)
            time.sleep(0.05)
        took = time.monotonic() - began
    from payments.ledger import invariants

    differences = invariants.differences()
    twice = Settlement.objects.count() - MARKETS
    payouts = Transaction.objects.filter(type="PAYOUT").count()
    durations = sorted(seconds for _, seconds in answers)
    p99 = durations[int(len(durations) * 0.99) - 1]
    all_well = settled == MARKETS and twice == 0 and payouts == MARKETS * BETS and not differences
    all_well = all_well and all(status == 200 for status, _ in answers)
    hand_over(
        Measured(
            [
                Row(
                    "", f"{MARKETS} markets of {BETS} bets resolved at once by {MARKETS} threads over HTTP",
                    f"settled after {took:.1f} s, {MARKETS * BETS / took:,.0f} bets/s", must="all settled, none twice",
                    met=all_well, how_far=f"{settled} settled, {twice} twice, {payouts} payouts, books balance",
                ),
                Row(
                    "", "response to one of these resolves", f"p99 {p99 * 1e3:.0f} ms",
                    how_far=f"median {statistics.median(durations) * 1e3:.0f} ms; the last after {resolved:.1f} s",
                ),
            ]
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
