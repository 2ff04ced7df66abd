"""The simulated world with staff: holds, re-issues, the limit of requests, and a second payment under one id."""

from collections.abc import Callable

import pytest

from soak.simulation import seeds, staffed

FRESH = 20
BATCH = 5
FIRST = seeds.first_fresh(FRESH)
BATCHES = (0, *(pytest.param(batch, marks=pytest.mark.long) for batch in range(1, FRESH // BATCH)))
pytestmark = pytest.mark.usefixtures("scratch")


@pytest.mark.parametrize("batch", BATCHES)
def test_no_act_of_staff_loses_or_doubles_a_payment(batch: int, assert_clean: Callable[..., None]) -> None:
    for seed in range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH):
        assert_clean(seed, staffed.run, "--staff")


def test_same_seed_gives_the_same_acts() -> None:
    # given
    once = staffed.run(FIRST, keep_trace=True)

    # when
    again = staffed.run(FIRST, keep_trace=True)

    # then
    assert again.trace == once.trace
    assert again.trace_hash == once.trace_hash
