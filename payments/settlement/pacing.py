"""Bulk work gives way: between its chunks it rests while others are at work in the database.

A settlement of a million bets is a long run of large statements. Where bettors use all of the machine's processors,
each chunk takes a whole processor from them; a rest in proportion to it gives most of that back. Nobody else at work,
no rest. Source: docs/bench.md, S6.
"""

import time
from collections.abc import Callable

from django.db import connection

# The longest that one task works before it hands on to another message.
TASK_SECONDS = 4.0
# Of the time that the work before took: so much that others keep three quarters of what they do without us.
SHARE = 0.75
# What waited for a lock was no work of ours.
LONGEST_REST_SECONDS = 0.5


def others_at_work() -> bool:
    """Whether another session of this database is amid a statement or a transaction now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid())"
        )
        (are,) = cursor.fetchone()
    return bool(are)


def giving_way(
    keep_going: Callable[[], bool],
    *,
    busy: Callable[[], bool] = others_at_work,
    clock: Callable[[], float] = time.monotonic,
    rest: Callable[[float], None] = time.sleep,
) -> Callable[[], bool]:
    """`keep_going`, that also rests where others are at work; to be asked between chunks, outside a transaction."""
    began = clock()

    def go_on() -> bool:
        nonlocal began
        if not keep_going():
            return False
        if busy():
            rest(min(SHARE * (clock() - began), LONGEST_REST_SECONDS))
        began = clock()
        return True

    return go_on


def for_seconds(seconds: float) -> Callable[[], bool]:
    """What says whether so many seconds have not passed yet."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until
