"""Watermarks: ids up to which append-only tables are summed, without blocking writers.

An INSERT locks the table, takes the next id of the table's sequence, and keeps the lock until its transaction ends. We
read the last id that was taken, and then the transactions that hold such a lock. When all these transactions have
ended, every row up to that id is visible or was rolled back. No new row can then appear up to that id.
"""

import time
from collections.abc import Callable

from django.db import connection, transaction

from markets.models import Watermark

PATIENCE_SECONDS = 2.0
STEP = 250_000

# Other transactions that write to a table now. A transaction that still waits for its lock has taken no id.
_WRITERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE relation = %s::regclass AND granted AND pid <> pg_backend_pid() AND mode IN
        ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"""


def advance(table: str, add: Callable[[int, int], None], *, keep_going: Callable[[], bool]) -> int:
    """Sum new rows of `table` step by step and return the new watermark.

    Each step calls `add(low, high)`, which sums the rows with low < id <= high. The same transaction moves the
    watermark, so each row is summed once, even if the process is killed. If a transaction writes for longer than
    PATIENCE_SECONDS, nothing is summed and the next call tries again.
    Locks: the Watermark.
    """
    end = _last_final_id(table)
    Watermark.objects.get_or_create(table=table)
    while True:
        with transaction.atomic(durable=True):
            watermark = Watermark.objects.select_for_update(no_key=True).get(table=table)
            if end is None or watermark.up_to >= end:
                return watermark.up_to
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = 0")
            low, watermark.up_to = watermark.up_to, min(watermark.up_to + STEP, end)
            add(low, watermark.up_to)
            watermark.save(update_fields=["up_to"])
        if not keep_going():
            return watermark.up_to


def _last_final_id(table: str) -> int | None:
    """Return the last id that was taken, when all transactions that were writing have ended.

    Returns None if one of them has not ended after PATIENCE_SECONDS.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {table}_id_seq")  # noqa: S608 - ours
        (last,) = cursor.fetchone()
        cursor.execute(_WRITERS, [table])
        writing = {row[0] for row in cursor.fetchall()}
        until = time.monotonic() + PATIENCE_SECONDS
        while writing:
            if time.monotonic() > until:
                return None
            time.sleep(0.02)
            cursor.execute(_WRITERS, [table])
            writing &= {row[0] for row in cursor.fetchall()}
    return int(last)
