"""Responses to POSTed payment requests, recorded on their attempts."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction

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
            posted = attempts.accept_many(
                transaction_ids=[claim.transaction_id for claim, _ in accepted.values()],
                attempt_ids=list(accepted),
                conversation_ids=[response.conversation_id for _, response in accepted.values()],
                ask_at=at + policy.query_after,
            )
            if posted:
                breakers.acknowledged(max(posted.values()))
            recorded = set(posted)
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
            attempts.accept(attempt, ask_at=at + policy.query_after)
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
            attempts.doubt(attempt, ask_at=at + policy.query_after, at=at, words=str(response))
            breakers.watch(at=at, policy=policy)
    failpoints.hit("record after commit")


def _wait(
    payout: Transaction, attempt: Attempt, response: gateway_errors.NotSent, at: datetime, policy: Policy
) -> None:
    """Make the payout pending again after a request that Daraja did not execute, and pause sending."""
    # The pause equals the time since the attempt was opened, so the pause doubles each time.
    pause = max(policy.retry_after, timedelta(seconds=float(response.retry_after_seconds or 0)))
    attempts.wait(
        payout,
        attempt,
        due_at=at + min(max(pause, at - attempt.opened_at), attempts.LONGEST_WAIT),
        reason=f"Not sent yet: {response.details or response.reason}",
        may_have_left=response.reason == "throttle",
    )
    breakers.trip(CAUSES[response.reason], reason=str(response), at=at, policy=policy)
