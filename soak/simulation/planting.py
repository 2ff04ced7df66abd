"""Planted bugs: each switches off one guard for one run of the simulation.

For one run, a planted bug replaces the real code with code that lacks the guard. If PostgreSQL enforces the same rule,
the bug disables that guard of PostgreSQL too. The rollback at the end of the run restores that guard. The simulation
must report a broken rule.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

from soak.simulation import world
from soak.simulation.seed_result import SeedResult
from testing import database

# A planter takes the world in which it plants its bug: world.World, or outages.Outage.
Planter = Callable[[Any], Iterator[None]]

# Raised rates of faults, for guards that matter only if such a fault happens.
LIKELY_RESENDS = {"answer lost": 0.4, "false not-found answer": 0.6, "slow": 0.3}
LIKELY_FORGERIES = {"forger": 0.8}
LIKELY_WORKER_DEATHS = {"worker dies at a failpoint": 0.3}

NO_ATTEMPT_GUARD = "ALTER TABLE payments_attempt DISABLE TRIGGER attempt_moves"
NO_PAYOUT_GUARD = "ALTER TABLE payments_transaction DISABLE TRIGGER transaction_moves"


@dataclass(frozen=True)
class Bug:
    """A planted bug. `plant` switches off a guard, and `rule` is broken without that guard.

    `fixed_rates` sets the rates of some faults, so that the case that the guard prevents happens often. The run of
    `seed`, or of one of the next seeds, is known to find the bug. `simulate` runs one seed of the simulated world in
    which the guard matters.
    """

    rule: str
    plant: Callable[[Any], AbstractContextManager[None]]
    fixed_rates: dict[str, float]
    seed: int
    simulate: Callable[..., SeedResult] = world.run

    def run(self, seed: int, *, planted: bool = True, keep_trace: bool = False) -> SeedResult:
        """Run one seed with the bug and its `fixed_rates`. With `planted=False` the guard stays on, for comparison."""
        return self.simulate(
            seed, plant=self.plant if planted else None, fixed_rates=self.fixed_rates, keep_trace=keep_trace
        )


class Catalogue(dict[str, Bug]):
    """Planted bugs by name, in the order in which they were added."""

    def bug(
        self,
        name: str,
        rule: str,
        fixed_rates: dict[str, float] | None = None,
        *,
        seed: int = 0,
        simulate: Callable[..., SeedResult] = world.run,
    ) -> Callable[[Planter], None]:
        """Register the decorated generator as a bug. It plants the bug, yields during the run, and removes the bug."""

        def add(plant: Planter) -> None:
            self[name] = Bug(rule, contextmanager(plant), fixed_rates or {}, seed, simulate)

        return add


@contextmanager
def instead_of(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Replace the attribute `name` of `owner` with `other`, and restore it at the end."""
    original = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, original)


def disable_guards(*statements: str) -> None:
    """Run these statements, which disable guards in the database. A rollback restores the guards."""
    with database.as_owner(), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
