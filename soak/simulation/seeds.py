"""Seeds of the simulation: new seeds for each commit, and past seeds."""

import os
from pathlib import Path

from testing.parts import git

PAST_SEEDS = Path(__file__).with_name("past_seeds.txt")
HEX_DIGITS = 6


def of_commit() -> int:
    """Return a number from the commit's hash, so that each commit runs new seeds."""
    return int(git("rev-parse", "HEAD")[:HEX_DIGITS] or "1", 16)


def first_fresh(count: int) -> int:
    """Return SIMULATION_SEED if it is set, else the first of `count` seeds that only this commit runs."""
    return int(os.environ.get("SIMULATION_SEED") or of_commit() * count)


def past() -> list[int]:
    """Return the seeds that once found an error in the project."""
    lines = PAST_SEEDS.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]
