"""`python -m soak [--quick]`: the full figures, written to docs/soak.md as they were seen.

Each part is a process of its own with a bound on its time; what was cut short or not run is said so. --quick does about
a tenth. --only NAME runs one part and leaves docs/soak.md alone. Exits 1 when a figure missed its bar.
"""

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

# Starts the tests' PostgreSQL and Redis, and takes a developer's settings out of the environment.
import testservices
from soak.figures import Figure, handed_over, say

ROOT = Path(testservices.__file__).resolve().parent
REPORT = ROOT / "docs" / "soak.md"
SEED_DIGITS = 6


@dataclass(frozen=True)
class Part:
    """One process of the soak: its command after `python -m`, and the minutes it may take."""

    name: str
    command: tuple[str, ...]
    minutes: float


@dataclass(frozen=True)
class Ended:
    """What became of a part."""

    lines: list[str]
    status: int
    seconds: float
    in_time: bool

    @property
    def how(self) -> str:
        took = f"{self.seconds:.0f} s"
        return f"exit status {self.status} after {took}" if self.in_time else f"stopped after {took}, its time was up"


def parts(*, quick: bool, seed: int) -> tuple[Part, ...]:
    """What is run, in this order. The simulation's seeds and all chances come from `seed`."""
    seeds, winners, count = (100, 1_000, 100_000) if quick else (1_000, 10_000, 1_000_000)
    struck, striking = (200, 300) if quick else (2_000, 900)
    killing, calling, parsing = (240, 120, 30) if quick else (1_200, 1_500, 300)
    jobs = f"--jobs={os.cpu_count() or 1}"
    simulation = ("payments.tests.simulation", jobs)
    chance = f"--seed={seed}"
    # Killing ends, and what is left is paid in peace, a while before the part's own time is up.
    return (
        Part("simulation", (*simulation, f"--seeds={seed}:{seed + seeds}"), 4 if quick else 20),
        Part("planted bugs", (*simulation, "--bugs"), 20 if quick else 45),
        Part("kills", ("soak.kills", f"--winners={winners}", f"--seconds={killing}", chance), 10 if quick else 30),
        Part("faults", ("soak.faults", f"--winners={struck}", f"--seconds={striking}", chance), 7 if quick else 20),
        Part("callbacks", ("soak.callbacks", f"--count={count}", f"--seconds={calling}", chance), 5 if quick else 30),
        Part("parser", ("soak.parser", f"--seconds={parsing}"), 3 if quick else 8),
    )  # fmt: skip


def run(part: Part) -> Ended:
    """Run one part to its end, or to the end of its time; its lines are passed on as they come."""
    say(f"--- {part.name}: at most {part.minutes:.0f} min")
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", *part.command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    with _stopped_after(child, part.minutes * 60) as ran_out:
        for line in child.stdout or ():
            lines.append(line.rstrip())
            if not handed_over(line):
                say(f"  {line.rstrip()}")
        status = child.wait()
    return Ended(lines, status, time.monotonic() - began, not ran_out.is_set())


@contextmanager
def _stopped_after(child: "subprocess.Popen[str]", seconds: float) -> Iterator[threading.Event]:
    """Stop a part with all its processes when its time is up, or when the soak itself is stopped."""
    ran_out = threading.Event()

    def stop() -> None:
        ran_out.set()
        os.killpg(child.pid, signal.SIGTERM)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        yield ran_out
    finally:
        timer.cancel()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


def figures(part: Part, ended: Ended) -> list[Figure]:
    """What a part measured; where it ended before it could say, that is the figure."""
    found = [figure for line in ended.lines for figure in handed_over(line)]
    if part.name == "simulation":
        summary = next((line for line in reversed(ended.lines) if re.match(r"\d+ seeds in", line)), ended.how)
        bar = "0 lost, 0 paid twice, 0 paid in our books only, 0 stuck; all invariants after every step"
        return [Figure(f"Simulation, {part.command[-1].removeprefix('--')}", bar, summary, _passed(ended))]
    if part.name == "planted bugs":
        table = bug_table(ended.lines)
        missed = sum("**nothing**" in row for row in table)
        seen = f"{max(0, len(table) - 2)} planted, {missed} not caught; {ended.how}"
        return [
            Figure("Guards switched off, one at a time", "each is noticed within 1,000 seeds", seen, _passed(ended))
        ]
    if found:
        return found
    return [Figure(part.name, "it runs to its end", f"{ended.how}: {' / '.join(ended.lines[-3:])}", False)]


def _passed(ended: Ended) -> bool:
    return ended.in_time and ended.status == 0


def bug_table(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("|")]


def report(measured: list[Figure], table: list[str], seconds: float, *, quick: bool, seed: int) -> str:
    """The page docs/soak.md."""
    verdicts = {True: "yes", False: "**no**", None: "not run"}
    rows = [f"| {f.name} | {f.bar} | {_cell(f.seen)} | {verdicts[f.passed]} |" for f in measured]
    at = datetime.now(ZoneInfo("Africa/Nairobi"))
    kind = "`make soak ARGS=--quick`, about a tenth of the full figures" if quick else "`make soak`"
    return "\n".join(
        [
            "# What a soak saw",
            "",
            f"Written by {kind} on {at:%d %B %Y at %H:%M} (Nairobi), commit {_commit()}, seed {seed}, in "
            f"{seconds / 60:.0f} minutes on {_machine()}. Every figure is what this run saw, no more.",
            "",
            "| Figure | Passes at | Seen | Passed |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Planted bugs",
            "",
            "Each guard is switched off in the simulation, and the first seed that notices is written down.",
            "",
            *(table or ["Not run."]),
            "",
        ]
    )


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:600]


def _commit() -> str:
    head, changed = _git("rev-parse", "--short=10", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def _git(*words: str) -> str:
    """What git says, or nothing where there is no git or no commit."""
    try:
        ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}; the load before it was {os.getloadavg()[2]:.1f}"
    )


def main(arguments: list[str]) -> int:
    """Run the parts and write the report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in parts(quick=False, seed=0)]
    parser.add_argument("--quick", action="store_true", help="about a tenth, in some minutes")
    parser.add_argument("--only", choices=names, help="this part alone, without a report")
    parser.add_argument("--seed", type=int, help="by default from the commit")
    asked = parser.parse_args(arguments)
    seed = asked.seed if asked.seed is not None else int(_git("rev-parse", "HEAD")[:SEED_DIGITS] or "1", 16)
    began, measured, table = time.monotonic(), [], []
    for part in parts(quick=asked.quick, seed=seed):
        if asked.only in (None, part.name):
            ended = run(part)
            measured += figures(part, ended)
            table += bug_table(ended.lines)
    for figure in measured:
        say(f"{'-' if figure.passed is None else 'ok' if figure.passed else 'NO'}  {figure.name}: {figure.seen}")
    if asked.only is None:
        REPORT.write_text(report(measured, table, time.monotonic() - began, quick=asked.quick, seed=seed))
        say(f"Written to {REPORT.relative_to(ROOT)}.")
    testservices.embedded.leave(ROOT, "fast")
    return int(any(figure.passed is False for figure in measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
