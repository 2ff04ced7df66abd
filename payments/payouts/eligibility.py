"""Whether a payout may leave: the one rule, which everything that sends asks."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import connection

# A due payout `t`. A retry asks first what became of the request that failed, and so does a report that it was paid
# after all. A payout that one request has paid gets no other request.
DUE = """
    t.status = 'PENDING' AND t.destination = 'mpesa' AND t.type = 'PAYOUT' AND t.due_at <= %(at)s
    AND NOT EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = t.id
        AND (a.state = 'PAID' OR a.state = 'FAILED' AND a.next_query_at IS NOT NULL))
"""
# A settlement `s` whose payouts are released: all of them, or as many as its canary has places for.
RELEASED = """
    s.state = 'SETTLED' AND s.stopped_at IS NULL AND s.release_at <= %(at)s
    AND (s.release_open OR s.id = ANY (%(in_canary)s::bigint[]))
"""
_MAY_LEAVE = f"""
    SELECT t.id FROM payments_transaction t LEFT JOIN payments_settlement s ON s.id = t.settlement_id
    WHERE t.id = ANY (%(payouts)s::bigint[]) AND {DUE} AND (s.id IS NULL OR {RELEASED})
"""  # noqa: S608 - our own words


def may_leave(transaction_ids: Sequence[int], *, in_canary: Sequence[int], at: datetime) -> set[int]:
    """Return the payouts among these that may leave at `at`.

    `in_canary`: the settlements whose canary has a place for one more payout (`canary.in_canary`).
    Locks: none; a claim asks again under the lock.
    """
    parameters: dict[str, Any] = {"payouts": list(transaction_ids), "in_canary": list(in_canary), "at": at}
    with connection.cursor() as cursor:
        cursor.execute(_MAY_LEAVE, parameters)
        return {transaction_id for (transaction_id,) in cursor.fetchall()}
