"""Time from the resolution of a market to its payments, with real processes.

The simulator of M-Pesa answers a request after 0.3 s, and posts its result 0.3 s later.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import django
import requests

from bench.burst import free_port, operator_of, processes, wait_for
from bench.figures import Measured, Row, at_most, hand_over
from testing.figures import Progress
from testing.parts import ROOT

LATENCY = "0.3"
WINNERS = 1_000
PATIENCE_SECONDS = 240


def main(arguments: list[str]) -> None:
    """Measure small markets and one large market, and report the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args(arguments).full
    django.setup()
    from bench import winners

    per_second = 100
    times = 5 if full else 3
    small = [winners.market_to_resolve(3).pk for _ in range(times)]
    large = winners.market_to_resolve(WINNERS).pk
    progress = Progress("resolve_to_paid", WINNERS, every_seconds=5)
    with TemporaryDirectory() as directory:
        port, url_file = free_port(), Path(directory) / "simulator.url"
        url = f"http://127.0.0.1:{port}"
        settings = {
            "MPESA_CALLBACK_URL": f"{url}/api/payments/b2c-callback/",
            "PAYOUT_TPS": str(per_second),
        }
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
            settings["MPESA_BASE_URL"] = url_file.read_text().strip()
            with processes(port, Path(directory), **settings):
                wait_for(url)
                headers = operator_of(url)
                firsts = sorted(first_and_last(url, headers, market, 1, progress)[0] for market in small)
                first, last = first_and_last(url, headers, large, WINNERS, progress)
        finally:
            simulator.terminate()
            simulator.wait(20)
    middle = firsts[len(firsts) // 2]
    bound = WINNERS / per_second + 5
    met, stretched = at_most(middle, 2, 1)
    in_time, _ = at_most(last, bound, bound)
    hand_over(
        Measured(
            [
                Row(
                    "R1", "time from the resolution until the first payout is COMPLETED", f"{middle:.2f} s",
                    f"the simulator takes {2 * float(LATENCY):.1f} s", middle / (2 * float(LATENCY)), "≤ 2 s", "≤ 1 s",
                    met, stretched, f"{first:.2f} s on a market with {WINNERS:,} winners",
                ),
                Row(
                    "R1", f"time until all {WINNERS:,} payouts are COMPLETED, at most {per_second}/s allowed",
                    f"{last:.1f} s",
                    f"{WINNERS / per_second:.1f} s at the allowed pace", last / (WINNERS / per_second),
                    f"≤ {bound:.0f} s", met=in_time,
                ),
            ]
        )
    )  # fmt: skip


def first_and_last(
    url: str, headers: dict[str, str], market_id: int, count: int, progress: Progress
) -> tuple[float, float]:
    """Resolve a market. Return the seconds until one payout is COMPLETED, and until `count` payouts are COMPLETED."""
    from payments.models import Transaction

    paid = Transaction.objects.filter(settlement__market=market_id, destination="mpesa", status="COMPLETED")
    began = time.monotonic()
    response = requests.post(
        f"{url}/api/markets/admin/resolve/",
        json={"market_id": market_id, "outcome": "Yes"},
        headers=headers,
        timeout=30,
    )
    if response.status_code != 200:
        raise AssertionError(f"The resolve request got status {response.status_code}")
    first, done = 0.0, 0
    while done < count:
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise AssertionError(f"{done} of {count} payouts were paid after {PATIENCE_SECONDS} s")
        done = paid.count()
        if done and not first:
            first = time.monotonic() - began
        progress.at(done)
        time.sleep(0.02)
    return first, time.monotonic() - began


if __name__ == "__main__":
    main(sys.argv[1:])
