"""What the answers to POSTs leave us knowing."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from payments import failpoints
from payments.ledger import receivables
from payments.models import Attempt, Breaker, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts import attempts, breakers
from payments.payouts.sending import claims
from payments.policy import Policy

log = logging.getLogger(__name__)

State = Attempt.State
Status = Transaction.Status

CAUSES = {
    "network": Breaker.Cause.NETWORK,
    "auth": Breaker.Cause.CREDENTIALS,
    "throttle": Breaker.Cause.THROTTLE,
}


# Acknowledgements may be lost with the server, for they are not proof of anything: the attempt is asked about then.
_ACCEPT = """
    SET LOCAL synchronous_commit = off;
    WITH locked AS (
        SELECT id FROM payments_transaction WHERE id = ANY (%(payouts)s::bigint[]) ORDER BY id
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE payments_attempt a
    SET state = 'ACCEPTED', next_query_at = %(ask_at)s,
        conversation_id = CASE WHEN a.conversation_id = '' THEN said.conversation_id ELSE a.conversation_id END
    FROM unnest(%(attempts)s::bigint[], %(conversations)s::text[]) AS said (attempt_id, conversation_id), locked
    WHERE a.id = said.attempt_id AND a.state = 'SENDING' AND locked.id = a.transaction_id
    RETURNING a.id, a.posted_at
"""


def record_all(answers: Sequence[tuple[claims.Claim, claims.Said]], *, at: datetime, policy: Policy) -> None:
    """Write down what many POSTs left us knowing: plain acknowledgements in one statement, the others one by one.

    Plain is one whose attempt is still SENDING and whose transaction nobody else holds at the moment.
    Locks: Transactions by id (passing over locked ones), their Attempts; then as `record`.
    """
    accepted = {claim.attempt_id: (claim, said) for claim, said in answers if isinstance(said, client.Accepted)}
    recorded: set[int] = set()
    if len(accepted) > 1:
        failpoints.hit("answer read")
        with transaction.atomic(durable=True):
            spoken: dict[str, Any] = {
                "attempts": list(accepted),
                "payouts": [claim.transaction_id for claim, _ in accepted.values()],
                "conversations": [said.conversation_id[:64] for _, said in accepted.values()],
                "ask_at": at + policy.query_after,
            }
            with connection.cursor() as cursor:
                cursor.execute(_ACCEPT, spoken)
                rows = cursor.fetchall()
            if rows:
                breakers.acknowledged(max(posted_at for _, posted_at in rows))
            recorded = {attempt_id for attempt_id, _ in rows}
        failpoints.hit("record after commit")
    for claim, said in answers:
        if claim.attempt_id not in recorded:
            record(claim, said, at=at, policy=policy)


def record(claim: claims.Claim, said: claims.Said, *, at: datetime, policy: Policy) -> None:
    """Write down what a POST left us knowing. A callback that was faster has the last word: then nothing changes.

    Locks: Transaction, Attempt.
    """
    failpoints.hit("answer read")
    with transaction.atomic(durable=True):
        payout, attempt = attempts.locked(claim.attempt_id)
        if isinstance(said, client.Accepted) and not attempt.conversation_id:
            attempt.conversation_id = said.conversation_id[:64]
            attempt.save(update_fields=["conversation_id"])
        if isinstance(said, gateway_errors.OutcomeUnknown) and said.duplicate:
            attempts.is_known(attempt, at=at)
        sure = attempt.doubted_at is None
        if attempt.state != State.SENDING:
            log.info("A callback was faster than the answer for %s", attempt)
        elif isinstance(said, client.Accepted):
            attempt.state, attempt.next_query_at = State.ACCEPTED, at + policy.query_after
            attempt.save()
            breakers.acknowledged(attempt.posted_at)
        elif (
            isinstance(said, gateway_errors.NotSent)
            and sure
            and (payout.status == Status.HELD or receivables.was_recalled(payout.pk))
        ):
            # An earlier request was paid meanwhile, or the settlement undone: this one did not leave, and must not.
            attempts.fail(payout, attempt, code="", words="Not sent", at=at, policy=policy)
        elif isinstance(said, gateway_errors.NotSent) and sure:
            _wait(payout, attempt, said, at, policy)
        elif isinstance(said, gateway_errors.Rejected) and sure:
            attempts.fail(payout, attempt, code=said.code, words=str(said), at=at, policy=policy)
        else:
            attempt.result_words = str(said)[:300]
            attempts.doubt(attempt, ask_at=at + policy.query_after, at=at)
            breakers.watch(at=at, policy=policy)
    failpoints.hit("record after commit")


def _wait(payout: Transaction, attempt: Attempt, said: gateway_errors.NotSent, at: datetime, policy: Policy) -> None:
    """The request did not leave: the payout is pending again, its attempt stays open, the same id goes again."""
    attempt.state, attempt.next_query_at = State.WAITING, None
    if said.reason != "throttle" and attempt.first_sent_at == attempt.posted_at:
        attempt.first_sent_at = None
    attempt.save()
    # Waiting as long again as it has waited doubles the pause each time.
    pause = max(policy.retry_after, timedelta(seconds=float(said.retry_after_seconds or 0)))
    payout.due_at = at + min(max(pause, at - attempt.opened_at), attempts.LONGEST_WAIT)
    payout.reason = f"Not sent yet: {said}"[:300]
    payout.status = Status.PENDING
    payout.save(update_fields=["due_at", "reason", "status"])
    breakers.trip(CAUSES[said.reason], reason=str(said), at=at, policy=policy)
