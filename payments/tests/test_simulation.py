"""The share of the deterministic simulation that every test run has; `make soak` runs the rest."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from payments.tests.simulation import world
from payments.tests.simulation.bugs import BUGS

HERE = Path(__file__).resolve().parent
FRESH = 60
BATCH = 10
PATIENCE = 50


def _first_fresh_seed() -> int:
    """SIMULATION_SEED, or a number drawn from the commit's hash, so that each commit explores new seeds."""
    if given := os.environ.get("SIMULATION_SEED"):
        return int(given)
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return int(asked.stdout[:6] or "0", 16) * FRESH


FIRST = _first_fresh_seed()
PAST = [
    int(line.split()[0])
    for line in (HERE / "simulation" / "past_seeds.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.fixture(scope="module")
def _database(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    # Each seed opens its own transaction and rolls it back, which the transaction of a test would be in the way of.
    with django_db_blocker.unblock(), world.scratch_database():
        yield


@pytest.fixture(autouse=True)
def _swift(_database: None) -> None:
    world.forget_dead_rows()


def _nothing_wrong(seed: int) -> None:
    outcome = world.run(seed)
    found = "\n".join(map(str, outcome.violations))
    assert not found, f"{found}\nReplay it: python -m payments.tests.simulation --seed {seed} -v"


@pytest.mark.parametrize("batch", range(FRESH // BATCH))
def test_no_fault_and_no_order_of_things_loses_or_doubles_a_payment(batch: int) -> None:
    # given
    seeds = range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH)
    print(f"Seeds {seeds.start} to {seeds.stop - 1}; SIMULATION_SEED={FIRST} runs them again.")

    # when, then
    for seed in seeds:
        _nothing_wrong(seed)


@pytest.mark.parametrize("seed", PAST)
def test_what_once_went_wrong_goes_right(seed: int) -> None:
    _nothing_wrong(seed)


def test_a_seed_lives_the_same_life_twice() -> None:
    # given
    once = world.run(FIRST, keep_trace=True)

    # when
    again = world.run(FIRST, keep_trace=True)

    # then
    assert again.trace == once.trace
    assert again.trace_hash == once.trace_hash
    assert world.run(FIRST + 1).trace_hash != once.trace_hash


@pytest.mark.parametrize("name", BUGS)
def test_a_guard_switched_off_is_noticed(name: str) -> None:
    # given
    bug = BUGS[name]

    # when
    tried = range(bug.seed, bug.seed + PATIENCE)
    caught = next((seed for seed in tried if bug.run(seed).violations), None)

    # then
    assert caught is not None, f"None of the seeds {tried.start} to {tried.stop - 1} noticed; run --bugs again."
