"""Planted bugs: each switches off one guard in one run of the simulation, which must notice.

A planted bug puts code that lacks the guard in the place of the real code, for one run. If PostgreSQL holds the same
guard, that one is dropped too, inside the transaction that the run rolls back.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

from soak.simulation import world
from soak.simulation.outcome import Outcome
from soak.simulation.world import World

Planter = Callable[[World], Iterator[None]]

# Faults that are likely, for the guards that only matter when they strike.
RESENT = {"answer lost": 0.4, "not found, untruly": 0.6, "slow": 0.3}
FORGED = {"forger": 0.8}
DYING = {"worker dies inside": 0.3}

NO_ATTEMPT_GUARD = "ALTER TABLE payments_attempt DISABLE TRIGGER attempt_moves"
NO_PAYOUT_GUARD = "ALTER TABLE payments_transaction DISABLE TRIGGER transaction_moves"


@dataclass(frozen=True)
class Bug:
    """A guard that `plant` switches off, the rule that this breaks, and the faults that the guard is there for.

    `seed` is one that notices.
    """

    rule: str
    plant: Callable[[World], AbstractContextManager[None]]
    likely: dict[str, float]
    seed: int

    def run(self, seed: int, *, planted: bool = True, keep_trace: bool = False) -> Outcome:
        """Run one seed in which those faults are likely, with the guard switched off or, to compare, in place."""
        return world.run(seed, plant=self.plant if planted else None, likely=self.likely, keep_trace=keep_trace)


class Catalogue(dict[str, Bug]):
    """Planted bugs by name, in the order in which they were added."""

    def bug(
        self, name: str, rule: str, likely: dict[str, float] | None = None, *, seed: int = 0
    ) -> Callable[[Planter], None]:
        """Add the decorated generator, which plants the bug, runs the world in its `yield`, and removes the bug."""

        def add(plant: Planter) -> None:
            self[name] = Bug(rule, contextmanager(plant), likely or {}, seed)

        return add


@contextmanager
def instead_of(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Have `owner` use `other` under this name."""
    original = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, original)


def without(*statements: str) -> None:
    """Drop guards of the database, by these statements, until this transaction is rolled back."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
