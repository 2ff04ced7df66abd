"""Seeds of the pure machine in every test run; `make soak` runs more."""

from collections.abc import Callable

from soak.simulation import seeds
from soak.simulation.pure import world

FRESH = 2_000
FIRST = seeds.first_fresh(FRESH)


def test_no_fault_and_no_order_loses_or_doubles_a_payment_of_the_pure_machine(
    assert_clean: Callable[..., None],
) -> None:
    # given
    print(f"Seeds {FIRST} to {FIRST + FRESH - 1}; SIMULATION_SEED={FIRST} runs them again.")

    # when, then
    for seed in range(FIRST, FIRST + FRESH):
        assert_clean(seed, world.run, "--pure")


def test_same_seed_gives_the_same_trace() -> None:
    # given
    once = world.run(FIRST, keep_trace=True)

    # when
    again = world.run(FIRST, keep_trace=True)

    # then
    assert again.trace == once.trace
    assert again.trace_hash == once.trace_hash
    assert world.run(FIRST + 1).trace_hash != once.trace_hash
