"""Fair queue across settlements: each settlement sends a few payouts per round.

A small market therefore does not wait behind a large one. The index `transaction_due` begins with the settlement. One
look-up in this index finds the next settlement with a due payout, however large the settlements before it are. The
oldest payouts of a settlement are sent first. If more settlements wait than one round can serve, the next round begins
after the settlement served last.

Requests that M-Pesa turned away go first, because their id may be sent again for a limited time only. Their number is
bounded by the number of requests in flight, so they cannot block the queue for long.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, zip_longest
from typing import Any

from django.db import connection

from payments.models import Transaction
from payments.payouts import breakers, eligibility
from payments.payouts.sending import canary
from payments.policy import Policy

MOST_SETTLEMENTS = 100


@dataclass(frozen=True)
class QueuedPayout:
    """A locked payout that may be sent now, with the number of its last attempt and a flag for an open attempt.

    `skips_queue`: the payout's request is sent again, so it did not wait for its settlement's turn. Payout columns that
    a claim does not need are deferred.
    """

    payout: Transaction
    last_number: int
    has_open_attempt: bool
    skips_queue: bool


_NEXT_SETTLEMENT = """
    SELECT t.settlement_id FROM payments_transaction t
    WHERE t.status = 'PENDING' AND t.due_at <= %(at)s AND t.settlement_id > {after}
    ORDER BY t.settlement_id LIMIT 1
"""
# Payouts without a settlement have no hold and no canary. Together they count as settlement 0.
NO_SETTLEMENT = 0
_WAITING_SETTLEMENTS = f"""
    WITH RECURSIVE due (id) AS (
        ({_NEXT_SETTLEMENT.format(after="%(after)s")})
        UNION ALL
        SELECT ({_NEXT_SETTLEMENT.format(after="due.id")}) FROM due WHERE due.id < %(last)s
    )
    (SELECT {NO_SETTLEMENT}::bigint WHERE %(after)s = 0
       AND EXISTS (SELECT FROM payments_transaction t WHERE t.settlement_id IS NULL AND {eligibility.DUE}))
    UNION ALL
    (SELECT s.id FROM due CROSS JOIN LATERAL (SELECT * FROM payments_settlement WHERE id = due.id OFFSET 0) s
     WHERE due.id <= %(last)s AND {eligibility.RELEASED}
       AND EXISTS (SELECT FROM payments_transaction t WHERE t.settlement_id = s.id AND {eligibility.DUE})
     LIMIT %(limit)s)
    LIMIT %(limit)s
"""  # noqa: S608 - fragments of eligibility
# Requests that never left us, or that M-Pesa turned away: the same id is sent again.
_LOCK_TURNED_AWAY = f"""
    SELECT t.id, t.user_id, t.settlement_id, t.amount, t.phone_number, t.reissued_to, t.external_ref,
        t.due_at, w.number AS last_number, true AS has_open_attempt, true AS skips_queue
    FROM payments_attempt w JOIN payments_transaction t ON t.id = w.transaction_id
    LEFT JOIN payments_settlement s ON s.id = t.settlement_id
    WHERE w.state = 'WAITING' AND {eligibility.DUE} AND (s.id IS NULL OR {eligibility.RELEASED})
    ORDER BY w.first_sent_at, w.opened_at, w.id LIMIT %(limit)s FOR NO KEY UPDATE OF t SKIP LOCKED
"""  # noqa: S608 - fragments of eligibility
# The payout columns that a claim needs, then a summary of the payout's earlier attempts.
_LOCK_DUE = """
    SELECT taken.*, coalesce(tried.last_number, 0) AS last_number, coalesce(tried.is_open, false) AS has_open_attempt,
        false AS skips_queue
    FROM unnest(%(ids)s::bigint[]) AS chosen (id) CROSS JOIN LATERAL (
        SELECT t.id, t.user_id, t.settlement_id, t.amount, t.phone_number, t.reissued_to, t.external_ref,
            t.due_at
        FROM payments_transaction t WHERE {condition} AND t.id <> ALL (%(already_taken)s::bigint[]) AND {due}
        ORDER BY t.due_at, t.id LIMIT %(per_settlement)s FOR NO KEY UPDATE SKIP LOCKED) AS taken
    CROSS JOIN LATERAL (
        SELECT max(a.number) AS last_number,
            bool_or(a.state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT')) AS is_open
        FROM payments_attempt a WHERE a.transaction_id = taken.id) AS tried
"""
_LOCK_OF_SETTLEMENTS = _LOCK_DUE.format(condition="t.settlement_id = chosen.id", due=eligibility.DUE)
_LOCK_WITHOUT_SETTLEMENT = _LOCK_DUE.format(condition="t.settlement_id IS NULL", due=eligibility.DUE)
_LOCK_BY_ID = _LOCK_DUE.format(condition="t.id = chosen.id", due=eligibility.DUE)


def any_due(*, at: datetime, policy: Policy) -> bool:
    """Return True if a payout may leave now."""
    return bool(_waiting_settlements(at=at, policy=policy, after=0, limit=1))


def take(*, at: datetime, policy: Policy, limit: int, after: int) -> list[QueuedPayout]:
    """Lock and return up to `limit` payouts that may leave now, in the caller's transaction.

    Requests that M-Pesa turned away come first, then the settlements in rounds, beginning after the settlement `after`.
    While a breaker is open, these requests do not come first. A probe must be an ordinary payout, not a request that
    M-Pesa has already turned away.
    Locks: the returned Transactions (skipping locked ones).
    """
    turned_away: list[QueuedPayout] = []
    if not breakers.any_open():
        in_canary = canary.in_canary(at=at, policy=policy)
        turned_away = _lock(_LOCK_TURNED_AWAY, {"at": at, "in_canary": in_canary, "limit": limit})
    ids = [queued.payout.pk for queued in turned_away]
    return turned_away + _take_in_rounds(ids, limit - len(turned_away), after=after, at=at, policy=policy)


def _take_in_rounds(
    taken_before: list[int], limit: int, *, after: int, at: datetime, policy: Policy
) -> list[QueuedPayout]:
    """Lock and return up to `limit` payouts other than `taken_before`, the oldest of each settlement first."""
    settlements = _waiting_settlements(at=at, policy=policy, after=after, limit=min(limit, MOST_SETTLEMENTS))
    taken: dict[int, list[QueuedPayout]] = {settlement_id: [] for settlement_id in settlements}
    already_taken, count = taken_before, 0
    while settlements and count < limit:
        per_settlement = -(-(limit - count) // len(settlements))
        taken_from: Counter[int] = Counter()
        for queued in _lock_of_settlements(settlements, already_taken, per_settlement, at):
            settlement_id = queued.payout.settlement_id or NO_SETTLEMENT
            taken[settlement_id].append(queued)
            taken_from[settlement_id] += 1
        count += taken_from.total()
        already_taken = taken_before + [queued.payout.pk for payouts in taken.values() for queued in payouts]
        # A settlement with fewer payouts than `per_settlement` has none left.
        settlements = [settlement_id for settlement_id in settlements if taken_from[settlement_id] == per_settlement]
    rounds = chain.from_iterable(zip_longest(*taken.values()))
    return [queued for queued in rounds if queued is not None][:limit]


def take_by_id(transaction_id: int, *, at: datetime) -> list[QueuedPayout]:
    """Lock and return the payout with this id if it is due. The caller checks that its settlement is released.

    Locks: the Transaction (skipped if another worker holds it).
    """
    return _lock(_LOCK_BY_ID, {"at": at, "ids": [transaction_id], "already_taken": [], "per_settlement": 1})


def _waiting_settlements(*, at: datetime, policy: Policy, after: int, limit: int) -> list[int]:
    """Return ids of settlements with payouts that may leave now: ids above `after`, then ids up to `after`."""
    parameters: dict[str, Any] = {"at": at, "in_canary": canary.in_canary(at=at, policy=policy)}
    ids: list[int] = []
    with connection.cursor() as cursor:
        for first, last in ((after, 2**62), (0, after)):
            if len(ids) < limit and first < last:
                bounds = {"after": first, "last": last, "limit": limit - len(ids)}
                cursor.execute(_WAITING_SETTLEMENTS, parameters | bounds)
                ids += [settlement_id for (settlement_id,) in cursor.fetchall()]
    return ids


def _lock_of_settlements(
    settlements: list[int], already_taken: list[int], per_settlement: int, at: datetime
) -> list[QueuedPayout]:
    """Lock and return up to `per_settlement` due payouts of each settlement, other than `already_taken`."""
    parameters = {"at": at, "already_taken": already_taken, "per_settlement": per_settlement}
    payouts: list[QueuedPayout] = []
    if ids := [settlement_id for settlement_id in settlements if settlement_id != NO_SETTLEMENT]:
        payouts += _lock(_LOCK_OF_SETTLEMENTS, parameters | {"ids": ids})
    if NO_SETTLEMENT in settlements:
        payouts += _lock(_LOCK_WITHOUT_SETTLEMENT, parameters | {"ids": [NO_SETTLEMENT]})
    return payouts


def _lock(sql: str, parameters: dict[str, Any]) -> list[QueuedPayout]:
    rows = [(row, vars(row)) for row in Transaction.objects.raw(sql, parameters)]
    return [
        QueuedPayout(row, columns["last_number"], columns["has_open_attempt"], columns["skips_queue"])
        for row, columns in rows
    ]
