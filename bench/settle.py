"""Settling a market, beside the cheapest way to write the same rows."""

import time

from bench.figures import Line, Measured, Row, alternated, hand_over
from soak.figures import Progress


def main() -> None:
    progress = Progress("settle", 1)
    seen = alternated({"ours": lambda: time.perf_counter(), "floor": lambda: time.perf_counter()}, 2)
    progress.at(1)
    hand_over(Measured([Row("", "nothing yet", str(seen))], [Line("settle", "x", [(1, 2), (3, 4)], "t", "a", "u")]))


if __name__ == "__main__":
    main()
