"""The database's clock, read by every process, so that the clocks of hosts do not matter.

Leases, horizons, holds and limits compare times that several hosts wrote. A worker whose own clock is minutes ahead
would ask too early, and one that is minutes behind would send an id again after its horizon.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import Error, connection
from django.utils import timezone

log = logging.getLogger(__name__)

MEASURED_EVERY_SECONDS = 60.0
# After a failure, so that an outage of the database costs no connection attempt for each call.
RETRIED_AFTER_SECONDS = 5.0
# A slower answer says too little about the moment at which the server read its clock.
LONGEST_ROUND_TRIP_SECONDS = 0.5


def elapsed() -> float:
    """Return seconds of a clock that nobody sets. On Linux it also counts while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def database_time() -> datetime:
    """Read the database's clock. Raises: django.db.Error."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    return now


@dataclass(frozen=True)
class _Measurement:
    """The database's time at one moment of `elapsed`."""

    at: datetime
    elapsed: float


class DatabaseClock:
    """A clock that measures the database's time once a minute, and counts the seconds in between.

    `host_time` is used only until the first measurement succeeds.
    """

    def __init__(
        self,
        *,
        measure: Callable[[], datetime] = database_time,
        elapsed: Callable[[], float] = elapsed,
        host_time: Callable[[], datetime] = timezone.now,
    ) -> None:
        self._measure = measure
        self._elapsed = elapsed
        self._host_time = host_time
        self._measuring = threading.Lock()
        self._last: _Measurement | None = None
        self._due = float("-inf")

    def now(self) -> datetime:
        """Return the database's time, without a query unless a minute has passed. Units: aware, UTC."""
        # Other threads go on with the last measurement meanwhile.
        if self._elapsed() >= self._due and self._measuring.acquire(blocking=False):
            try:
                self._measure_now()
            finally:
                self._measuring.release()
        last = self._last
        if last is None:
            return self._host_time()
        return last.at + timedelta(seconds=self._elapsed() - last.elapsed)

    def _measure_now(self) -> None:
        began = self._elapsed()
        try:
            at = self._measure()
        except Error as error:
            log.warning("The database's clock cannot be read; the last measurement stays: %s", error)
            self._due = began + RETRIED_AFTER_SECONDS
            return
        ended = self._elapsed()
        if self._last is not None and ended - began > LONGEST_ROUND_TRIP_SECONDS:
            self._due = ended + RETRIED_AFTER_SECONDS
            return
        self._last = _Measurement(at, (began + ended) / 2)
        self._due = ended + MEASURED_EVERY_SECONDS
