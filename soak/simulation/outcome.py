"""Outcome of one seed, for both simulated worlds."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Violation:
    """A broken rule: its name, the evidence, and the step of the trace after which it showed.

    `found_by` is "judge" for a rule that the judge checked, "database" for a statement that PostgreSQL refused, and
    "crash" for any other exception.
    """

    rule: str
    evidence: str
    step: int
    found_by: Literal["judge", "database", "crash"] = "judge"

    def __str__(self) -> str:
        return f"step {self.step}: {self.rule}: {self.evidence}"


@dataclass(frozen=True)
class Outcome:
    """Result of one seed. `stats` counts steps, payouts by their last status, and each fault that struck."""

    seed: int
    trace_hash: str
    violations: tuple[Violation, ...]
    stats: Counter[str]
    trace: tuple[str, ...] = field(repr=False)

    @property
    def noticed(self) -> tuple[Violation, ...]:
        """Violations that count for a planted bug.

        An exception of the code does not count: planted code that is itself broken proves nothing about the judge.
        A refusal by PostgreSQL counts, because its guards are part of what protects the money.
        """
        return tuple(violation for violation in self.violations if violation.found_by != "crash")
