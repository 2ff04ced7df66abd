"""Snapshot of the database after one step: broken invariants, payouts, attempts, and due work."""

from dataclasses import dataclass
from datetime import UTC, datetime

from django.db import connection

from payments.ledger import invariants


@dataclass(frozen=True)
class Payout:
    """A payout by M-Pesa at the time of the snapshot."""

    id: int
    ref: str
    status: str
    amount: int
    redirected: bool
    reason: str


@dataclass(frozen=True)
class Attempt:
    """A request for a payout at the time of the snapshot. `asking` is True if a status query is scheduled."""

    ocid: str
    ref: str
    state: str
    receipt: str
    asking: bool


@dataclass(frozen=True)
class Snapshot:
    """The whole database at one moment: broken invariants, payouts, attempts, and due work.

    `has_unsettled_market` is True if a market must be settled, and `has_unapplied_callback` if a callback must be
    applied. `send_at` is the next time to send a payout, and `ask_at` the next time to ask about a payout.
    """

    broken: list[tuple[str, str]]
    payouts: list[Payout]
    attempts: list[Attempt]
    has_unsettled_market: bool
    has_unapplied_callback: bool
    send_at: datetime | None
    ask_at: datetime | None


EMPTY = Snapshot([], [], [], False, False, None, None)

_STATE = """
SELECT 'payout', t.external_ref, t.status, t.id::text, trunc(t.amount)::text, t.reason,
    EXISTS (SELECT FROM payments_transfer f WHERE f.transaction_id = t.id AND f.code = 'redirect')::text
FROM payments_transaction t WHERE t.destination = 'mpesa'
UNION ALL SELECT 'attempt', a.originator_conversation_id, a.state, a.id::text, t.external_ref, a.receipt,
    (a.next_query_at IS NOT NULL)::text
FROM payments_attempt a JOIN payments_transaction t ON t.id = a.transaction_id
UNION ALL SELECT 'next',
    (SELECT count(*) FROM payments_settlement WHERE state IN ('PENDING', 'DIVIDING'))::text,
    (SELECT count(*) FROM payments_callback WHERE applied_at IS NULL)::text,
    extract(epoch FROM greatest(
        least((SELECT min(due_at) FROM payments_transaction WHERE status = 'PENDING' AND destination = 'mpesa'),
              (SELECT min(resend_at) FROM payments_attempt)),
        (SELECT max(probe_at) FROM payments_breaker WHERE opened_at IS NOT NULL)))::text,
    extract(epoch FROM (SELECT min(next_query_at) FROM payments_attempt
        WHERE state <> 'WAITING' AND (second_receipt <> '' OR state <> 'REVERSED'
            AND (state <> 'PAID' OR decision <> ''))))::text, '', ''
"""
STATEMENT = "\nUNION ALL ".join(
    [
        _STATE,
        *(
            f"SELECT 'broken', '{rule.replace(chr(39), 2 * chr(39))}', x.what, '', '', '', '' FROM ({sql}) x (what)"  # noqa: S608 - our own statements
            for rule, sql in invariants.INVARIANTS.items()
        ),
    ]
)


def prepare() -> None:
    """Prepare the statement once for this connection. Planning the statement takes longer than running it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_prepared_statements WHERE name = 'simulation_snapshot'")
        if cursor.fetchone() is None:
            cursor.execute(f"PREPARE simulation_snapshot AS {STATEMENT}")


def take(names: dict[str, str]) -> Snapshot:
    """Take a snapshot. `names` maps each payout's reference to p1, p2, …. New payouts are added to `names`."""
    with connection.cursor() as cursor:
        cursor.execute("EXECUTE simulation_snapshot")
        rows = cursor.fetchall()
    by_kind: dict[str, list[tuple[str, ...]]] = {"payout": [], "attempt": [], "next": [], "broken": []}
    for kind, *fields in rows:
        by_kind[kind].append(tuple(fields))
    payouts = [
        Payout(int(pk), ref, status, int(amount), redirected == "true", reason)
        for ref, status, pk, amount, reason, redirected in sorted(by_kind["payout"], key=lambda row: int(row[2]))
    ]
    for payout in payouts:
        names.setdefault(payout.ref, f"p{len(names) + 1}")
    attempts = [
        Attempt(ocid, ref, state, receipt, asking == "true")
        for ocid, state, _, ref, receipt, asking in sorted(by_kind["attempt"], key=lambda row: int(row[2]))
    ]
    ((to_settle, to_apply, send_at, ask_at, *_),) = by_kind["next"]
    return Snapshot(
        broken=[(rule, evidence) for rule, evidence, *_ in by_kind["broken"]],
        payouts=payouts,
        attempts=attempts,
        has_unsettled_market=to_settle != "0",
        has_unapplied_callback=to_apply != "0",
        send_at=_moment(send_at),
        ask_at=_moment(ask_at),
    )


def _moment(epoch: str | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(float(epoch), tz=UTC)
