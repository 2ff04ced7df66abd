"""Seeds of the simulation: the first batch in every test run, the others in the long tests; `make soak` runs more."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from soak.simulation import seeds, world

HERE = Path(world.__file__).parent
FRESH = 40
BATCH = 10
FIRST = seeds.first_fresh(FRESH)
BATCHES = (0, *(pytest.param(batch, marks=pytest.mark.long) for batch in range(1, FRESH // BATCH)))
pytestmark = pytest.mark.usefixtures("scratch")


@pytest.mark.parametrize("batch", BATCHES)
def test_no_fault_and_no_order_loses_or_doubles_a_payment(batch: int, assert_clean: Callable[..., None]) -> None:
    # given
    fresh = range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH)
    print(f"Seeds {fresh.start} to {fresh.stop - 1}; SIMULATION_SEED={FIRST} runs them again.")

    # when, then
    for seed in fresh:
        assert_clean(seed, world.run)


@pytest.mark.parametrize("seed", seeds.past())
def test_past_error_stays_repaired(seed: int, assert_clean: Callable[..., None]) -> None:
    assert_clean(seed, world.run)


def test_same_seed_gives_the_same_trace() -> None:
    # given
    once = world.run(FIRST, keep_trace=True)

    # when
    again = world.run(FIRST, keep_trace=True)

    # then
    assert again.trace == once.trace
    assert again.trace_hash == once.trace_hash
    assert world.run(FIRST + 1).trace_hash != once.trace_hash


def test_no_check_is_an_assert_which_python_o_would_skip() -> None:
    checks = sorted(HERE.rglob("*.py"))
    assert len(checks) > 5
    skipped = [
        f"{path.name}:{node.lineno}"
        for path in checks
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert skipped == []
