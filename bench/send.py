"""Cost of sending payouts: the dispatcher compared with bare clients without books.

A stub on loopback answers after a latency and remembers the time of each request. A rate counts only the requests
that arrive after the first wave, because the first wave only fills the free slots.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import django
import requests

from bench.figures import Line, Measured, Row, alternated, at_least, at_most, hand_over, median_ratio
from testing.figures import Progress
from testing.parts import ROOT

IN_FLIGHT = 400
UNCAPPED = "10000"
PATH = "/mpesa/b2c/v3/paymentrequest"
PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Run:
    """Run of a client: requests a second, CPU seconds a request, and the time of each arrival."""

    rate: float
    cpu: float
    arrivals: list[float]


@contextmanager
def stub() -> Iterator[str]:
    """Start the stub, yield its address, and stop it at the end.

    The stub ends when its standard input is closed, so it also ends if this process is killed.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.stub"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if child.stdout is None or child.stdin is None:
            raise AssertionError("The stub has no pipes.")
        yield child.stdout.readline().strip()
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        child.wait(10)


def clients(url: str, latency: float, wave: int, commands: list[list[str]], **settings: str) -> Run:
    """Run the clients at the same time against the stub, and return one Run for all. Raises: AssertionError."""
    requests.get(f"{url}/set?latency={latency}", timeout=10)
    environment = os.environ | {"MPESA_BASE_URL": url, "PAYOUT_CANARY": "off", "MPESA_TIMEOUT_SECONDS": "30"} | settings
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.clients", *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for command in commands
    ]
    costs = [json.loads(child.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()[-1]) for child in children]
    told: list[tuple[float, str]] = requests.get(f"{url}/told", timeout=30).json()
    made = sum(cost["requests"] for cost in costs)
    if len({name for _, name in told}) != len(told) or made != len(told):
        raise AssertionError(f"{made} requests were made; {len(told)} arrived, with {len({n for _, n in told})} ids.")
    arrivals = sorted(at for at, _ in told)
    rate = (len(arrivals) - (wave if latency else 1)) / (arrivals[-1] - arrivals[0])
    return Run(rate, sum(cost["cpu"] for cost in costs) / made, arrivals)


def most_in_a_second(arrivals: list[float]) -> int:
    """Return the largest number of arrivals in any window of one second."""
    return max(bisect_right(arrivals, at + 1.0 - 1e-9) - number for number, at in enumerate(arrivals))


class Bench:
    """Runs of clients against the stub, which also print the progress of the part."""

    def __init__(self, url: str, progress: Progress) -> None:
        self.url, self.progress, self.done = url, progress, 0

    def dispatcher(
        self, latency: float, count: int, *, in_flight: int = IN_FLIGHT, processes: int = 1, **more: str
    ) -> Run:
        """Send `count` due payouts with a dispatcher in each of `processes` processes. Raises: AssertionError."""
        from bench import winners
        from payments.models import Attempt

        settlement = winners.settlement_with_due_payouts(count)
        settings = {"PAYOUT_IN_FLIGHT": str(in_flight), "PAYOUT_TPS": UNCAPPED} | more
        commands = [["dispatcher", str(PATIENCE_SECONDS - 60)]] * processes
        run = clients(self.url, latency, in_flight * processes, commands, **settings)
        states = set(Attempt.objects.filter(settlement=settlement).values_list("state", flat=True))
        if len(run.arrivals) != count or states != {"ACCEPTED"}:
            raise AssertionError(f"{len(run.arrivals)} of {count} were sent; their attempts are {states}.")
        return self._did(run)

    def bare(self, which: str, latency: float, count: int, *, in_flight: int = IN_FLIGHT) -> Run:
        """Run a bare client: aiohttp or requests."""
        return self._did(clients(self.url, latency, in_flight, [[which, self.url + PATH, str(count), str(in_flight)]]))

    def _did(self, run: Run) -> Run:
        self.done += 1
        self.progress.at(self.done)
        return run


def side(runs: list[Run], call: Any) -> Any:
    """Return a function for one side of an alternation. It adds its run to `runs` and returns the run's rate."""

    def measure() -> float:
        runs.append(call())
        return runs[-1].rate

    return measure


def beside_bare_clients(bench: Bench, times: int, waves: int) -> tuple[list[Row], list[Line], list[str]]:
    """Compare the dispatcher with two bare clients at three latencies. Return rows, lines of a plot, and sentences."""
    rows, words = [], []
    points: dict[str, list[tuple[float, float]]] = {"dispatcher": [], "aiohttp": [], "requests": []}
    for latency in (0.0, 0.3, 1.0):
        count = IN_FLIGHT * waves
        by_client: dict[str, list[Run]] = {"dispatcher": [], "aiohttp": [], "requests": []}
        rates = alternated(
            {
                "dispatcher": side(by_client["dispatcher"], lambda: bench.dispatcher(latency, count)),  # noqa: B023 - called before `latency` changes
                "aiohttp": side(by_client["aiohttp"], lambda: bench.bare("aiohttp", latency, count)),  # noqa: B023
                "requests": side(by_client["requests"], lambda: bench.bare("requests", latency, count)),  # noqa: B023
            },
            times,
        )
        middle = {name: statistics.median(values) for name, values in rates.items()}
        cpu = {name: statistics.median(run.cpu for run in runs) for name, runs in by_client.items()}
        for name, rate in middle.items():
            points[name].append((max(latency, 0.01), rate))
        share = median_ratio([run.cpu for run in by_client["dispatcher"]], [run.cpu for run in by_client["aiohttp"]])
        met, stretched = at_most(share, 3, 1.3)
        rows.append(
            Row(
                "D3",
                f"CPU of a worker per payout, latency {latency:g} s",
                f"{cpu['dispatcher'] * 1e6:.0f} µs",
                f"bare aiohttp {cpu['aiohttp'] * 1e6:.0f} µs",
                share,
                "≤ 3",
                "≤ 1.3",
                met,
                stretched,
                f"the books take {(cpu['dispatcher'] - cpu['aiohttp']) * 1e6:.0f} µs; "
                f"requests on {IN_FLIGHT} threads {cpu['requests'] * 1e6:.0f} µs",
            )
        )
        words.append(
            f"Latency {latency:g} s, {IN_FLIGHT} in flight: dispatcher {middle['dispatcher']:.0f}/s, bare aiohttp "
            f"{middle['aiohttp']:.0f}/s, bare requests on as many threads {middle['requests']:.0f}/s."
        )
        if latency == 1.0:
            reached = statistics.median(rates["dispatcher"]) / (IN_FLIGHT / latency)
            bare = middle["aiohttp"] / (IN_FLIGHT / latency)
            met, stretched = at_least(reached, 0.85, 0.95)
            rows.append(
                Row(
                    "D1",
                    f"payouts/s of one process with {IN_FLIGHT} requests in flight, at 1 s latency",
                    f"{middle['dispatcher']:.0f}/s",
                    f"{IN_FLIGHT / latency:.0f}/s",
                    reached,
                    "≥ 0.85",
                    "≥ 0.95",
                    met,
                    stretched,
                    f"the bare client reaches {bare:.2f}",
                )
            )
    lines = [
        Line("send", f"{name}, {IN_FLIGHT} in flight", values, "Payouts a second by M-Pesa's latency", "s", "a second")
        for name, values in points.items()
    ]  # fmt: skip
    return rows, lines, words


def without_cap(bench: Bench, waves: int) -> list[Row]:
    """Measure one process with 1,000 requests in flight, and two processes, without PAYOUT_TPS."""
    rows = []
    most = bench.dispatcher(1.0, 1_000 * waves, in_flight=1_000)
    met, stretched = at_least(most.rate, 250, 900)
    rows.append(
        Row(
            "D2",
            "payouts/s without a cap at 1 s latency, 1,000 in flight, one process",
            f"{most.rate:.0f}/s",
            "1,000/s",
            most.rate / 1_000,
            "≥ 250/s",
            "≥ 900/s",
            met,
            stretched,
            f"{most.cpu * 1e6:.0f} µs a payout",
        )
    )
    for latency in (0.0, 1.0):
        two = bench.dispatcher(latency, IN_FLIGHT * 2 * waves, processes=2)
        floor = "" if latency == 0 else f"{2 * IN_FLIGHT / latency:.0f}/s"
        ratio = None if latency == 0 else two.rate / (2 * IN_FLIGHT / latency)
        rows.append(Row("", f"two worker processes, latency {latency:g} s", f"{two.rate:.0f}/s", floor, ratio))
    return rows


def under_cap(bench: Bench, seconds: int) -> list[Row]:
    """Measure four processes that share one PAYOUT_TPS: first 50, then 200."""
    rows = []
    for cap in (50, 200):
        run = bench.dispatcher(1.0, cap * seconds, in_flight=cap * 2, processes=4, PAYOUT_TPS=str(cap))
        sustained = (len(run.arrivals) - 1) / (run.arrivals[-1] - run.arrivals[0]) / cap
        most = most_in_a_second(run.arrivals)
        enough, stretched = at_least(sustained, 0.95, 0.98)
        rows.append(
            Row(
                "D4",
                f"sustained rate ÷ a cap of {cap}/s, four processes, latency 1 s",
                f"{sustained * cap:.1f}/s",
                f"{cap}/s",
                sustained,
                "≥ 0.95, and no second above the cap",
                "0.98",
                enough and most <= cap,
                stretched and most <= cap,
                f"at most {most} arrivals in any second",
            )
        )
    return rows


def main(arguments: list[str]) -> None:
    """Measure the dispatcher, and report the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args(arguments).full
    django.setup()
    times, waves, seconds = (5, 8, 30) if full else (3, 5, 15)
    with stub() as url:
        bench = Bench(url, Progress("send", 9 * times + 5))
        rows, lines, words = beside_bare_clients(bench, times, waves)
        rows += without_cap(bench, waves)
        rows += under_cap(bench, seconds)
    words.append(
        "In every run each payout reached the stub exactly once and ended as ACCEPTED in the books. The soak checks "
        "the same while processes are killed."
    )
    hand_over(Measured(rows, lines, words))


if __name__ == "__main__":
    main(sys.argv[1:])
