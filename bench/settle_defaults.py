"""Cost of settling 100,000 bets on a PostgreSQL with its own default settings, compared with the floor.

`python -m bench.settle_defaults` runs on the database that `python -m bench` made on the second server. That server has
JIT on and 128 MB of shared buffers. JIT compiles a statement whose estimated cost is high, for a tenth of a second each
time.
"""

import argparse
import logging
import os
import statistics

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
# ruff: noqa: E402 - Django must be set up before models are imported.
django.setup()

from django.db import connection

from bench import floor, population, settle_runs
from bench.figures import Measured, Row, at_most, hand_over, median_ratio
from bench.servers import run_sql, server_directory
from bench.settle import LOCK_TIME_TRIGGER, WARM_UP
from bench.settle_runs import Run
from testing.figures import say

SIZE = 100_000
JIT_SETTINGS = ("server_version", "jit", "jit_above_cost", "shared_buffers", "work_mem")


def main(*, full: bool) -> None:
    """Measure the settlement and the floor in alternation, and report the row."""
    root_url = os.environ["KASOKO_BENCH_ROOT_URL"]
    directory = server_directory(root_url)
    floor.make_copies()
    with connection.cursor() as cursor:
        cursor.execute(LOCK_TIME_TRIGGER)
    times = 5 if full else 3
    warm_ups = population.make(bets=WARM_UP, twins=times, others=0).twins
    twins = population.make(bets=SIZE, twins=times).twins
    runs: list[Run] = []
    floors: list[floor.Cost] = []
    for market, warm_up in zip(twins, warm_ups, strict=True):
        runs.append(settle_runs.settle(market, warm_up))
        floors.append(floor.measure(market, directory))
        say(
            f"settle_defaults: {SIZE:,} bets in {runs[-1].seconds:.3f} s, floor {floors[-1].seconds:.3f} s, ratio "
            f"{runs[-1].seconds / floors[-1].seconds:.2f}"
        )
    ratio = median_ratio([run.seconds for run in runs], [cost.seconds for cost in floors])
    met, stretched = at_most(ratio, 3, 2)
    defaults = ", ".join(f"{name} {run_sql(root_url, f'SHOW {name}')[0][0]}" for name in JIT_SETTINGS)
    hand_over(
        Measured(
            rows=[
                Row(
                    "S9",
                    f"settle {SIZE:,} bets on a PostgreSQL with its own defaults",
                    f"{statistics.median(run.seconds for run in runs):.2f} s",
                    f"{statistics.median(cost.seconds for cost in floors):.2f} s",
                    ratio,
                    "≤ 3",
                    "≤ 2",
                    met,
                    stretched,
                    f"the server has {defaults}; our sessions turn jit off",
                )
            ],
            words=["The floor and the runs are those of S1. Only the server's settings differ."],
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    main(full=options.full)
