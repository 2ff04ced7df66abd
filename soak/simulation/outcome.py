"""What one seed came to, in whichever world it was lived."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Violation:
    """What must never be and was: the rule, what broke it, and the step of the trace after which it showed."""

    rule: str
    what: str
    step: int

    def __str__(self) -> str:
        return f"step {self.step}: {self.rule}: {self.what}"


@dataclass(frozen=True)
class Outcome:
    """What one seed came to. `stats` counts steps, payouts by their last status, and each fault that struck."""

    seed: int
    trace_hash: str
    violations: tuple[Violation, ...]
    stats: Counter[str]
    trace: tuple[str, ...] = field(repr=False)
