"""Payments that are plainly proven, booked many at once: what `evidence.pay` writes for one, in a few statements.

Which ones are plain is `evidence.is_plainly_paid`. The caller owns the database transaction and holds the locks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from payments.ledger import journal
from payments.models import Attempt
from payments.payouts import breakers
from payments.payouts.evidence import rules

_CLOSE = """
    UPDATE payments_attempt a
    SET state = 'PAID', receipt = proof.receipt, closed_at = %(at)s, next_query_at = NULL, resend_at = NULL
    FROM unnest(%(attempts)s::bigint[], %(receipts)s::text[]) AS proof (attempt_id, receipt)
    WHERE a.id = proof.attempt_id
"""
_COMPLETE = """
    UPDATE payments_transaction t
    SET status = 'COMPLETED', completed_at = %(at)s, receipt = proof.receipt, reason = ''
    FROM unnest(%(payouts)s::bigint[], %(receipts)s::text[]) AS proof (payout_id, receipt)
    WHERE t.id = proof.payout_id
"""


@dataclass(frozen=True)
class Proof:
    """An open attempt, the member it pays, and M-Pesa's receipt of its payment."""

    attempt: Attempt
    user_id: int
    receipt: str


def book(proofs: Sequence[Proof], *, at: datetime) -> None:
    """Book payments, each of another payout, and complete the payouts.

    Locks: none further; the caller holds the Transactions and the Attempts.
    """
    if not proofs:
        return
    columns: dict[str, Any] = {
        "attempts": [proof.attempt.pk for proof in proofs],
        "payouts": [proof.attempt.transaction_id for proof in proofs],
        "receipts": [proof.receipt[:64] for proof in proofs],
        "at": at,
    }
    with connection.cursor() as cursor:
        cursor.execute(_CLOSE, columns)
        cursor.execute(_COMPLETE, columns)
    breakers.paid(max((proof.attempt.posted_at for proof in proofs if proof.attempt.posted_at), default=None))
    journal.post(
        [entry for proof in proofs for entry in rules.payment_entries(proof.user_id, proof.attempt, at=at)], at=at
    )
