"""The page docs/bench.md and its plots, from what the parts measured."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import matplotlib as mpl

from bench.figures import Line, Measured, Row

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen before

VERDICTS = {True: "yes", False: "**no**", None: ""}
HEAD = "| | Quantity | Ours | Floor | Ratio | Must | Met | Stretch | Met | How far, or why |"
RULE = "|---|---|---|---|---|---|---|---|---|---|"


class Found(Protocol):
    """A part's figures with when and on what they were measured."""

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


def write(found: Sequence[Found], docs: Path) -> None:
    """Write bench.md and one PNG for each plot into `docs`."""
    lines = [line for each in found for line in each.measured.lines]
    plots = {line.plot: line.title for line in reversed(lines)}
    for name in plots:
        draw([line for line in lines if line.plot == name], docs / f"bench-{name}.png")
    (docs / "bench.md").write_text(page(found, {name: plots[name] for name in sorted(plots)}))


def page(found: Sequence[Found], plots: dict[str, str]) -> str:
    """The page's text; `plots` maps a plot's name to its title."""
    rows = [row for each in found for row in each.measured.rows]
    asked = [row for row in rows if row.met is not None]
    stretched = [row for row in rows if row.stretched is not None]
    head = [
        "# What it costs, beside what it has to cost",
        "",
        "Written by `make bench` (`BENCH=full make bench` for the million). Each figure stands beside a floor measured "
        "in the same run, in alternation, so a busy machine slows both: compare ratios, not times.",
        "",
        f"Of {len(asked)} figures with a bar, {sum(row.met is True for row in asked)} reach what they must; of "
        f"{len(stretched)} with a further one, {sum(row.stretched is True for row in stretched)} reach that too.",
        "",
    ]
    body: list[str] = []
    for each in found:
        body += [
            f"## {each.part}",
            "",
            f"{each.at} (Nairobi), commit {each.commit}, {each.ended}. On {each.on}.",
            "",
            HEAD,
            RULE,
            *map(_table_row, each.measured.rows),
            "",
            *(line for words in each.measured.words for line in (words, "")),
        ]
    pictures = [line for name, title in plots.items() for line in (f"![{title}](bench-{name}.png)", "")]
    return "\n".join([*head, *body, *(["## Plots", "", *pictures] if pictures else [])]).rstrip() + "\n"


def _table_row(row: Row) -> str:
    cells = (
        row.target, row.quantity, row.ours, row.floor, _ratio(row), row.must, VERDICTS[row.met], row.stretch,
        VERDICTS[row.stretched], row.how_far,
    )  # fmt: skip
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def spoken(row: Row) -> str:
    """One row as a line for whoever watches."""
    verdict = {True: "ok", False: "NO", None: "- "}[row.met]
    words = [f"ours {row.ours}", row.floor and f"floor {row.floor}", row.must and f"must {row.must}"]
    ratio = _ratio(row)
    return f"{verdict}  {row.target:3} {row.quantity}: {', '.join(filter(None, [*words, ratio and f'ratio {ratio}']))}"


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f}"


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:600]


def draw(lines: Sequence[Line], file: Path) -> None:
    """One plot, both axes logarithmic: a straight line at 45 degrees grows as its size does."""
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
