"""Parts of a long run, each in its own process with a time limit."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testing.figures import HANDED_OVER, say

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """A part of a long run: its command after `python -m`, and its time limit in minutes."""

    name: str
    command: tuple[str, ...]
    minutes: float


@dataclass(frozen=True)
class Ended:
    """End of a part: its output, exit status and seconds. `in_time` is False if it reached its time limit."""

    lines: list[str]
    status: int
    seconds: float
    in_time: bool

    @property
    def how(self) -> str:
        took = f"{self.seconds:.0f} s"
        return f"exit status {self.status} after {took}" if self.in_time else f"stopped after {took}, at its time limit"


def run(part: Part, environment: Mapping[str, str] | None = None) -> Ended:
    """Run one part until its end or its time limit, and print each line at once."""
    say(f"--- {part.name}: at most {part.minutes:.0f} min")
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", *part.command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=environment,
    )  # fmt: skip
    lines: list[str] = []
    with _stopped_after(child, part.minutes * 60) as ran_out:
        for line in child.stdout or ():
            lines.append(line.rstrip())
            if not line.startswith(HANDED_OVER):
                say(f"  {line.rstrip()}")
        status = child.wait()
    return Ended(lines, status, time.monotonic() - began, not ran_out.is_set())


@contextmanager
def _stopped_after(child: "subprocess.Popen[str]", seconds: float) -> Iterator[threading.Event]:
    """Stop a part and all its processes at its time limit, or when the long run itself is stopped."""
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


def commit() -> str:
    """Return the commit, and "with changes" if files outside docs/ differ from the commit."""
    head = git("rev-parse", "--short=10", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def git(*arguments: str) -> str:
    """Return the output of a git command, or "" if there is no git or no commit."""
    try:
        ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def machine() -> str:
    """Return one line about the machine: its size, its versions, and its load before the run."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}; the load before it was {os.getloadavg()[2]:.1f}"
    )
