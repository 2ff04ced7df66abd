"""Planted bugs of the pure machine: a broken rule must reveal each bug."""

from datetime import datetime

import pytest

from soak.simulation.pure.bugs import PURE_BUGS, PureBug
from soak.simulation.pure.command import MOST_SEEDS
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.rows import Attempt, Payout
from soak.simulation.pure.world import World


@pytest.mark.parametrize("name", PURE_BUGS)
def test_switched_off_guard_is_found(name: str) -> None:
    # given
    bug = PURE_BUGS[name]

    # when
    caught = next((seed for seed in range(MOST_SEEDS) if bug.run(seed).noticed), None)

    # then
    assert caught is not None, f"None of {MOST_SEEDS} seeds finds the bug."
    assert bug.run(caught, planted=False).violations == ()


@pytest.mark.parametrize("error", [TypeError, AttributeError, NameError, KeyError, ValueError, AssertionError])
def test_crash_of_planted_code_is_a_violation_but_does_not_count(error: type[Exception]) -> None:
    # given
    class Broken(Machine):
        def claim(self, *, at: datetime, limit: int, only: Payout | None = None) -> list[Attempt]:
            raise error("the planted code is broken")

    # when
    outcome = PureBug("none: the planted code itself is broken", Broken, World, {}).run(0)

    # then
    assert [violation.found_by for violation in outcome.violations] == ["crash"]
    assert outcome.noticed == ()
