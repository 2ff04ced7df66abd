"""Sending payouts: the dispatcher beside bare clients that send the same requests and keep no books.

A stub on loopback answers after a latency and remembers when each request came. Rates are those of the arrivals after
the first wave, so that what fills the lanes once is not counted.
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
    """One client's run: requests, the rate of their arrivals, CPU seconds a request, when each came."""

    rate: float
    cpu: float
    arrivals: list[float]


@contextmanager
def stub() -> Iterator[str]:
    """The stub's address; it ends with us, for its standard input does."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.stub"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield str(child.stdout.readline()).strip()  # type: ignore[union-attr]
    finally:
        child.stdin.close()  # type: ignore[union-attr]
        child.wait(10)
        child.stdout.close()  # type: ignore[union-attr]


def clients(url: str, latency: float, wave: int, commands: list[list[str]], **settings: str) -> Run:
    """Run these clients at once against the stub."""
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
        )  # fmt: skip
        for command in commands
    ]
    took = [json.loads(child.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()[-1]) for child in children]
    told: list[tuple[float, str]] = requests.get(f"{url}/told", timeout=30).json()
    made = sum(each["requests"] for each in took)
    if len({name for _, name in told}) != len(told) or made != len(told):
        raise AssertionError(f"{made} requests were made, {len(told)} came, {len({n for _, n in told})} of them once")
    arrivals = sorted(at for at, _ in told)
    rate = (len(arrivals) - (wave if latency else 1)) / (arrivals[-1] - arrivals[0])
    return Run(rate, sum(each["cpu"] for each in took) / made, arrivals)


def most_in_a_second(arrivals: list[float]) -> int:
    """The most arrivals in any window of one second."""
    return max(bisect_right(arrivals, at + 1.0 - 1e-9) - number for number, at in enumerate(arrivals))


class Bench:
    """Its payouts, its stub, and how far it is."""

    def __init__(self, url: str, progress: Progress) -> None:
        self.url, self.progress, self.done = url, progress, 0

    def dispatcher(
        self, latency: float, count: int, *, in_flight: int = IN_FLIGHT, processes: int = 1, **more: str
    ) -> Run:
        """The dispatcher in so many worker processes, on so many payouts that are due."""
        from bench import winners
        from payments.models import Attempt

        settlement = winners.due(count)
        settings = {"PAYOUT_IN_FLIGHT": str(in_flight), "PAYOUT_TPS": UNCAPPED} | more
        commands = [["dispatcher", str(PATIENCE_SECONDS - 60)]] * processes
        run = clients(self.url, latency, in_flight * processes, commands, **settings)
        states = set(Attempt.objects.filter(settlement=settlement).values_list("state", flat=True))
        if len(run.arrivals) != count or states != {"ACCEPTED"}:
            raise AssertionError(f"{len(run.arrivals)} of {count} were sent, and their attempts are {states}")
        return self._did(run)

    def bare(self, which: str, latency: float, count: int, *, in_flight: int = IN_FLIGHT) -> Run:
        return self._did(clients(self.url, latency, in_flight, [[which, self.url + PATH, str(count), str(in_flight)]]))

    def _did(self, run: Run) -> Run:
        self.done += 1
        self.progress.at(self.done)
        return run


def side(runs: list[Run], call: Any) -> Any:
    """A side of an alternation that keeps its whole runs as well."""

    def measure() -> float:
        runs.append(call())
        return runs[-1].rate

    return measure


def against_the_bare_clients(bench: Bench, times: int, waves: int) -> tuple[list[Row], list[Line], list[str]]:
    rows, words = [], []
    points: dict[str, list[tuple[float, float]]] = {"dispatcher": [], "aiohttp": [], "requests": []}
    for latency in (0.0, 0.3, 1.0):
        count = IN_FLIGHT * waves
        kept: dict[str, list[Run]] = {"dispatcher": [], "aiohttp": [], "requests": []}
        rates = alternated(
            {
                "dispatcher": side(kept["dispatcher"], lambda: bench.dispatcher(latency, count)),  # noqa: B023 - called before it changes
                "aiohttp": side(kept["aiohttp"], lambda: bench.bare("aiohttp", latency, count)),  # noqa: B023
                "requests": side(kept["requests"], lambda: bench.bare("requests", latency, count)),  # noqa: B023
            },
            times,
        )
        middle = {name: statistics.median(found) for name, found in rates.items()}
        cpu = {name: statistics.median(run.cpu for run in runs) for name, runs in kept.items()}
        for name, rate in middle.items():
            points[name].append((max(latency, 0.01), rate))
        share = median_ratio([run.cpu for run in kept["dispatcher"]], [run.cpu for run in kept["aiohttp"]])
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
            )  # fmt: skip
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
                    f"payouts/s of one process at 1 s latency ÷ {IN_FLIGHT} in flight ÷ latency",
                    f"{middle['dispatcher']:.0f}/s",
                    f"{IN_FLIGHT / latency:.0f}/s",
                    reached,
                    "≥ 0.85",
                    "≥ 0.95",
                    met,
                    stretched,
                    f"the bare client reaches {bare:.2f}",
                )  # fmt: skip
            )
    lines = [
        Line("send", f"{name}, {IN_FLIGHT} in flight", found, "Payouts a second by M-Pesa's latency", "s", "a second")
        for name, found in points.items()
    ]  # fmt: skip
    return rows, lines, words


def without_a_cap(bench: Bench, waves: int) -> list[Row]:
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
        )  # fmt: skip
    )
    for latency in (0.0, 1.0):
        two = bench.dispatcher(latency, IN_FLIGHT * 2 * waves, processes=2)
        floor = "" if latency == 0 else f"{2 * IN_FLIGHT / latency:.0f}/s"
        ratio = None if latency == 0 else two.rate / (2 * IN_FLIGHT / latency)
        rows.append(Row("", f"two worker processes, latency {latency:g} s", f"{two.rate:.0f}/s", floor, ratio))
    return rows


def under_a_cap(bench: Bench, seconds: int) -> list[Row]:
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
                "≥ 0.95, no second above",
                "0.98",
                enough and most <= cap,
                stretched and most <= cap,
                f"at most {most} arrivals in any second",
            )  # fmt: skip
        )
    return rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args(arguments).full
    django.setup()
    times, waves, seconds = (5, 8, 30) if full else (3, 5, 15)
    with stub() as url:
        bench = Bench(url, Progress("send", 9 * times + 5))
        rows, lines, words = against_the_bare_clients(bench, times, waves)
        rows += without_a_cap(bench, waves)
        rows += under_a_cap(bench, seconds)
    words.append(
        "Every run ended with each payout at the stub exactly once and acknowledged in the books (D5 has kills)."
    )
    hand_over(Measured(rows, lines, words))


if __name__ == "__main__":
    main(sys.argv[1:])
