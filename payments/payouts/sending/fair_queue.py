"""Whose turn it is to be sent: a few payouts of each settlement, so that ten do not wait behind a million.

The index `transaction_due` begins with the settlement. One probe of it finds the next settlement that has something
due, whatever the size of the ones before, and each of them gives its oldest. Where more settlements wait than there are
places, a turn begins after the settlement with which the last one ended.

Before all turns comes what was begun and turned away: its id is safe for a while only, which must not pass while a
million others are sent. They are as few as the requests that were under way when M-Pesa said "not now".
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

LONGEST_TURN = 100


@dataclass(frozen=True)
class Turn:
    """A payout, locked, that may be sent now; the number of its last attempt, and whether that one is still open.

    `before_turns`: it did not wait for its settlement's turn. Columns of the payout that a claim does not need are
    deferred.
    """

    payout: Transaction
    last_number: int
    has_open_attempt: bool
    before_turns: bool


_NEXT = """
    SELECT t.settlement_id FROM payments_transaction t
    WHERE t.status = 'PENDING' AND t.due_at <= %(at)s AND t.settlement_id > {after}
    ORDER BY t.settlement_id LIMIT 1
"""
# A payout without a settlement is in no release; all such have one turn together, as settlement 0.
ALONE = 0
_WAITING = f"""
    WITH RECURSIVE run (id) AS (
        ({_NEXT.format(after="%(after)s")})
        UNION ALL
        SELECT ({_NEXT.format(after="run.id")}) FROM run WHERE run.id < %(last)s
    )
    (SELECT {ALONE}::bigint WHERE %(after)s = 0
       AND EXISTS (SELECT FROM payments_transaction t WHERE t.settlement_id IS NULL AND {eligibility.DUE}))
    UNION ALL
    (SELECT s.id FROM run CROSS JOIN LATERAL (SELECT * FROM payments_settlement WHERE id = run.id OFFSET 0) s
     WHERE run.id <= %(last)s AND {eligibility.RELEASED}
       AND EXISTS (SELECT FROM payments_transaction t WHERE t.settlement_id = s.id AND {eligibility.DUE})
     LIMIT %(limit)s)
    LIMIT %(limit)s
"""  # noqa: S608 - our own words
# A request that never left, or was turned away: the same id goes again.
_AGAIN = f"""
    SELECT t.id, t.user_id, t.settlement_id, t.amount, t.phone_number, t.external_ref, t.due_at,
        w.number AS last_number, true AS has_open_attempt, true AS before_turns
    FROM payments_attempt w JOIN payments_transaction t ON t.id = w.transaction_id
    LEFT JOIN payments_settlement s ON s.id = t.settlement_id
    WHERE w.state = 'WAITING' AND {eligibility.DUE} AND (s.id IS NULL OR {eligibility.RELEASED})
    ORDER BY w.first_sent_at, w.opened_at, w.id LIMIT %(limit)s FOR NO KEY UPDATE OF t SKIP LOCKED
"""  # noqa: S608 - our own words
# What a claim needs to know of a payout, and no more; then what is known of its earlier attempts.
_TAKE = """
    SELECT taken.*, coalesce(tried.last_number, 0) AS last_number, coalesce(tried.is_open, false) AS has_open_attempt,
        false AS before_turns
    FROM unnest(%(whose)s::bigint[]) AS turn (id) CROSS JOIN LATERAL (
        SELECT t.id, t.user_id, t.settlement_id, t.amount, t.phone_number, t.external_ref, t.due_at
        FROM payments_transaction t WHERE {whose} AND t.id <> ALL (%(already)s::bigint[]) AND {due}
        ORDER BY t.due_at, t.id LIMIT %(each)s FOR NO KEY UPDATE SKIP LOCKED) AS taken
    CROSS JOIN LATERAL (
        SELECT max(a.number) AS last_number,
            bool_or(a.state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT')) AS is_open
        FROM payments_attempt a WHERE a.transaction_id = taken.id) AS tried
"""
_TAKE_OF_SETTLEMENT = _TAKE.format(whose="t.settlement_id = turn.id", due=eligibility.DUE)
_TAKE_ALONE = _TAKE.format(whose="t.settlement_id IS NULL", due=eligibility.DUE)
_TAKE_NAMED = _TAKE.format(whose="t.id = turn.id", due=eligibility.DUE)


def any_due(*, at: datetime, policy: Policy) -> bool:
    """Whether a payout may leave now."""
    return bool(_waiting(at=at, policy=policy, after=0, limit=1))


def take(*, at: datetime, policy: Policy, limit: int, after: int) -> list[Turn]:
    """Up to `limit` payouts that may leave now: what was turned away before, then the settlements by turns.

    `after` is the id of the settlement that had the last turn. In the caller's transaction. While sending is paused,
    nothing has precedence: a probe by what was turned away before would tell of that alone.
    Locks: those Transactions; what another worker holds is passed over.
    """
    again: list[Turn] = []
    if not breakers.any_open():
        in_canary = canary.in_canary(at=at, policy=policy)
        again = _taken(_AGAIN, {"at": at, "in_canary": in_canary, "limit": limit})
    ids = [turn.payout.pk for turn in again]
    return again + _by_turns(ids, limit - len(again), after=after, at=at, policy=policy)


def _by_turns(again: list[int], limit: int, *, after: int, at: datetime, policy: Policy) -> list[Turn]:
    """Up to `limit` payouts beside those, each settlement's oldest first."""
    settlements = _waiting(at=at, policy=policy, after=after, limit=min(limit, LONGEST_TURN))
    taken: dict[int, list[Turn]] = {settlement_id: [] for settlement_id in settlements}
    already, found = again, 0
    while settlements and found < limit:
        each = -(-(limit - found) // len(settlements))
        gave: Counter[int] = Counter()
        for turn in _of_settlements(settlements, already, each, at):
            settlement_id = turn.payout.settlement_id or ALONE
            taken[settlement_id].append(turn)
            gave[settlement_id] += 1
        found += gave.total()
        already = again + [turn.payout.pk for turns in taken.values() for turn in turns]
        # Those that gave all they were asked for may have more; the others have not.
        settlements = [settlement_id for settlement_id in settlements if gave[settlement_id] == each]
    rounds = chain.from_iterable(zip_longest(*taken.values()))
    return [turn for turn in rounds if turn is not None][:limit]


def take_named(transaction_id: int, *, at: datetime) -> list[Turn]:
    """The payout of this id where it is due, as `take` gives it; whether it is released is for the caller to see.

    Locks: that Transaction; none where another worker holds it.
    """
    return _taken(_TAKE_NAMED, {"at": at, "whose": [transaction_id], "already": [], "each": 1})


def _waiting(*, at: datetime, policy: Policy, after: int, limit: int) -> list[int]:
    """Ids of settlements whose payouts may leave now, beginning after `after` and going round."""
    span: dict[str, Any] = {"at": at, "in_canary": canary.in_canary(at=at, policy=policy)}
    found: list[int] = []
    with connection.cursor() as cursor:
        for first, last in ((after, 2**62), (0, after)):
            if len(found) < limit and first < last:
                cursor.execute(_WAITING, span | {"after": first, "last": last, "limit": limit - len(found)})
                found += [settlement_id for (settlement_id,) in cursor.fetchall()]
    return found


def _of_settlements(settlements: list[int], already: list[int], each: int, at: datetime) -> list[Turn]:
    span = {"at": at, "already": already, "each": each}
    found: list[Turn] = []
    if settled := [settlement_id for settlement_id in settlements if settlement_id != ALONE]:
        found += _taken(_TAKE_OF_SETTLEMENT, span | {"whose": settled})
    if ALONE in settlements:
        found += _taken(_TAKE_ALONE, span | {"whose": [ALONE]})
    return found


def _taken(sql: str, span: dict[str, Any]) -> list[Turn]:
    found = [(row, vars(row)) for row in Transaction.objects.raw(sql, span)]
    return [Turn(row, has["last_number"], has["has_open_attempt"], has["before_turns"]) for row, has in found]
