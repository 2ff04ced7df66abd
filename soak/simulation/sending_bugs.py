"""Planted bugs in sending payouts: claims, requests, responses and sweeps."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from django.db import transaction

from payments.ledger import journal
from payments.models import Attempt, Transaction
from payments.mpesa import client, gateway_errors
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts, day_limit
from payments.payouts.evidence import records
from payments.payouts.operations import actions
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.policy import Policy
from soak.simulation.evidence_bugs import fail_if_open
from soak.simulation.planting import (
    LIKELY_RESENDS,
    LIKELY_WORKER_DEATHS,
    NO_ATTEMPT_GUARD,
    Catalogue,
    disable_guards,
    instead_of,
)
from soak.simulation.scratch import nestable
from soak.simulation.world import World

BUGS = Catalogue()
State = Attempt.State
Response = client.Accepted | gateway_errors.GatewayError


def failing_on_response(reads_as_failure: Callable[[Response], bool]) -> AbstractContextManager[None]:
    """Mark the attempt as failed if `reads_as_failure` returns True for its response."""
    original = responses.record

    def record(claim: sending_claims.Claim, response: Response, *, at: datetime, policy: Policy) -> None:
        original(claim, response, at=at, policy=policy)
        if reads_as_failure(response):
            fail_if_open(claim.attempt_id, str(response), at, policy)

    return instead_of(responses, "record", record)


# --- responses to a request ------------------------------------------------------------------------------------------


@BUGS.bug("timeout read as failure", "D4: a timeout leaves the money in doubt")
def _(world: World) -> Iterator[None]:
    with failing_on_response(
        lambda response: isinstance(response, gateway_errors.OutcomeUnknown) and not response.duplicate
    ):
        yield


@BUGS.bug(
    "duplicate 500 as failure",
    "D4: a duplicate response says nothing about the first request",
    LIKELY_RESENDS | {"duplicate by result": 0.0},
)
def _(world: World) -> Iterator[None]:
    with failing_on_response(
        lambda response: isinstance(response, gateway_errors.OutcomeUnknown) and response.duplicate
    ):
        yield


@BUGS.bug(
    "rejection believed after doubt",
    "D4: a rejection is proof only if no POST of the id ended in doubt",
    LIKELY_RESENDS | {"rejected": 0.4},
    seed=22,
)
def _(world: World) -> Iterator[None]:
    with failing_on_response(lambda response: isinstance(response, gateway_errors.Rejected)):
        yield


@BUGS.bug("unguarded transition", "D3: a response that comes after the result changes nothing", seed=1)
def _(world: World) -> Iterator[None]:
    original = responses.record

    def record(claim: sending_claims.Claim, response: Response, *, at: datetime, policy: Policy) -> None:
        original(claim, response, at=at, policy=policy)
        if isinstance(response, client.Accepted):
            Attempt.objects.filter(pk=claim.attempt_id).update(state=State.ACCEPTED)

    disable_guards(NO_ATTEMPT_GUARD)
    with instead_of(responses, "record", record):
        yield


@BUGS.bug("unguarded transition in bulk", "D3: a response that comes after the result changes nothing", seed=10)
def _(world: World) -> Iterator[None]:
    disable_guards(NO_ATTEMPT_GUARD)
    unguarded = attempts._ACCEPT.replace("AND a.state = 'SENDING' ", "")
    with instead_of(attempts, "_ACCEPT", unguarded):
        yield


# --- claims ----------------------------------------------------------------------------------------------------------


@BUGS.bug("new id per resend", "D3: while the outcome is unknown, the same id is used", LIKELY_RESENDS)
def _(world: World) -> Iterator[None]:
    def claim_resends(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[sending_claims.Claim]:
        with transaction.atomic(durable=True):
            lost = Attempt.objects.filter(state=State.IN_DOUBT, resend_at__lte=at).order_by("pk")
            for pk in list(lost.values_list("pk", flat=True)[:limit]):
                payout, attempt = attempts.locked(pk)
                attempts.fail(payout, attempt, code="", words="sent again", at=at, policy=policy)
                payout.status, payout.due_at = Transaction.Status.PENDING, at
                payout.save()
        return []

    with instead_of(sending_claims, "claim_resends", claim_resends):
        yield


@BUGS.bug(
    "resend without horizon",
    "D3: the same id is sent again only within a fixed time after its first POST",
    # M-Pesa pays, and no message says so until M-Pesa has forgotten the id.
    {"long trouble": 1.0, "answer lost": 1.0, "result lost": 1.0, "false not-found answer": 1.0},
    seed=5,
)
def _(world: World) -> Iterator[None]:
    with (
        instead_of(attempts, "within_horizon", lambda attempt, at, policy: True),
        instead_of(records.Facts, "within_horizon", lambda facts, at, policy: True),
    ):
        yield


@BUGS.bug(
    "HTTP inside the transaction with a fresh id", "D3: row and id are committed before the call", LIKELY_WORKER_DEATHS
)
def _(world: World) -> Iterator[None]:
    original, new_attempt = sending_claims.claim, attempts.new_attempt

    def with_fresh_id(payout: Transaction, *arguments: Any, **more: Any) -> Attempt:
        attempt = new_attempt(payout, *arguments, **more)
        attempt.originator_conversation_id = f"{payout.external_ref}-{world.random.randrange(10_000)}"
        return attempt

    def claim(*, at: datetime, policy: Policy, **more: Any) -> list[sending_claims.Claim]:
        with nestable():
            for claimed in original(at=at, policy=policy, **more):
                response = sending_claims.call(claimed, gateway=world.provider, addresses=world.addresses)
                responses.record(claimed, response, at=at, policy=policy)
        return []

    with instead_of(sending_claims, "claim", claim), instead_of(attempts, "new_attempt", with_fresh_id):
        yield


@BUGS.bug("enqueue before commit", "D5: the rows that a message names are committed first", LIKELY_WORKER_DEATHS)
def _(world: World) -> Iterator[None]:
    original = sending_claims._claim_of

    def claim_of(
        attempt: Attempt, payout: Transaction, addresses: Addresses, *, skips_queue: bool
    ) -> sending_claims.Claim:
        claimed = original(attempt, payout, addresses, skips_queue=skips_queue)

        def post() -> None:
            sending_claims.call(claimed, gateway=world.provider, addresses=addresses)

        world.schedule(0.01, "message sent before the commit", post)
        return claimed

    with instead_of(sending_claims, "_claim_of", claim_of):
        yield


@BUGS.bug("failed request keeps its part of the day", "D2: only open and paid requests count for the limit of the day")
def _(world: World) -> Iterator[None]:
    with instead_of(day_limit, "give_back", lambda attempt, user_id: None):
        yield


@BUGS.bug("limit of the day not counted", "D2: each request counts on the day of its latest POST")
def _(world: World) -> Iterator[None]:
    with instead_of(day_limit, "take", lambda parts, *, at, limit: {part.transaction_id for part in parts}):
        yield


@BUGS.bug("double beat", "D5: if two sweeps run at the same time, only one of them claims a payout")
def _(world: World) -> Iterator[None]:
    original = sending_claims.claim

    def claim(*, at: datetime, policy: Policy, addresses: Addresses, **more: Any) -> list[sending_claims.Claim]:
        claims = original(at=at, policy=policy, addresses=addresses, **more)
        for first in list(claims):
            payout = Transaction.objects.get(pk=first.transaction_id)
            second = attempts.new_attempt(payout, payout.attempts.count() + 1, at, policy, addresses)
            second.save()
            send = journal.Entry(f"send:{second.pk}", journal.PAYABLE, journal.IN_FLIGHT, second.amount, payout.pk)
            journal.post([send], at=at)
            claims.append(sending_claims._claim_of(second, payout, addresses, skips_queue=False))
        return claims

    disable_guards("DROP INDEX one_open_attempt_a_transaction")
    with instead_of(sending_claims, "claim", claim):
        yield


# --- operator and sweeps ---------------------------------------------------------------------------------------------


@BUGS.bug("operator acts on an open attempt", "D3: retry and redirect only if no attempt is open", {"operator": 1.0})
def _(world: World) -> Iterator[None]:
    def owing(transaction_id: int, statuses: tuple[str, ...], rule: str, **_: Any) -> Transaction:
        payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).get(pk=transaction_id)
        if payout.status not in (Transaction.Status.PROCESSING, *statuses):
            raise actions.PayoutNotRetryable(rule)
        return payout

    with instead_of(actions, "owing", owing):
        yield


@BUGS.bug("no sweep", "D5: losing any message is harmless", {"message lost": 0.5})
def _(world: World) -> Iterator[None]:
    world.has_beat = False
    yield
