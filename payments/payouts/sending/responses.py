"""Responses to POSTed payment requests, recorded on their attempts."""

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


# An acceptance is committed without waiting for the disk. If the database server crashes, the record may be lost. This
# does no harm, because an acceptance proves nothing and we then ask M-Pesa about the attempt.
_ACCEPT = """
    SET LOCAL synchronous_commit = off;
    WITH locked AS (
        SELECT id FROM payments_transaction WHERE id = ANY (%(payouts)s::bigint[]) ORDER BY id
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE payments_attempt a
    SET state = 'ACCEPTED', next_query_at = %(ask_at)s,
        conversation_id = CASE WHEN a.conversation_id = '' THEN response.conversation_id ELSE a.conversation_id END
    FROM unnest(%(attempts)s::bigint[], %(conversations)s::text[]) AS response (attempt_id, conversation_id), locked
    WHERE a.id = response.attempt_id AND a.state = 'SENDING' AND locked.id = a.transaction_id
    RETURNING a.id, a.posted_at
"""


def record_all(responses: Sequence[tuple[claims.Claim, claims.Response]], *, at: datetime, policy: Policy) -> None:
    """Record the responses to many POSTs: acceptances in bulk if possible, all other responses one at a time.

    An acceptance is recorded in bulk if its attempt is still SENDING and no other worker holds its Transaction.
    Locks: Transactions by id (skipping locked ones), their Attempts; then as `record`.
    """
    accepted = {
        claim.attempt_id: (claim, response) for claim, response in responses if isinstance(response, client.Accepted)
    }
    recorded: set[int] = set()
    if len(accepted) > 1:
        failpoints.hit("answer read")
        with transaction.atomic(durable=True):
            parameters: dict[str, Any] = {
                "attempts": list(accepted),
                "payouts": [claim.transaction_id for claim, _ in accepted.values()],
                "conversations": [response.conversation_id[:64] for _, response in accepted.values()],
                "ask_at": at + policy.query_after,
            }
            with connection.cursor() as cursor:
                cursor.execute(_ACCEPT, parameters)
                rows = cursor.fetchall()
            if rows:
                breakers.acknowledged(max(posted_at for _, posted_at in rows))
            recorded = {attempt_id for attempt_id, _ in rows}
        failpoints.hit("record after commit")
    for claim, response in responses:
        if claim.attempt_id not in recorded:
            record(claim, response, at=at, policy=policy)


def record(claim: claims.Claim, response: claims.Response, *, at: datetime, policy: Policy) -> None:
    """Record the response to one POST. If a callback was applied first, the attempt's state does not change.

    Locks: Transaction, Attempt.
    """
    failpoints.hit("answer read")
    with transaction.atomic(durable=True):
        payout, attempt = attempts.locked(claim.attempt_id)
        if isinstance(response, client.Accepted) and not attempt.conversation_id:
            attempt.conversation_id = response.conversation_id[:64]
            attempt.save(update_fields=["conversation_id"])
        if isinstance(response, gateway_errors.OutcomeUnknown) and response.duplicate:
            attempts.mark_known(attempt, at=at)
        never_in_doubt = attempt.doubted_at is None
        if attempt.state != State.SENDING:
            log.info("A callback was faster than the response for %s", attempt)
        elif isinstance(response, client.Accepted):
            attempt.state, attempt.next_query_at = State.ACCEPTED, at + policy.query_after
            attempt.save()
            breakers.acknowledged(attempt.posted_at)
        elif (
            isinstance(response, gateway_errors.NotSent)
            and never_in_doubt
            and (payout.status == Status.HELD or receivables.was_recalled(payout.pk))
        ):
            # Meanwhile an earlier request was paid, or the settlement was undone. This request must not leave any more.
            attempts.fail(payout, attempt, code="", words="Not sent", at=at, policy=policy)
        elif isinstance(response, gateway_errors.NotSent) and never_in_doubt:
            _wait(payout, attempt, response, at, policy)
        elif isinstance(response, gateway_errors.Rejected) and never_in_doubt:
            attempts.fail(payout, attempt, code=response.code, words=response.message, at=at, policy=policy)
        else:
            attempt.result_words = str(response)[:300]
            attempts.doubt(attempt, ask_at=at + policy.query_after, at=at)
            breakers.watch(at=at, policy=policy)
    failpoints.hit("record after commit")


def _wait(
    payout: Transaction, attempt: Attempt, response: gateway_errors.NotSent, at: datetime, policy: Policy
) -> None:
    """Make the payout pending again after a request that Daraja did not execute.

    The attempt stays open, so the same id is sent again.
    """
    attempt.state, attempt.next_query_at = State.WAITING, None
    if response.reason != "throttle" and attempt.first_sent_at == attempt.posted_at:
        attempt.first_sent_at = None
    attempt.save()
    # The pause equals the time since the attempt was opened, so the pause doubles each time.
    pause = max(policy.retry_after, timedelta(seconds=float(response.retry_after_seconds or 0)))
    payout.due_at = at + min(max(pause, at - attempt.opened_at), attempts.LONGEST_WAIT)
    payout.reason = f"Not sent yet: {response.details or response.reason}"[:300]
    payout.status = Status.PENDING
    payout.save(update_fields=["due_at", "reason", "status"])
    breakers.trip(CAUSES[response.reason], reason=str(response), at=at, policy=policy)
