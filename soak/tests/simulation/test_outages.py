"""Outages in the middle of a release at pace, on a virtual clock: one of each kind, and more in the long tests."""

from collections.abc import Callable

import pytest

from soak.simulation import outages, seeds

FRESH = 12
FIRST = seeds.first_fresh(FRESH)
NUMBERS = (0, *(pytest.param(number, marks=pytest.mark.long) for number in range(1, FRESH)))
pytestmark = pytest.mark.usefixtures("scratch")


@pytest.mark.parametrize("number", NUMBERS)
def test_outage_lets_few_requests_leave_and_everybody_is_paid_once(
    number: int, assert_clean: Callable[..., None]
) -> None:
    assert_clean(FIRST + number, outages.run, "--outages")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(len(outages.KINDS)))
def test_same_seed_gives_the_same_outage(seed: int) -> None:
    # given
    once = outages.run(seed, keep_trace=True)

    # when
    again = outages.run(seed, keep_trace=True)

    # then
    assert again.trace == once.trace
    assert again.trace_hash == once.trace_hash
    assert once.stats["requests in an outage"] > 0
