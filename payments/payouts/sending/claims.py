"""Claims of due payouts, each committed before its request is POSTed.

A claim is a lease: a committed attempt in state SENDING. No database transaction is open during the POST. Afterwards
`responses` records M-Pesa's response. An attempt stays open until evidence proves its result (evidence/rules.py). A
payout never has two open attempts.

Lock order: Transaction, Attempt, then wallets (ledger).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from django.db import transaction
from django.db.models import Q, QuerySet

from payments import failpoints
from payments.ledger import receivables
from payments.models import AskFirst, Attempt, Transaction
from payments.mpesa import client, gateway_errors
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempt_limit, breakers, day_limit, eligibility
from payments.payouts import attempts as payouts_attempts
from payments.payouts.sending import canary, fair_queue
from payments.policy import Policy

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

State = Attempt.State
Status = Transaction.Status
ABOVE_DAY_LIMIT = "The member reached M-Pesa's limit of the day. It leaves tomorrow."
Response: TypeAlias = client.Accepted | gateway_errors.GatewayError


class PaymentGateway(Protocol):
    """A gateway that POSTs B2C requests: client.Gateway, or a simulated M-Pesa."""

    def pay(
        self,
        *,
        originator_conversation_id: str,
        amount_shillings: int,
        phone_number: str,
        remarks: str,
        occasion: str,
        result_url: str,
        timeout_url: str,
    ) -> client.Accepted: ...


@dataclass(frozen=True)
class Claim:
    """A request that must be POSTed now, with its attempt committed as SENDING.

    `skips_queue`: the request is sent again, so it did not wait in the fair queue. `posted_at` tells this POST from a
    later POST of the same attempt.
    Units: whole shillings.
    """

    attempt_id: int
    transaction_id: int
    settlement_id: int | None
    originator_conversation_id: str
    amount_shillings: int
    phone_number: str
    external_ref: str
    token: str
    skips_queue: bool
    posted_at: datetime | None


# --- claims ----------------------------------------------------------------------------------------------------------


def any_due(*, at: datetime, policy: Policy) -> bool:
    """Return True if a payout can be claimed or a request can be sent again."""
    return fair_queue.any_due(at=at, policy=policy) or _resendable(at).exists()


def _resendable(at: datetime) -> QuerySet[Attempt]:
    """Return the attempts in doubt that are due to be sent again.

    If a settlement is undone or stopped, we only ask about its attempts.
    """
    active = Q(transaction__settlement=None) | eligibility.active("transaction__settlement__")
    return Attempt.objects.filter(active, state=State.IN_DOUBT, resend_at__lte=at)


def claim(
    *,
    at: datetime,
    policy: Policy,
    addresses: Addresses,
    limit: int,
    transaction_id: int | None = None,
    after: int = 0,
) -> list[Claim]:
    """Claim up to `limit` due payouts in the order of `fair_queue.take`, or only `transaction_id` if it is due.

    `after` is the settlement that was served last. A payout with an open attempt keeps that attempt and its id. Any
    other payout gets a new attempt. A payout above the member's limit of the day waits until the next day in Nairobi.
    Idempotent: skips payouts that another worker has locked or claimed.
    Locks: Transactions (skipping locked ones), their open Attempts, the members' DayTotals, Breakers, then Settlements.
    """
    breakers.judge(at=at, policy=policy)
    canary.review(at=at, policy=policy)
    with transaction.atomic(durable=True):
        if transaction_id is None:
            queue = fair_queue.take(at=at, policy=policy, limit=limit, after=after)
        else:
            in_canary = canary.in_canary(at=at, policy=policy)
            may_leave = eligibility.may_leave([transaction_id], in_canary=in_canary, at=at)
            queue = fair_queue.take_by_id(transaction_id, at=at) if may_leave else []
        queue = _with_numbers_left(queue)
        kept = _lock_open_attempts(queue)
        payouts, counted = _within_day_limit([queued.payout for queued in queue], kept, at, policy)
        if payouts:
            payouts = payouts[: breakers.allowance(at=at, policy=policy)]
        payouts = canary.with_free_slot(payouts, policy)
        leaving = {payout.pk for payout in payouts}
        day_limit.confirm(counted, sent=leaving, at=at)
        queue = [queued for queued in queue if queued.payout.pk in leaving]
        attempts = _attempts_for(queue, kept, at, policy, addresses)
        payouts_attempts.start(sorted(leaving))
        claims = [
            _claim_of(attempt, queued.payout, addresses, skips_queue=queued.skips_queue)
            for queued in queue
            if (attempt := attempts[queued.payout.pk]).state == State.SENDING
        ]
        failpoints.hit("claim before commit")
    failpoints.hit("claim after commit")
    return claims


def claim_resends(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[Claim]:
    """Claim attempts in doubt that are due to be sent again, because a status query did not find their id.

    An id is sent again only within the resend horizon of its first POST (`attempts.within_horizon`).
    A request that would pass the member's limit of a new day is not sent again. We only ask about it.
    Locks: Transactions (skipping locked ones), the Attempts, the members' DayTotals, Breakers, then the Settlements,
    FOR SHARE.
    """
    breakers.judge(at=at, policy=policy)
    with transaction.atomic(durable=True):
        doubtful = list(_resendable(at).order_by("resend_at").values_list("transaction", flat=True)[:limit])
        payouts = Transaction.objects.filter(pk__in=doubtful)
        resendable = []
        for payout in payouts.order_by("pk").select_for_update(skip_locked=True, no_key=True, of=("self",)):
            attempt = payouts_attempts.open_attempt(payout)
            if attempt is None or attempt.state != State.IN_DOUBT or attempt.resend_at is None:
                continue
            due = payout.status == Status.PROCESSING and not receivables.was_recalled(payout.pk)
            if due and not eligibility.is_paid(payout) and payouts_attempts.within_horizon(attempt, at, policy):
                resendable.append((payout, attempt))
            else:
                payouts_attempts.resend_at(attempt, None)
        leaving, counted = _resends_within_day_limit(resendable, at, policy)
        # An undo or a stop may have committed after the attempts were selected.
        active = eligibility.lock_active({payout.settlement_id for payout, _ in leaving if payout.settlement_id})
        leaving = [pair for pair in leaving if pair[0].settlement_id is None or pair[0].settlement_id in active]
        if leaving:  # `allowance` may use up a probe, so call it only if a request really leaves.
            leaving = leaving[: breakers.allowance(at=at, policy=policy)]
        day_limit.confirm(counted, sent={payout.pk for payout, _ in leaving}, at=at)
        claims = []
        for payout, attempt in leaving:
            payouts_attempts.resend(attempt, at=at, policy=policy)
            claims.append(_claim_of(attempt, payout, addresses, skips_queue=True))
        asked_first = [payout.pk for payout, attempt in leaving if attempt.asked_first_at is not None]
        AskFirst.objects.filter(transaction__in=asked_first, ended_at=None).update(ended_at=at)
    return claims


def _resends_within_day_limit(
    resends: list[tuple[Transaction, Attempt]], at: datetime, policy: Policy
) -> tuple[list[tuple[Transaction, Attempt]], list[day_limit.Part]]:
    """Return the requests within their member's limit of the day, and their parts that count today.

    The other requests are not sent again.
    """
    parts = [
        day_limit.Part(payout.pk, payout.user_id, attempt.amount, attempt.counted_on) for payout, attempt in resends
    ]
    fitting = day_limit.take(parts, at=at, limit=policy.day_limit)
    for payout, attempt in resends:
        if payout.pk not in fitting:
            payouts_attempts.resend_at(attempt, None)
    within = [(payout, attempt) for payout, attempt in resends if payout.pk in fitting]
    return within, [part for part in parts if part.transaction_id in fitting]


def claim_next(*, at: datetime, policy: Policy, addresses: Addresses, limit: int, after: int) -> list[Claim]:
    """Claim up to `limit` requests to be POSTed next, resends before new requests.

    A resend must not wait behind a million payouts, because its id may be sent again for a limited time only. While a
    breaker is open, new requests come first. A resend is a poor probe, because M-Pesa may refuse it as a duplicate.
    `after` as in `claim`.
    Locks: as `claim`.
    """
    parameters: dict[str, Any] = {"at": at, "policy": policy, "addresses": addresses}
    if breakers.any_open():
        claims = claim(**parameters, limit=limit, after=after)
        return claims + (claim_resends(**parameters, limit=limit - len(claims)) if len(claims) < limit else [])
    claims = claim_resends(**parameters, limit=limit)
    return claims + (claim(**parameters, limit=limit - len(claims), after=after) if len(claims) < limit else [])


def _with_numbers_left(queue: Sequence[fair_queue.QueuedPayout]) -> list[fair_queue.QueuedPayout]:
    """Return the queued payouts whose next request has a number. Hold the others for a person."""
    left = []
    for queued in queue:
        if queued.has_open_attempt or queued.last_number < attempt_limit.LARGEST_NUMBER:
            left.append(queued)
        else:
            payouts_attempts.hold(queued.payout, reason=attempt_limit.NO_NUMBERS)
            alarm.error("Transaction %s is held: %s", queued.payout.pk, attempt_limit.NO_NUMBERS)
    return left


def _lock_open_attempts(queue: Sequence[fair_queue.QueuedPayout]) -> dict[int, Attempt]:
    """Lock the open attempts of queued payouts, and return them by transaction id."""
    ids = [queued.payout.pk for queued in queue if queued.has_open_attempt]
    attempts = Attempt.objects.filter(transaction__in=ids, state__in=Attempt.OPEN)
    return {attempt.transaction_id: attempt for attempt in attempts.select_for_update(no_key=True, of=("self",))}


def _within_day_limit(
    payouts: list[Transaction], kept: dict[int, Attempt], at: datetime, policy: Policy
) -> tuple[list[Transaction], list[day_limit.Part]]:
    """Return the payouts within their member's limit of the day, and their parts that count today.

    Postpones all others until tomorrow in Nairobi. A request that is too old to be sent again does not count.
    """
    parts = []
    for payout in payouts:
        attempt = kept.get(payout.pk)
        if attempt is None or payouts_attempts.within_horizon(attempt, at, policy):
            counted_on = attempt.counted_on if attempt is not None else None
            parts.append(day_limit.Part(payout.pk, payout.user_id, payout.amount, counted_on))
    fitting = day_limit.take(parts, at=at, limit=policy.day_limit)
    above = {part.transaction_id for part in parts} - fitting
    for payout in payouts:
        if payout.pk in above:
            payout.due_at, payout.reason = day_limit.next_day(at), ABOVE_DAY_LIMIT
            payout.save(update_fields=["due_at", "reason"])
    within = [payout for payout in payouts if payout.pk not in above]
    return within, [part for part in parts if part.transaction_id in fitting]


def _attempts_for(
    queue: Sequence[fair_queue.QueuedPayout],
    kept: dict[int, Attempt],
    at: datetime,
    policy: Policy,
    addresses: Addresses,
) -> dict[int, Attempt]:
    """Reopen or create the attempts of queued payouts, and return them by transaction id.

    `kept` has the open attempts, by transaction id.
    """
    opened = []
    for queued in queue:
        payout = queued.payout
        attempt = kept.get(payout.pk)
        if attempt is None:
            opened.append(payouts_attempts.new_attempt(payout, queued.last_number + 1, at, policy, addresses))
        elif payouts_attempts.within_horizon(attempt, at, policy):
            payouts_attempts.resend(attempt, at=at, policy=policy)
        else:
            # The request may have left once, too long ago to send the same id again safely. We only ask about it now.
            payouts_attempts.doubt(attempt, ask_at=at, at=at)
    payouts_attempts.open_many(opened, at=at)
    return kept | {attempt.transaction_id: attempt for attempt in opened}


def _claim_of(attempt: Attempt, payout: Transaction, addresses: Addresses, *, skips_queue: bool) -> Claim:
    return Claim(
        attempt_id=attempt.pk,
        transaction_id=payout.pk,
        settlement_id=payout.settlement_id,
        originator_conversation_id=attempt.originator_conversation_id,
        amount_shillings=int(attempt.amount),
        phone_number=attempt.phone_number,
        external_ref=payout.external_ref,
        token=addresses.token(attempt.originator_conversation_id),
        skips_queue=skips_queue,
        posted_at=attempt.posted_at,
    )


# --- requests --------------------------------------------------------------------------------------------------------


def request(claim: Claim, *, addresses: Addresses) -> dict[str, Any]:
    """Return the gateway's arguments for a claimed payout, and log the payout."""
    log.info("Initiating B2C payout for transaction %s, amount=%s", claim.transaction_id, claim.amount_shillings)
    return {
        "originator_conversation_id": claim.originator_conversation_id,
        "amount_shillings": claim.amount_shillings,
        "phone_number": claim.phone_number,
        "remarks": f"Payout {claim.external_ref.replace('-', ' ')}",
        "occasion": claim.external_ref.replace("-", " "),
        "result_url": addresses.result(claim.token),
        "timeout_url": addresses.timeout(claim.token),
    }


def call(claim: Claim, *, gateway: PaymentGateway, addresses: Addresses) -> Response:
    """POST one claimed request and return M-Pesa's response or the gateway's error. Touches no database."""
    try:
        return gateway.pay(**request(claim, addresses=addresses))
    except gateway_errors.GatewayError as error:
        return error
