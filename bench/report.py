"""Report of the bench: the page docs/bench.md and its plots."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import matplotlib as mpl

from bench.figures import Line, Measured, Row

mpl.use("Agg")
from matplotlib import pyplot as plt

ANSWERS = {True: "yes", False: "**no**", None: ""}
HEAD = "| | Quantity | Ours | Floor | Ratio | Must | Met | Stretch | Met | Distance, or reason |"
RULE = "|---|---|---|---|---|---|---|---|---|---|"


class PartFigures(Protocol):
    """A part's figures, with the time, commit and machine of their measurement."""

    @property
    def part(self) -> str: ...
    @property
    def measured(self) -> Measured: ...
    @property
    def at(self) -> str: ...
    @property
    def commit(self) -> str: ...
    @property
    def on(self) -> str: ...
    @property
    def ended(self) -> str: ...


def write(parts: Sequence[PartFigures], docs: Path) -> None:
    """Write bench.md and a PNG for each plot into `docs`."""
    lines = [line for part in parts for line in part.measured.lines]
    plots = {line.plot: line.title for line in reversed(lines)}
    for name in plots:
        draw([line for line in lines if line.plot == name], docs / f"bench-{name}.png")
    (docs / "bench.md").write_text(page(parts, {name: plots[name] for name in sorted(plots)}))


def page(parts: Sequence[PartFigures], plots: dict[str, str]) -> str:
    """Return the text of the page. `plots` maps the name of a plot to its title."""
    rows = [row for part in parts for row in part.measured.rows]
    barred = [row for row in rows if row.met is not None]
    stretched = [row for row in rows if row.stretched is not None]
    head = [
        "# Costs compared with their floors",
        "",
        "`make bench` writes this page. `BENCH=full make bench` measures a million bets. Most figures are "
        "compared with a floor, which is the cost of the simplest program for the same work. One run measures our "
        "code and the floor in alternation, so other work on the machine slows both. Compare ratios, not times.",
        "",
        f"{sum(row.met is True for row in barred)} of {len(barred)} figures reach the limit that they must reach. "
        f"{sum(row.stretched is True for row in stretched)} of {len(stretched)} figures reach their stretch goal.",
        "",
    ]
    body: list[str] = []
    for part in parts:
        body += [
            f"## {part.part}",
            "",
            f"{part.at} (Nairobi), commit {part.commit}, {part.ended}. On {part.on}.",
            "",
            HEAD,
            RULE,
            *map(_table_row, part.measured.rows),
            "",
            *(line for words in part.measured.words for line in (words, "")),
        ]
    pictures = [line for name, title in plots.items() for line in (f"![{title}](bench-{name}.png)", "")]
    return "\n".join([*head, *body, *(["## Plots", "", *pictures] if pictures else [])]).rstrip() + "\n"


def _table_row(row: Row) -> str:
    cells = (
        row.target, row.quantity, row.ours, row.floor, _ratio(row), row.must, ANSWERS[row.met], row.stretch,
        ANSWERS[row.stretched], row.how_far,
    )  # fmt: skip
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def terminal_line(row: Row) -> str:
    """Return a row as one line of text for the terminal."""
    sign = {True: "ok", False: "NO", None: "- "}[row.met]
    words = [f"ours {row.ours}", row.floor and f"floor {row.floor}", row.must and f"must {row.must}"]
    ratio = _ratio(row)
    return f"{sign}  {row.target:3} {row.quantity}: {', '.join(filter(None, [*words, ratio and f'ratio {ratio}']))}"


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f}"


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:600]


def draw(lines: Sequence[Line], file: Path) -> None:
    """Draw one plot with two logarithmic axes. A straight line at 45 degrees means linear growth."""
    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=110)
    try:
        for line in lines:
            axes.plot(*zip(*line.points, strict=True), marker="o", label=line.label)
        for (title, across, up), _ in groupby([(line.title, line.across, line.up) for line in lines if line.title]):
            axes.set(title=title, xlabel=across, ylabel=up)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(fontsize="small")
        figure.tight_layout()
        figure.savefig(file)
    finally:
        plt.close(figure)
