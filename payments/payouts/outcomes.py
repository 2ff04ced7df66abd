"""Outcomes of the latest requests, in the order in which we learned them.

A request has an outcome when it is proven paid or failed, or when it is in doubt. A request that is under way and has
no result when its first status query is due counts as a doubt too. Requests under way before that time do not count.
A doubt ends when the same id is sent again: M-Pesa did not know the request, so it is under way like a new one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import connection

from payments.mpesa import result_codes

# Fewer outcomes than this open no breaker.
FEWEST = 5
_EVER = datetime(1970, 1, 1, tzinfo=UTC)
# A failure for a fault of ours has its own breaker. A failed request that never left says nothing about M-Pesa.
_OURS = [code for code, meaning in result_codes.MEANING.items() if meaning.fault == "ours"]


@dataclass(frozen=True)
class Latest:
    """Numbers of the latest outcomes: all, in doubt, and failed."""

    count: int
    in_doubt: int
    failed: int


# The first part reads the index attempt_outcome backwards, the second part attempt_to_ask_about. Each reads about as
# many rows as the window, however many attempts there are.
_LATEST = """
    SELECT count(*), count(*) FILTER (WHERE state NOT IN ('PAID', 'FAILED', 'REVERSED')),
        count(*) FILTER (WHERE is_failure)
    FROM (
        SELECT * FROM (
            (SELECT state, coalesce(closed_at, doubted_at) AS learned_at,
                state = 'FAILED' AND first_sent_at IS NOT NULL AND result_code <> ALL (%(ours)s) AS is_failure
             FROM payments_attempt
             WHERE (closed_at IS NOT NULL OR doubted_at IS NOT NULL)
               AND coalesce(closed_at, doubted_at) > %(since)s AND posted_at > %(since)s
               AND NOT (state IN ('SENDING', 'ACCEPTED') AND posted_at > doubted_at)
             ORDER BY coalesce(closed_at, doubted_at) DESC LIMIT %(window)s)
            UNION ALL
            (SELECT state, next_query_at, false
             FROM payments_attempt
             WHERE next_query_at IS NOT NULL AND next_query_at <= %(at)s
               AND (doubted_at IS NULL OR posted_at > doubted_at)
               AND state IN ('SENDING', 'ACCEPTED') AND posted_at > %(since)s
             ORDER BY next_query_at DESC LIMIT %(window)s)
        ) AS learned ORDER BY learned_at DESC LIMIT %(window)s
    ) AS latest
"""


def latest(*, since: datetime | None, at: datetime, window: int) -> Latest:
    """Count the latest `window` outcomes of requests that were POSTed after `since`. Locks: none."""
    parameters: dict[str, Any] = {"since": since or _EVER, "at": at, "window": window, "ours": _OURS}
    with connection.cursor() as cursor:
        cursor.execute(_LATEST, parameters)
        count, in_doubt, failed = cursor.fetchone()
    return Latest(count, in_doubt, failed)
