"""Watermarks: the id up to which an append-only table is summed, without blocking its writers.

The statement that inserts a row draws its id and holds a lock on the table until its transaction ends. Take the last id
drawn and the transactions that write at that moment. Once all of them have ended, every row up to that id is visible or
was rolled back. So no row can appear below it.
"""

import time
from collections.abc import Callable

from django.db import connection, transaction

from markets.models import Watermark

PATIENCE_SECONDS = 2.0
STEP = 250_000

# Other transactions that write to a table now. One that still waits for its lock has drawn no id.
_WRITERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE relation = %s::regclass AND granted AND pid <> pg_backend_pid() AND mode IN
        ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"""


def advance(table: str, add: Callable[[int, int], None], *, keep_going: Callable[[], bool]) -> int:
    """Sum new rows of `table` step by step and return the new watermark.

    Each step calls `add(low, high)`, which sums the rows with low < id <= high. The same transaction moves the
    watermark, so each row is summed once, even if the process dies. If a transaction writes for longer than
    PATIENCE_SECONDS, nothing is summed and the next call tries again.
    Locks: the Watermark.
    """
    end = _last_final_id(table)
    Watermark.objects.get_or_create(table=table)
    while True:
        with transaction.atomic(durable=True):
            mark = Watermark.objects.select_for_update(no_key=True).get(table=table)
            if end is None or mark.up_to >= end:
                return mark.up_to
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = 0")
            low, mark.up_to = mark.up_to, min(mark.up_to + STEP, end)
            add(low, mark.up_to)
            mark.save(update_fields=["up_to"])
        if not keep_going():
            return mark.up_to


def _last_final_id(table: str) -> int | None:
    """Return the last id drawn once all transactions that were writing have ended, or None if one still writes."""
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
