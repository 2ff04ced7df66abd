"""Figures of the bench: rows that compare our code with floors, and plots."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from testing.figures import HANDED_OVER, say


@dataclass(frozen=True)
class Row:
    """A quantity: our value, the floor of the same run, the ratio of the two, and the limits.

    `target` is the number of the target (S1, D2, …); it is empty for a figure without a target. `must` is the limit
    that our value has to reach, and `stretch` is a stricter goal; both are texts. `met` and `stretched` tell if
    our value reaches the limit and the goal. None means that there is no limit or no goal. `how_far` is a remark: the
    distance to the goal, or the reason for the figure.
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
    """A line of the plot docs/bench-<plot>.png. The first line of a plot gives the plot's title and axes."""

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
    """Return (met, stretched): True for each of the two limits that `value` does not exceed."""
    return value <= must, value <= stretch


def at_least(value: float, must: float, stretch: float) -> tuple[bool, bool]:
    """Return (met, stretched): True for each of the two limits that `value` reaches."""
    return value >= must, value >= stretch


def alternated(sides: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Measure the sides in alternation (ours, floor, ours, …), each `times` times.

    If the machine is busy for a minute, all sides become slower.
    """
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(times):
        for name, measure in sides.items():
            seen[name].append(measure())
    return seen


def median_ratio(ours: list[float], floor: list[float]) -> float:
    """Return the median of the ratios of neighbouring runs. The two runs of a pair had the same load on the machine."""
    return statistics.median(our_cost / floor_cost for our_cost, floor_cost in zip(ours, floor, strict=True))


def hand_over(measured: Measured) -> None:
    """Print the figures as the part's last line, which the bench reads."""
    say(HANDED_OVER + json.dumps(asdict(measured)))


def handed_over(line: str) -> Measured | None:
    """Read a line that `hand_over` printed. Returns None for any other line."""
    if not line.startswith(HANDED_OVER):
        return None
    figures = json.loads(line.removeprefix(HANDED_OVER))
    return Measured(
        rows=[Row(**row) for row in figures["rows"]],
        lines=[Line(**line | {"points": [(x, y) for x, y in line["points"]]}) for line in figures["lines"]],
        words=figures["words"],
    )
