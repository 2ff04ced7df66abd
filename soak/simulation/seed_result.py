"""Result of one seed, for both simulated worlds."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Violation:
    """A broken rule: its name, the evidence, and the number of the step after which it was broken.

    `found_by` is "judge" if the judge found the broken rule, and "database" if PostgreSQL refused a statement. It is
    "crash" if the code raised any other exception.
    """

    rule: str
    evidence: str
    step: int
    found_by: Literal["judge", "database", "crash"] = "judge"

    def __str__(self) -> str:
        return f"step {self.step}: {self.rule}: {self.evidence}"


@dataclass(frozen=True)
class SeedResult:
    """Result of one seed. `stats` counts the steps, the payouts by their last status, and each fault."""

    seed: int
    trace_hash: str
    violations: tuple[Violation, ...]
    stats: Counter[str]
    trace: tuple[str, ...] = field(repr=False)

    @property
    def noticed(self) -> tuple[Violation, ...]:
        """Violations which show that a planted bug was found.

        An unexpected exception does not count. It only shows that the planted code itself is faulty. A refusal by
        PostgreSQL counts, because its guards also protect the money.
        """
        return tuple(violation for violation in self.violations if violation.found_by != "crash")
