"""Up to which id a table to which rows are only added may be summed for good, without keeping anybody from adding.

An id is drawn by the statement that inserts its row, which holds the table's lock until its transaction ends. So once
all who were writing at a moment are through, every row whose id was drawn before that moment is there or never will be.
"""

import time
from collections.abc import Callable

from django.db import connection, transaction

from markets.models import Watermark

PATIENCE_SECONDS = 2.0
STEP = 250_000

# Who writes to a table now, but for ourselves; a lock that is only waited for has drawn no id.
_WRITERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE relation = %s::regclass AND granted AND pid <> pg_backend_pid() AND mode IN
        ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"""


def advance(table: str, add: Callable[[int, int], None], *, keep_going: Callable[[], bool]) -> int:
    """Have `add` sum the rows of `table` whose ids lie above the first number and not above the second, step by step.

    Each step is a transaction together with the mark it moves, so a row is summed once, whatever dies. Where somebody
    writes for longer than PATIENCE_SECONDS, nothing is done: the next call tries again. Returns the mark.
    Locks: the Watermark.
    """
    end = _settled(table)
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


def _settled(table: str) -> int | None:
    """The last id drawn, once nobody who may have drawn it or one before is writing; None where somebody still is."""
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
