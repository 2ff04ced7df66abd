"""What `make bench` measures: rows of ours against a floor of the same run, and points for its plots."""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from testing.figures import HANDED_OVER, say


@dataclass(frozen=True)
class Row:
    """One quantity: ours, the floor measured beside it, their ratio, and what is asked of it.

    `target` is its number in the list of targets (S1, D2, …), empty for a figure that only informs. `must` and
    `stretch` are the bars in words; `met` and `stretched` say whether ours passes them, None where none is set.
    `how_far` says what is missing to the stretch, or what else explains the figure.
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
    """One line of a plot: `plot` is the file docs/bench-<plot>.png, whose title and axes its first line names."""

    plot: str
    label: str
    points: list[tuple[float, float]]
    title: str = ""
    across: str = ""
    up: str = ""


@dataclass(frozen=True)
class Measured:
    """All that one part found."""

    rows: list[Row] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def at_most(value: float, must: float, stretch: float) -> tuple[bool, bool]:
    """Whether a figure passes bars that it must not exceed: (met, stretched)."""
    return value <= must, value <= stretch


def at_least(value: float, must: float, stretch: float) -> tuple[bool, bool]:
    """Whether a figure passes bars that it must reach: (met, stretched)."""
    return value >= must, value >= stretch


def alternated(sides: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Measure each side in turn, `times` times over (ours, floor, ours, floor, …), so that a busy minute hits all."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(times):
        for name, measure in sides.items():
            seen[name].append(measure())
    return seen


def median_ratio(ours: list[float], floor: list[float]) -> float:
    """The median of the ratios of neighbouring runs: each pair saw the same machine."""
    return statistics.median(one / other for one, other in zip(ours, floor, strict=True))


def hand_over(measured: Measured) -> None:
    """Print what a part measured as its last line, for the bench that started it."""
    say(HANDED_OVER + json.dumps(asdict(measured)))


def handed_over(line: str) -> Measured | None:
    """Read what `hand_over` printed; nothing for any other line."""
    if not line.startswith(HANDED_OVER):
        return None
    found = json.loads(line.removeprefix(HANDED_OVER))
    return Measured(
        rows=[Row(**row) for row in found["rows"]],
        lines=[Line(**line | {"points": [(x, y) for x, y in line["points"]]}) for line in found["lines"]],
        words=found["words"],
    )
