"""Figures of a long run, each with its limit, and lines of progress."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field

HANDED_OVER = "FIGURES "


@dataclass(frozen=True)
class Figure:
    """A figure: `bar` is the limit and `seen` the measured value, as texts. `passed` is None without a measurement."""

    name: str
    bar: str
    seen: str
    passed: bool | None


@dataclass
class Progress:
    """Progress of a part. Prints it, with the time that is left, at most once in `every_seconds`."""

    part: str
    goal: int
    every_seconds: float = 10.0
    began: float = field(default_factory=time.monotonic)
    _printed_at: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def at(self, done: int, words: str = "") -> None:
        """Note that `done` of `goal` are finished, and print that if it is time."""
        if time.monotonic() - self._printed_at < self.every_seconds:
            return
        self._printed_at = time.monotonic()
        left = (self.goal - done) * self.seconds / done if done else 0.0
        eta = f", about {left / 60:.1f} min left" if 0 < done < self.goal else ""
        say(f"{self.part}: {done:,} of {self.goal:,} in {self.seconds:.0f} s{eta}{', ' if words else ''}{words}")


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def hand_over(figures: list[Figure]) -> None:
    """Print the figures as the part's last line, which the soak reads."""
    say(HANDED_OVER + json.dumps([asdict(figure) for figure in figures]))


def handed_over(line: str) -> list[Figure]:
    """Read a line that `hand_over` printed. Returns no figures for any other line."""
    if not line.startswith(HANDED_OVER):
        return []
    return [Figure(**figure) for figure in json.loads(line.removeprefix(HANDED_OVER))]
