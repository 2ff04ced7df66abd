"""The share of the deterministic simulation that every test run has; `make soak` runs the rest."""

import ast
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from soak.simulation import conformance, pure, world
from soak.simulation.bugs import BUGS
from soak.simulation.outcome import Outcome
from soak.simulation.pure_bugs import PURE_BUGS

HERE = Path(__file__).resolve().parents[1]
FRESH = 40
BATCH = 10
PATIENCE = 50
PURE_FRESH = 2_000
PURE_PATIENCE = 1_000
SEQUENCES = 100


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


def _nothing_wrong(seed: int, live: Callable[[int], Outcome] = world.run, option: str = "") -> None:
    found = "\n".join(map(str, live(seed).violations))
    assert not found, f"{found}\nReplay it: python -m soak.simulation {option} --seed {seed} -v"


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


def test_no_check_of_the_simulation_is_an_assert_which_python_o_would_skip() -> None:
    checks = sorted((HERE / "simulation").glob("*.py"))
    assert len(checks) > 5
    skipped = [
        f"{path.name}:{node.lineno}"
        for path in checks
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert skipped == []


# --- the machine stated a second time, without a database ------------------------------------------------------------


def test_the_pure_machine_loses_and_doubles_nothing_either() -> None:
    # given
    first = FIRST * (PURE_FRESH // FRESH)
    print(f"Seeds {first} to {first + PURE_FRESH - 1}; SIMULATION_SEED={FIRST} runs them again.")

    # when, then
    for seed in range(first, first + PURE_FRESH):
        _nothing_wrong(seed, pure.run, "--pure")


def test_a_seed_of_the_pure_machine_lives_the_same_life_twice() -> None:
    # given
    once = pure.run(FIRST, keep_trace=True)

    # when
    again = pure.run(FIRST, keep_trace=True)

    # then
    assert again.trace == once.trace
    assert again.trace_hash == once.trace_hash
    assert pure.run(FIRST + 1).trace_hash != once.trace_hash


@pytest.mark.parametrize("name", PURE_BUGS)
def test_a_guard_of_the_pure_machine_switched_off_is_noticed(name: str) -> None:
    # given
    bug = PURE_BUGS[name]

    # when
    caught = next((seed for seed in range(PURE_PATIENCE) if bug.run(seed).violations), None)

    # then
    assert caught is not None, f"None of {PURE_PATIENCE} seeds noticed."
    assert bug.run(caught, planted=False).violations == ()


@pytest.mark.parametrize("batch", range(SEQUENCES // BATCH))
def test_the_services_and_the_pure_machine_say_the_same_after_every_event(batch: int) -> None:
    # given
    seeds = range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH)
    print(f"Sequences {seeds.start} to {seeds.stop - 1}; SIMULATION_SEED={FIRST} runs them again.")

    # when, then
    for seed in seeds:
        _nothing_wrong(seed, conformance.run, "--conform")


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("timeout read as failure", 5),
        ("code 15 as failure", 2),
        ("not-found as failure", 4),
        ("single failure voice", 5),
        ("late success dropped", 1),
        ("foreign address trusted", 0),
        ("known id sent again", 28),
    ],
)
def test_a_machine_that_lacks_a_guard_does_not_agree_with_the_services(name: str, seed: int) -> None:
    # given
    lacking = PURE_BUGS[name].machine

    # when
    outcome = conformance.run(seed, machine=lacking)

    # then
    assert [violation.rule for violation in outcome.violations] == ["Services and machine agree"]
