"""Responses to POSTed payment requests, recorded on their attempts."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q

from payments import failpoints
from payments.ledger import receivables
from payments.models import AskFirst, Attempt, Breaker, Transaction
from payments.mpesa import client, gateway_errors
from payments.payouts import attempts, breakers
from payments.payouts.sending import claims
from payments.policy import Policy

log = logging.getLogger(__name__)

State = Attempt.State
Status = Transaction.Status

# The breaker of each reason of NotSent, and of each cause of a refusal.
CAUSES = {
    "network": Breaker.Cause.NETWORK,
    "auth": Breaker.Cause.CREDENTIALS,
    "throttle": Breaker.Cause.THROTTLE,
    "credentials": Breaker.Cause.CREDENTIALS,
    "settings": Breaker.Cause.SETTINGS,
    "product": Breaker.Cause.PRODUCT,
}
# We never wait longer than this because Daraja told us to.
LONGEST_WAIT = timedelta(minutes=5)


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
            )
            if posted:
                breakers.acknowledged(max(posted.values()), at=at)
            recorded = set(posted)
        failpoints.hit("record after commit")
    for claim, response in responses:
        if claim.attempt_id not in recorded:
            record(claim, response, at=at, policy=policy)


def record(claim: claims.Claim, response: claims.Response, *, at: datetime, policy: Policy) -> None:
    """Record the response to one POST. If a callback was applied first, the attempt's state does not change.

    Locks: Transaction, Attempt, then Breakers.
    """
    failpoints.hit("answer read")
    with transaction.atomic(durable=True):
        payout, attempt = attempts.locked(claim.attempt_id)
        if isinstance(response, client.Accepted) and not attempt.conversation_id:
            attempt.conversation_id = response.conversation_id[:64]
            attempt.save(update_fields=["conversation_id"])
        if isinstance(response, gateway_errors.OutcomeUnknown) and response.duplicate:
            attempts.mark_known(attempt, at=at)
        # A response may be recorded late, or twice after a lost commit. Meanwhile the id may have been POSTed again.
        if attempt.state != State.SENDING or claim.posted_at != attempt.posted_at:
            log.info("A callback or a later POST was faster than the response for %s", attempt)
        elif isinstance(response, client.Accepted):
            attempts.accept(attempt)
            breakers.acknowledged(attempt.posted_at, at=at)
        elif (
            isinstance(response, gateway_errors.OutcomeUnknown)
            or attempt.doubted_at is not None
            or _may_have_left_before(attempt)
        ):
            attempts.doubt(attempt, ask_at=at + policy.query_after, at=at, words=str(response))
        else:
            _apply_refusal(payout, attempt, response, at, policy)
        if _is_answered(response):
            breakers.reached(claim.posted_at, at=at)
        if pause := _pause(response):
            cause, reason = pause
            breakers.trip(cause, reason=reason, at=at, policy=policy)
    failpoints.hit("record after commit")
    if not isinstance(response, client.Accepted):
        breakers.judge(at=at, policy=policy)


def _may_have_left_before(attempt: Attempt) -> bool:
    """Return True if a request with this id may have left before a restore. Then a refusal proves nothing about it."""
    listed = AskFirst.objects.filter(transaction=attempt.transaction_id)
    unknown = Q(ended_at=None, later_asked_at=None)
    return listed.filter(unknown | Q(last_number__gte=attempt.number)).exists()


def _apply_refusal(
    payout: Transaction, attempt: Attempt, response: gateway_errors.GatewayError, at: datetime, policy: Policy
) -> None:
    """Apply a response that proves that this request, which was never in doubt, was not executed."""
    fault = response.our_fault if isinstance(response, gateway_errors.Rejected) else None
    if isinstance(response, gateway_errors.Rejected) and fault is None:
        attempts.fail(payout, attempt, code=response.code, words=response.message, at=at, policy=policy)
    elif payout.status == Status.HELD or receivables.was_recalled(payout.pk):
        # Meanwhile a message reported an earlier request as paid, or the settlement was undone. So nothing is sent.
        words = f"Not sent: {response.details or response}"
        attempts.fail(payout, attempt, code="", words=words, at=at, policy=policy, is_ours=True)
    elif (
        fault is not None
        and fault.may_concern_one_payout
        and breakers.closed_since(attempt.opened_at, CAUSES[fault.cause])
    ):
        attempts.fail_and_hold(
            payout,
            attempt,
            code=response.code,
            words=response.message,
            reason=f"M-Pesa refuses this request again, and accepts others: {response.details}. Nothing was paid.",
            at=at,
        )
    else:
        _wait(payout, attempt, response, at, policy)


def _wait(
    payout: Transaction, attempt: Attempt, response: gateway_errors.GatewayError, at: datetime, policy: Policy
) -> None:
    """Make the payout pending again after a request that Daraja did not execute."""
    told = (response.retry_after_seconds if isinstance(response, gateway_errors.NotSent) else None) or 0
    # The pause equals the time since the attempt was opened, so the pause doubles each time. It is at most the longest
    # pause between probes: while a breaker is open, a payout must be due for each probe.
    pause = min(max(policy.retry_after, at - attempt.opened_at), max(policy.retry_after, policy.breaker_longest_pause))
    attempts.wait(
        payout,
        attempt,
        due_at=at + max(pause, min(timedelta(seconds=float(told)), LONGEST_WAIT)),
        reason=f"Not sent yet: {response.details or response}",
        may_have_left=isinstance(response, gateway_errors.NotSent) and response.reason == "throttle",
    )


def _is_answered(response: claims.Response) -> bool:
    """Return True if M-Pesa's host refused the request itself. So the network is not at fault."""
    if isinstance(response, gateway_errors.NotSent):
        return response.reason != "network"
    return isinstance(response, gateway_errors.Rejected)


def _pause(response: claims.Response) -> tuple[Breaker.Cause, str] | None:
    """Return the breaker that a response opens and the reason, or None if it opens none."""
    if isinstance(response, gateway_errors.NotSent):
        return CAUSES[response.reason], str(response)
    fault = response.our_fault if isinstance(response, gateway_errors.Rejected) else None
    if fault is None:
        return None
    return CAUSES[fault.cause], f"M-Pesa refuses {fault.field or 'our request'} ({response}). {fault.advice}"
