"""Conformance of services and pure machine, with new events for each commit."""

from collections.abc import Callable

import pytest

from soak.simulation import conformance, seeds
from soak.simulation.pure.bugs import PURE_BUGS

SEQUENCES = 100
BATCH = 10
FIRST = seeds.first_fresh(SEQUENCES)
# Two results with code 0 were not final and named different receipts. The pure machine took them for one message.
# Two requests were opened in one second, the second payout's first. The pure machine sent the first payout again first.
PAST = [1410841762, 2008]
pytestmark = pytest.mark.usefixtures("scratch")


@pytest.mark.parametrize("batch", range(SEQUENCES // BATCH))
def test_services_and_pure_machine_agree_after_every_event(batch: int, assert_clean: Callable[..., None]) -> None:
    # given
    fresh = range(FIRST + batch * BATCH, FIRST + (batch + 1) * BATCH)
    print(f"Sequences {fresh.start} to {fresh.stop - 1}; SIMULATION_SEED={FIRST} runs them again.")

    # when, then
    for seed in fresh:
        assert_clean(seed, conformance.run, "--conform")


@pytest.mark.parametrize("seed", PAST)
def test_past_disagreement_stays_repaired(seed: int, assert_clean: Callable[..., None]) -> None:
    assert_clean(seed, conformance.run, "--conform")


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("timeout read as failure", 5),
        ("code 15 as failure", 2),
        ("not-found as failure", 2),
        ("one status answer as failure", 10),
        ("late success dropped", 1),
        ("foreign address trusted", 0),
        ("known id sent again", 2),
    ],
)
def test_machine_that_lacks_a_guard_disagrees_with_the_services(name: str, seed: int) -> None:
    # given
    lacking = PURE_BUGS[name].machine

    # when
    outcome = conformance.run(seed, machine=lacking)

    # then
    assert [violation.rule for violation in outcome.noticed] == ["Services and machine agree"]
