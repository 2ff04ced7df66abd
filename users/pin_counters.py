"""Arithmetic of the limits on wrong PINs: locks of one number or device, and budgets of an address and of all.

This module knows no database and no clock. users/pin_limits.py keeps the counters in PostgreSQL.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

# Five wrong PINs lock a number for 15 minutes. Each further five lock it twice as long, up to a day.
TRIES_BEFORE_LOCK = 5
FIRST_LOCK = timedelta(minutes=15)
LONGEST_LOCK = timedelta(hours=24)
# Wrong PINs that are older than this count no more, and their row may be deleted.
FORGOTTEN_AFTER = timedelta(days=30)
# Key of the counter of all untrusted callers together.
OVERALL = "overall"


@dataclass(frozen=True)
class Counter:
    """State of one counter.

    `wrong`: tries that were wrong or have no result yet.
    `until`: for a lock its end, or the time of the last try; for a budget the time at which it is whole again.
    """

    wrong: int
    until: datetime


class Limit(Protocol):
    """Rule of a counter: until when it refuses tries, and its next state after a try."""

    def refused_until(self, counter: Counter, at: datetime) -> datetime | None: ...

    def after_try(self, counter: Counter, at: datetime) -> Counter: ...

    def after_taking_back(self, counter: Counter, at: datetime) -> Counter: ...


@dataclass(frozen=True)
class Lock:
    """Lock of one number, device or member. A right PIN deletes the counter."""

    def refused_until(self, counter: Counter, at: datetime) -> datetime | None:
        """Return the end of the lock, or None if a try is allowed."""
        locked = counter.wrong > 0 and counter.wrong % TRIES_BEFORE_LOCK == 0
        return counter.until if locked and counter.until > at else None

    def after_try(self, counter: Counter, at: datetime) -> Counter:
        """Return the counter with one more wrong PIN. Every fifth wrong PIN begins a lock."""
        wrong = 1 if at - counter.until > FORGOTTEN_AFTER else counter.wrong + 1
        if wrong % TRIES_BEFORE_LOCK:
            return Counter(wrong, at)
        return Counter(wrong, at + min(FIRST_LOCK * 2 ** min(wrong // TRIES_BEFORE_LOCK - 1, 10), LONGEST_LOCK))

    def after_taking_back(self, counter: Counter, at: datetime) -> Counter:
        """Return the counter without a try whose PIN was not checked."""
        return Counter(max(counter.wrong - 1, 0), at)


@dataclass(frozen=True)
class Budget:
    """Number of wrong PINs that many numbers share: `burst` at once, then `an_hour` in each hour."""

    burst: int
    an_hour: int

    @property
    def refill(self) -> timedelta:
        """Time after which one more try is allowed."""
        return timedelta(hours=1) / self.an_hour

    def refused_until(self, counter: Counter, at: datetime) -> datetime | None:
        """Return the time of the next allowed try, or None if a try is allowed now."""
        allowed = max(counter.until, at) + self.refill - self.burst * self.refill
        return allowed if allowed > at else None

    def after_try(self, counter: Counter, at: datetime) -> Counter:
        """Return the counter with one try less to spend."""
        return Counter(counter.wrong + 1, max(counter.until, at) + self.refill)

    def after_taking_back(self, counter: Counter, at: datetime) -> Counter:
        """Return the counter with one try given back, because its PIN was right or was not checked."""
        return Counter(max(counter.wrong - 1, 0), counter.until - self.refill)


@dataclass(frozen=True)
class Limits:
    """Limits of all counters. `address` limits one source address, `overall` all untrusted callers together."""

    lock: Lock = field(default_factory=Lock)
    address: Budget = Budget(burst=20, an_hour=2)
    overall: Budget = Budget(burst=200, an_hour=60)

    def of(self, key: str) -> Limit:
        """Return the limit of a counter by its key, such as `number:…`."""
        kind = key.partition(":")[0]
        if kind == "address":
            return self.address
        return self.overall if kind == OVERALL else self.lock
