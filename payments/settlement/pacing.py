"""Pacing of bulk work: rests between chunks while other sessions use the database.

A settlement of a million bets is a long series of large statements. If bettors use all of the machine's processors,
each chunk takes a whole processor from them. A rest in proportion to the chunk gives most of that time back. If no
other session is at work, there is no rest. Source: docs/bench.md, S6.
"""

import time
from collections.abc import Callable

from django.db import connection

# One task works for at most this long. Then it publishes a message, and another task continues.
TASK_SECONDS = 4.0
# Rest as a share of the chunk's time. With this share, other sessions keep three quarters of the throughput that they
# have without our work.
SHARE = 0.75
# The time of a chunk includes its waits for locks, in which it did no work. So the rest is bounded.
LONGEST_REST_SECONDS = 0.5


def others_at_work() -> bool:
    """Return True if another session of this database has a statement or a transaction in progress."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid())"
        )
        (busy,) = cursor.fetchone()
    return bool(busy)


def paced(
    keep_going: Callable[[], bool],
    *,
    others_busy: Callable[[], bool] = others_at_work,
    clock: Callable[[], float] = time.monotonic,
    rest: Callable[[float], None] = time.sleep,
) -> Callable[[], bool]:
    """Wrap `keep_going` so that each call also rests once if other sessions are at work.

    Call the returned function between chunks, outside a transaction.
    """
    began = clock()

    def go_on() -> bool:
        nonlocal began
        if not keep_going():
            return False
        if others_busy():
            rest(min(SHARE * (clock() - began), LONGEST_REST_SECONDS))
        began = clock()
        return True

    return go_on


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Return a function that returns True until this many seconds have passed."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until
