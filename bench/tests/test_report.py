"""Report of the bench: the page and the plots of reported figures."""

from pathlib import Path

from bench import __main__ as bench
from bench import report
from bench.figures import Line, Measured, Row, alternated, at_least, at_most, handed_over, median_ratio


def figures(measured: Measured) -> bench.PartFigures:
    return bench.PartFigures(
        "settle", measured, "1 March 2026 at 10:00", "0123456789", "2 cores", "exit status 0 after 3 s"
    )


def test_page_shows_the_figures_that_a_part_reported(tmp_path: Path) -> None:
    # given
    rows = [
        Row("S1", "settle 40 bets", "20 ms", "10 ms", 2.004, "≤ 3", "≤ 2", *at_most(2.004, 3, 2), "a | b\nc"),
        Row("S6", "bets/s", "90/s", "100/s", 0.5, "≥ 0.75", "≥ 0.9", *at_least(0.5, 0.75, 0.9)),
        Row("", "row by row", "1 s"),
    ]
    lines = [
        Line("settle", "ours", [(40, 0.02), (400, 0.1)], "Time against size", "bets", "seconds"),
        Line("settle", "floor", [(40, 0.01), (400, 0.06)]),
    ]
    words = ["The floor is COPY."]

    # when
    report.write([figures(Measured(rows, lines, words))], tmp_path)

    # then
    page = (tmp_path / "bench.md").read_text()
    assert "1 of 2 figures reach the limit that they must reach. 0 of 2 figures reach their stretch goal." in page
    assert "| S1 | settle 40 bets | 20 ms | 10 ms | 2.00 | ≤ 3 | yes | ≤ 2 | **no** | a / b c |" in page
    assert "| S6 | bets/s | 90/s | 100/s | 0.50 | ≥ 0.75 | **no** | ≥ 0.9 | **no** |  |" in page
    assert "1 March 2026 at 10:00 (Nairobi), commit 0123456789, exit status 0 after 3 s. On 2 cores." in page
    assert "![Time against size](bench-settle.png)" in page
    assert (tmp_path / "bench-settle.png").read_bytes().startswith(b"\x89PNG")


def test_reported_figures_are_read_unchanged() -> None:
    measured = Measured([Row("S1", "a", "b", ratio=1.5, met=True)], [Line("p", "ours", [(1, 2.5)])], ["words"])
    line = bench.HANDED_OVER + bench.json.dumps(bench.asdict(measured))
    assert handed_over(line) == measured
    assert handed_over("settle: 10 of 20") is None


def test_part_without_figures_becomes_a_missed_figure() -> None:
    ended = bench.Ended(["Traceback", "MemoryError"], 1, 2.0, in_time=True)
    (row,) = bench._figures(bench.Part("settle", ("bench.settle",), 1), ended).rows
    assert (row.met, row.ours) == (False, "exit status 1 after 2 s")
    assert "MemoryError" in row.how_far


def test_sides_are_measured_in_alternation_and_compared_in_pairs() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: (order.append(name), float(len(order)))[1] for name in ("ours", "floor")}
    seen = alternated(sides, 3)
    assert order == ["ours", "floor"] * 3
    assert seen == {"ours": [1, 3, 5], "floor": [2, 4, 6]}
    assert median_ratio([4, 9, 100], [2, 3, 10]) == 3
