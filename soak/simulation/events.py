"""Event loop on a virtual clock, for both simulated worlds.

One seed always makes the same random draws in the same order, so its run is the same every time.
"""

import hashlib
import heapq
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import Any, Literal

from soak.simulation.provider import Provider
from soak.simulation.seed_result import Violation

FINISH_WITHIN = timedelta(
    hours=52
)  # Counts from the stop of the faults. It is longer than PAYOUT_REVIEW_AFTER and all delays.
Task = Generator[float, None, None]


class EventLoop(ABC):
    """Events in the order of their times, the rate of each fault, the trace, and the violations."""

    provider: Provider[Any, Any, Any]
    faults_stop_at: datetime

    def __init__(
        self,
        random: Random,
        start: datetime,
        rates: Mapping[str, float],
        fixed_rates: Mapping[str, float],
        keep_trace: bool,
    ) -> None:
        self.random = random
        self.start = self.now = start
        self.rates = self.draw_rates(rates, fixed_rates)
        self.violations: list[Violation] = []
        self.stats: Counter[str] = Counter()
        self.steps = 0
        self.trace: list[str] = []
        self._keep_trace = keep_trace
        self._hash = hashlib.sha256()
        self._events: list[tuple[datetime, int, str, Callable[[], None]]] = []
        self._sequence = itertools.count()

    def draw_rates(self, highest: Mapping[str, float], fixed_rates: Mapping[str, float]) -> dict[str, float]:
        """Draw the rate of each fault. `fixed_rates` replaces the drawn rate of some faults.

        About half of the faults are off, so that a run gets far enough for the other faults to matter.
        """
        drawn = {
            fault: self.random.uniform(0.05, 1.0) * rate if self.random.random() < 0.5 else 0.0
            for fault, rate in highest.items()
        }
        return {fault: fixed_rates.get(fault, rate) for fault, rate in drawn.items()}

    def run(self) -> None:
        """Run until every payout is final, or until a rule is broken."""
        self.begin()
        while self._events and not self.violations:
            label, step = self.next_event()
            if self.now > self.faults_stop_at + FINISH_WITHIN:
                break
            self.do_step(label, step)
            if self.provider.faults_stopped and not self.violations and self.is_quiet() and not self.final_pass():
                break
        if not self.violations:
            self.judge_end()
        self.stats["steps"] = self.steps
        self.stats.update({fault: count for fault, count in self.provider.struck.items() if count})

    @abstractmethod
    def begin(self) -> None:
        """Schedule the first events."""

    @abstractmethod
    def do_step(self, label: str, step: Callable[[], None]) -> None:
        """Do one step, and judge the state after it."""

    @abstractmethod
    def is_quiet(self) -> bool:
        """Return True if nothing can happen without a person."""

    @abstractmethod
    def final_pass(self) -> bool:
        """Let people act when nothing else can happen. Returns False if people have nothing to do."""

    @abstractmethod
    def judge_end(self) -> None:
        """Judge the state at the end of the run."""

    def next_event(self) -> tuple[str, Callable[[], None]]:
        """Remove the next event from the queue, and move the clock to its time."""
        time, _, label, step = heapq.heappop(self._events)
        self.now = max(time, self.now + timedelta(milliseconds=1))
        return label, step

    def schedule(self, seconds: float, label: str, step: Callable[[], None]) -> None:
        """Do `step` in `seconds` from now."""
        heapq.heappush(self._events, (self.now + timedelta(seconds=seconds), next(self._sequence), label, step))

    def waiting(self) -> list[str]:
        """Return the labels of all scheduled events."""
        return [label for _, _, label, _ in self._events]

    def strikes(self, fault: str) -> bool:
        """Draw one random number, and return True if it makes the fault happen now. Counts each fault."""
        struck = self.random.random() < self.rates[fault] and not self.provider.faults_stopped
        if struck:
            self.stats[fault] += 1
        return struck

    def named(self, text: str) -> str:
        """Replace names that differ between two runs of one seed.

        A world whose database draws ids overrides this method.
        """
        return text

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{(self.now - self.start).total_seconds():10.3f} {self.named(text)}"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.trace.append(line)

    def accuse(self, rule: str, evidence: str, found_by: Literal["judge", "database", "crash"] = "judge") -> None:
        """Record a violation."""
        self.violations.append(Violation(rule, self.named(evidence), self.steps, found_by))

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()
