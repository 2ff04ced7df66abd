"""Answers to the requests of one dispatcher: how long they take, and if M-Pesa has stopped answering.

M-Pesa is silent if a request waits too long and no request that left later has been answered. One slow request among
many is therefore no silence.
Units: seconds of time.monotonic.
"""

import threading
from collections import deque
from dataclasses import dataclass, field
from statistics import median

LATEST = 100
SHORTEST_PATIENCE = 1.0
# A request is late if it waits for more than this many times the usual answer.
TIMES_USUAL = 4


@dataclass
class Answers:
    """The requests under way by key, and the latest waits for an answer. Thread-safe."""

    _left_at: dict[int, float] = field(default_factory=dict)
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    _newest_answered: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Forget the requests of an earlier run that was cut off. The usual wait is kept."""
        with self._lock:
            self._left_at.clear()

    def left(self, key: int, at: float) -> None:
        """Note that a request leaves at `at`."""
        with self._lock:
            self._left_at[key] = at

    def ended(self, key: int, *, is_answer: bool, at: float) -> None:
        """Note that a request has ended, by an answer of M-Pesa or otherwise. Idempotent."""
        with self._lock:
            left_at = self._left_at.pop(key, None)
            if left_at is not None and is_answer:
                self._waits.append(max(0.0, at - left_at))
                self._newest_answered = max(self._newest_answered, left_at)

    @property
    def usual(self) -> float:
        """The median of the latest waits for an answer, or 0 if there was none."""
        waits = tuple(self._waits)
        return median(waits) if waits else 0.0

    @property
    def patience(self) -> float:
        """The longest wait that is not yet silence."""
        return max(TIMES_USUAL * self.usual, SHORTEST_PATIENCE)

    def silence(self, at: float) -> float | None:
        """Return how long M-Pesa has been silent at `at`, or None if it is not silent."""
        with self._lock:
            oldest = min((left for left in self._left_at.values() if left > self._newest_answered), default=at)
            return at - oldest if at - oldest > self.patience else None
