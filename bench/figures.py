"""Figures of the bench: rows that compare ours with a floor of the same run, and points for its plots."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from testing.figures import HANDED_OVER, say


@dataclass(frozen=True)
class Row:
    """A quantity: ours, the floor measured beside it, their ratio, and its bars.

    `target` is the number in the list of targets (S1, D2, …), empty for a figure that only informs. `must` and
    `stretch` are the bars in words. `met` and `stretched` are True if ours passes them, None if there is no bar.
    `how_far` gives the distance to the stretch bar, or the reason for the figure.
    """

    target: str
    quantity: str
    ours: str
    floor: str = ""
    ratio: float | None = None
    must: str = ""
    stretch: str = ""
    met: bool | None = None
    stretched: bool | None = None
    how_far: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the plot docs/bench-<plot>.png. The first line of a plot names its title and axes."""

    plot: str
    label: str
    points: list[tuple[float, float]]
    title: str = ""
    across: str = ""
    up: str = ""


@dataclass(frozen=True)
class Measured:
    """All figures of one part."""

    rows: list[Row] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def at_most(value: float, must: float, stretch: float) -> tuple[bool, bool]:
    """Return whether a figure stays at or below its bars: (met, stretched)."""
    return value <= must, value <= stretch


def at_least(value: float, must: float, stretch: float) -> tuple[bool, bool]:
    """Return whether a figure reaches its bars: (met, stretched)."""
    return value >= must, value >= stretch


def alternated(sides: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Measure the sides in alternation, `times` times each (ours, floor, ours, …), so that a busy minute slows all."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(times):
        for name, measure in sides.items():
            seen[name].append(measure())
    return seen


def median_ratio(ours: list[float], floor: list[float]) -> float:
    """Return the median of the ratios of neighbouring runs, because each pair had the same load on the machine."""
    return statistics.median(mine / least for mine, least in zip(ours, floor, strict=True))


def hand_over(measured: Measured) -> None:
    """Print a part's figures as its last line, for the bench that started it."""
    say(HANDED_OVER + json.dumps(asdict(measured)))


def handed_over(line: str) -> Measured | None:
    """Read a line that `hand_over` printed; return None for any other line."""
    if not line.startswith(HANDED_OVER):
        return None
    figures = json.loads(line.removeprefix(HANDED_OVER))
    return Measured(
        rows=[Row(**row) for row in figures["rows"]],
        lines=[Line(**line | {"points": [(x, y) for x, y in line["points"]]}) for line in figures["lines"]],
        words=figures["words"],
    )
