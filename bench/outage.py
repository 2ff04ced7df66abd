"""Requests that leave in an outage of M-Pesa in the middle of a release, with real processes.

From one moment on, the simulator holds every request and answers none. After the outage it answers again, and each
winner must be paid once.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django
import requests

from bench.burst import free_port, operator_of, processes, wait_for
from bench.figures import Measured, Row, at_most, hand_over
from testing.figures import Progress
from testing.parts import ROOT

LATENCY = "0.05"
PER_SECOND, WINNERS, BEFORE = 30, 600, 150
OUTAGE_SECONDS = 45
PATIENCE_SECONDS = 240


def main(arguments: list[str]) -> None:
    """Measure one outage, and report the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.parse_args(arguments)
    django.setup()
    from bench import winners
    from payments.models import Transaction

    market_id = winners.market_to_resolve(WINNERS).pk
    paid = Transaction.objects.filter(settlement__market=market_id, destination="mpesa", status="COMPLETED")
    progress = Progress("outage", WINNERS, every_seconds=5)
    with TemporaryDirectory() as directory:
        port, url_file = free_port(), Path(directory) / "simulator.url"
        url = f"http://127.0.0.1:{port}"
        settings = {"MPESA_CALLBACK_URL": f"{url}/api/payments/b2c-callback/", "PAYOUT_TPS": str(PER_SECOND)}
        simulator = subprocess.Popen(
            [
                sys.executable, "manage.py", "daraja_sandbox", "--url-file", str(url_file), "--latency", LATENCY,
                "--callback-delay", LATENCY,
            ],
            cwd=ROOT, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not url_file.exists():
                time.sleep(0.05)
            mpesa = settings["MPESA_BASE_URL"] = url_file.read_text().strip()
            with processes(port, Path(directory), **settings):
                wait_for(url)
                headers, body = operator_of(url), {"market_id": market_id, "outcome": "Yes"}
                requests.post(
                    f"{url}/api/markets/admin/resolve/", json=body, headers=headers, timeout=30
                ).raise_for_status()
                wait_until(paid.count, BEFORE, progress)
                set_outage(mpesa, "silent")
                time.sleep(OUTAGE_SECONDS)
                left = requests.get(f"{mpesa}/sandbox/outage", timeout=30).json()["arrived"]
                set_outage(mpesa, None)
                ended = time.monotonic()
                wait_until(paid.count, WINNERS, progress)
                after = time.monotonic() - ended
                book = requests.get(f"{mpesa}/sandbox/book?payments=0", timeout=30).json()
        finally:
            simulator.terminate()
            simulator.wait(20)
    met, stretched = at_most(left, 90, 50)
    paid_once = book["totals"]["paid_count"] == WINNERS and not book["double_paid"]
    hand_over(
        Measured(
            [
                Row(
                    "O1", f"requests that leave in an outage of {OUTAGE_SECONDS} s at {PER_SECOND}/s", f"{left}",
                    f"{OUTAGE_SECONDS * PER_SECOND:,} at the pace", left / (OUTAGE_SECONDS * PER_SECOND), "≤ 90",
                    "≤ 50", met, stretched, f"M-Pesa usually answers after {float(LATENCY) * 1e3:.0f} ms",
                ),
                Row(
                    "O1", f"time from the end of the outage until all {WINNERS:,} payouts are COMPLETED",
                    f"{after:.1f} s", must="each winner paid once", met=paid_once,
                    how_far=f"{book['totals']['paid_count']} paid, {len(book['double_paid'])} twice",
                ),
            ]
        )
    )  # fmt: skip


def set_outage(mpesa: str, kind: str | None) -> None:
    """Begin an outage of the simulator, or end it."""
    requests.post(f"{mpesa}/sandbox/outage", json={"kind": kind}, timeout=30).raise_for_status()


def wait_until(count: Callable[[], Any], enough: int, progress: Progress) -> None:
    """Wait until `count` returns `enough`. Raises: AssertionError, after PATIENCE_SECONDS."""
    began = time.monotonic()
    while (done := count()) < enough:
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise AssertionError(f"{done} of {enough} payouts were paid after {PATIENCE_SECONDS} s")
        progress.at(done)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
