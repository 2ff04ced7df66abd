"""What a soak measures: a figure with its bar, and the line of progress while it is measured."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field

HANDED_OVER = "FIGURES "


@dataclass(frozen=True)
class Figure:
    """One thing measured: `bar` says what would pass, `seen` what was seen; `passed` is None where it was not run."""

    name: str
    bar: str
    seen: str
    passed: bool | None


@dataclass
class Progress:
    """Prints how far a part is and when it will be through, at most once in `every_seconds`."""

    part: str
    goal: int
    every_seconds: float = 10.0
    began: float = field(default_factory=time.monotonic)
    _said_at: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def at(self, done: int, words: str = "") -> None:
        """Say that `done` of `goal` are through."""
        if time.monotonic() - self._said_at < self.every_seconds:
            return
        self._said_at = time.monotonic()
        left = (self.goal - done) * self.seconds / done if done else 0.0
        eta = f", about {left / 60:.1f} min left" if 0 < done < self.goal else ""
        say(f"{self.part}: {done:,} of {self.goal:,} in {self.seconds:.0f} s{eta}{', ' if words else ''}{words}")


def say(line: str) -> None:
    """Print one line for whoever watches."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def hand_over(figures: list[Figure]) -> None:
    """Print what a part measured as its last line, for the soak that started it."""
    say(HANDED_OVER + json.dumps([asdict(figure) for figure in figures]))


def handed_over(line: str) -> list[Figure]:
    """Read what `hand_over` printed; nothing for any other line."""
    if not line.startswith(HANDED_OVER):
        return []
    return [Figure(**each) for each in json.loads(line.removeprefix(HANDED_OVER))]
