"""Restores at random moments: `python -m soak.restores --moments 200 --seed 1` runs the drills of restore_drill.

Half of the losses are shorter than the resend horizon, half are longer. Each drill begins with an empty scratch
database. Prints the figures for docs/soak.md.
"""

import argparse
import logging
import os
import tempfile
from pathlib import Path

from testing import services

os.environ["DJANGO_SETTINGS_MODULE"] = "api.settings"
# ruff: noqa: E402 - the servers must run before Django is set up, and Django must be set up before models are imported.
import django

django.setup()

from soak import restore_drill
from soak.simulation.scratch import scratch_database
from testing import database_copies
from testing.figures import Figure, Progress, hand_over


def run(*, moments: int, seed: int) -> list[Figure]:
    """Run the drills, and return the figure."""
    broken: list[str] = []
    progress = Progress("restores", moments)
    logging.disable(logging.CRITICAL)
    with scratch_database(), tempfile.TemporaryDirectory() as directory:
        empty = database_copies.take()
        for number in range(moments):
            drill = restore_drill.long_loss if number % 2 else restore_drill.short_loss
            try:
                drill(seed + number, Path(directory))
            except restore_drill.RuleBroken as rule:
                broken.append(f"moment {seed + number} of {drill.__name__}: {rule}")
            database_copies.put_back(empty)
            progress.at(number + 1)
    seen = f"{moments} losses, {len(broken)} broke a rule in {progress.seconds:.0f} s. {' / '.join(broken[:3])}".strip()
    bar = "0 paid twice, 0 left out once two people have decided, each loss noticed"
    return [Figure("Commits lost at random moments, then the procedure after a restore", bar, seen, not broken)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        hand_over(run(moments=options.moments, seed=options.seed))
    finally:
        services.embedded.leave(services.BASE_DIR, "fast")
