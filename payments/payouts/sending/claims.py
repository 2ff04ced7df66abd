"""The payout machine: what may be sent, what a request to M-Pesa left us knowing, and what proves the money's fate.

A payout is claimed (its attempt committed) before the call, and what the call left us knowing is written after it; no
transaction is open across the network. Until its fate is proven (evidence.py has the rules) an attempt stays open and
no other one can be opened.

Lock order: Transaction, Attempt, then wallets (ledger).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from django.db import connection, transaction
from django.db.models import Q, QuerySet, Sum

from markets.models import NAIROBI
from payments import failpoints
from payments.ledger import journal, receivables
from payments.models import Attempt, Settlement, Transaction
from payments.mpesa import client, gateway_errors
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts as payouts_attempts
from payments.payouts import breakers, eligibility
from payments.payouts.sending import canary, fair_queue
from payments.policy import Policy

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

State = Attempt.State
Status = Transaction.Status
Said: TypeAlias = client.Accepted | gateway_errors.GatewayError


@dataclass(frozen=True)
class Claim:
    """A request to be POSTed now, its attempt committed as SENDING. Amount in whole shillings.

    `before_turns`: it goes again, and did not wait for its settlement's turn.
    """

    attempt_id: int
    transaction_id: int
    settlement_id: int | None
    originator_conversation_id: str
    amount_shillings: int
    phone_number: str
    external_ref: str
    token: str
    before_turns: bool


# --- claiming: what may be sent now ----------------------------------------------------------------------------------


def any_due(*, at: datetime, policy: Policy) -> bool:
    """Whether there is a payout to claim or a request to send again."""
    return fair_queue.any_due(at=at, policy=policy) or _resendable(at).exists()


def _resendable(at: datetime) -> QuerySet[Attempt]:
    """Doubtful attempts whose same id may go again; what is undone, or is to be, is only asked about."""
    stands = Q(transaction__settlement=None) | Q(
        transaction__settlement__state=Settlement.State.SETTLED, transaction__settlement__stopped_at=None
    )
    return Attempt.objects.filter(stands, state=State.IN_DOUBT, resend_at__lte=at)


def claim(
    *,
    at: datetime,
    policy: Policy,
    addresses: Addresses,
    limit: int,
    transaction_id: int | None = None,
    after: int = 0,
) -> list[Claim]:
    """Claim up to `limit` due payouts for sending (or the one named, where it is due), in the order of `turns.take`.

    `after` is the settlement that had the last turn before.
    A payout whose last request never left keeps its id; any other gets a new attempt. What would pass a member's limit
    of the day is put off to the next day in Nairobi.
    Idempotent: what another worker holds or has claimed is passed over.
    Locks: Transactions (skipping locked ones), then their open Attempts.
    """
    with transaction.atomic(durable=True):
        if transaction_id is None:
            taken = fair_queue.take(at=at, policy=policy, limit=limit, after=after)
        else:
            in_canary = canary.in_canary(at=at, policy=policy)
            may_leave = eligibility.may_leave([transaction_id], in_canary=in_canary, at=at)
            taken = fair_queue.take_named(transaction_id, at=at) if may_leave else []
        payouts = _within_day_limit([turn.payout for turn in taken], at, policy)
        if payouts:
            payouts = payouts[: breakers.allowance(at=at, policy=policy)]
        payouts = canary.within(payouts, policy)
        leaving = {payout.pk for payout in payouts}
        taken = [turn for turn in taken if turn.payout.pk in leaving]
        attempts = _attempts_for(taken, at, policy, addresses)
        Transaction.objects.filter(pk__in=leaving).update(status=Status.PROCESSING, reason="")
        claims = [
            _claim_of(attempt, turn.payout, addresses, before_turns=turn.before_turns)
            for turn in taken
            if (attempt := attempts[turn.payout.pk]).state == State.SENDING
        ]
        failpoints.hit("claim before commit")
    failpoints.hit("claim after commit")
    return claims


def claim_resends(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[Claim]:
    """Claim doubtful attempts whose same id is to go again, because a status query did not find it.

    Only within the resend horizon of the first POST: M-Pesa publishes no retention for its check of duplicates.
    Locks: Transactions (skipping locked ones), then the Attempts.
    """
    with transaction.atomic(durable=True):
        doubtful = list(_resendable(at).order_by("resend_at").values_list("transaction", flat=True)[:limit])
        payouts = Transaction.objects.filter(pk__in=doubtful)
        leaving = []
        for payout in payouts.order_by("pk").select_for_update(skip_locked=True, no_key=True, of=("self",)):
            attempt = payouts_attempts.open_attempt(payout)
            if attempt is None or attempt.state != State.IN_DOUBT or attempt.resend_at is None:
                continue
            due = payout.status == Status.PROCESSING and not receivables.was_recalled(payout.pk)
            if due and payouts_attempts.within_horizon(attempt, at, policy):
                leaving.append((payout, attempt))
            else:
                attempt.resend_at = None
                attempt.save(update_fields=["resend_at"])
        if leaving:  # A probe is taken for what really leaves.
            leaving = leaving[: breakers.allowance(at=at, policy=policy)]
        claims = []
        for payout, attempt in leaving:
            attempt.state, attempt.posted_at, attempt.resend_at = State.SENDING, at, None
            attempt.first_sent_at = attempt.first_sent_at or at
            attempt.next_query_at = at + policy.query_after
            attempt.save()
            claims.append(_claim_of(attempt, payout, addresses, before_turns=True))
    return claims


def claim_next(*, at: datetime, policy: Policy, addresses: Addresses, limit: int, after: int) -> list[Claim]:
    """Claim up to `limit` requests to be POSTed next, what goes again before what is new.

    An id that goes again is safe for a while only, and a million others may wait. While sending is paused it is the
    other way round: a resend says less of whether the way is clear, for M-Pesa may call it a duplicate. `after` and
    locks are those of `claim`.
    """
    span: dict[str, Any] = {"at": at, "policy": policy, "addresses": addresses}
    if breakers.any_open():
        claims = claim(**span, limit=limit, after=after)
        return claims + (claim_resends(**span, limit=limit - len(claims)) if len(claims) < limit else [])
    claims = claim_resends(**span, limit=limit)
    return claims + (claim(**span, limit=limit - len(claims), after=after) if len(claims) < limit else [])


def _within_day_limit(payouts: list[Transaction], at: datetime, policy: Policy) -> list[Transaction]:
    midnight = at.astimezone(NAIROBI).replace(hour=0, minute=0, second=0, microsecond=0)
    # What these payouts themselves opened today is either proven not sent or waits for the very claim we make here.
    others = Attempt.objects.exclude(state=State.FAILED).exclude(transaction__in=payouts)
    sent_today = dict(
        others.filter(transaction__user__in={payout.user_id for payout in payouts}, opened_at__gte=midnight)
        .values_list("transaction__user")
        .annotate(total=Sum("amount"))
        .order_by()
    )
    within = []
    for payout in payouts:
        total = sent_today.get(payout.user_id, journal.ZERO) + payout.amount
        if total > policy.day_limit:
            payout.due_at = midnight + timedelta(days=1, minutes=5)
            payout.reason = "M-Pesa's limit of the day for one member is reached; it leaves tomorrow."
            payout.save(update_fields=["due_at", "reason"])
        else:
            sent_today[payout.user_id] = total
            within.append(payout)
    return within


def _attempts_for(
    taken: Sequence[fair_queue.Turn], at: datetime, policy: Policy, addresses: Addresses
) -> dict[int, Attempt]:
    reopened = [turn.payout.pk for turn in taken if turn.has_open_attempt]
    waiting = {
        attempt.transaction_id: attempt
        for attempt in Attempt.objects.select_for_update(no_key=True, of=("self",)).filter(
            transaction__in=reopened, state__in=Attempt.OPEN
        )
    }
    opened = []
    for turn in taken:
        payout = turn.payout
        attempt = waiting.get(payout.pk)
        if attempt is None:
            opened.append(payouts_attempts.new_attempt(payout, turn.last_number + 1, at, policy, addresses))
        elif payouts_attempts.within_horizon(attempt, at, policy):
            attempt.state, attempt.posted_at = State.SENDING, at
            attempt.first_sent_at = attempt.first_sent_at or at
            attempt.next_query_at = at + policy.query_after
            attempt.save()
        else:
            # It may have left once, too long ago for the same id to be safe: from now on only questions.
            attempt.state, attempt.next_query_at = State.IN_DOUBT, at
            attempt.doubted_at = attempt.doubted_at or at
            attempt.save()
    _insert(opened)
    journal.post(
        [
            journal.Entry(
                f"send:{attempt.pk}", journal.PAYABLE, journal.IN_FLIGHT, attempt.amount, attempt.transaction_id
            )
            for attempt in opened
        ],
        at=at,
    )
    return waiting | {attempt.transaction_id: attempt for attempt in opened}


# What Django's bulk_create would write, at a fifth of its cost: most of a row is the payout's, or the same for all.
_INSERT = """
    INSERT INTO payments_attempt (transaction_id, settlement_id, number, kind, originator_conversation_id,
        conversation_id, token_hash, amount, phone_number, state, opened_at, posted_at, first_sent_at, next_query_at,
        result_code, result_words, receipt)
    SELECT t.id, t.settlement_id, o.number, %(kind)s, o.originator_conversation_id, '', o.token_hash, t.amount,
        t.phone_number, %(state)s, %(at)s, %(at)s, %(at)s, %(ask_at)s, '', '', ''
    FROM unnest(%(payouts)s::bigint[], %(numbers)s::smallint[], %(ids)s::text[], %(hashes)s::text[])
        AS o (payout_id, number, originator_conversation_id, token_hash)
    JOIN payments_transaction t ON t.id = o.payout_id
    RETURNING transaction_id, id
"""


def _insert(opened: Sequence[Attempt]) -> None:
    """Insert new attempts as `evidence.new_attempt` made them, all of the same moment, and give them their ids."""
    if not opened:
        return
    columns: dict[str, Any] = {
        "payouts": [attempt.transaction_id for attempt in opened],
        "numbers": [attempt.number for attempt in opened],
        "ids": [attempt.originator_conversation_id for attempt in opened],
        "hashes": [attempt.token_hash for attempt in opened],
        "kind": opened[0].kind,
        "state": opened[0].state,
        "at": opened[0].opened_at,
        "ask_at": opened[0].next_query_at,
    }
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, columns)
        ids = dict(cursor.fetchall())
    for attempt in opened:
        attempt.pk = ids[attempt.transaction_id]


def _claim_of(attempt: Attempt, payout: Transaction, addresses: Addresses, *, before_turns: bool) -> Claim:
    return Claim(
        attempt_id=attempt.pk,
        transaction_id=payout.pk,
        settlement_id=payout.settlement_id,
        originator_conversation_id=attempt.originator_conversation_id,
        amount_shillings=int(attempt.amount),
        phone_number=attempt.phone_number,
        external_ref=payout.external_ref,
        token=addresses.token(attempt.originator_conversation_id),
        before_turns=before_turns,
    )


# --- sending: what the call left us knowing --------------------------------------------------------------------------


def request(claim: Claim, *, addresses: Addresses) -> dict[str, Any]:
    """What the gateway is to be asked for a claimed payout; the log says that it is."""
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


def call(claim: Claim, *, gateway: client.Gateway, addresses: Addresses) -> Said:
    """POST one claimed request and return what M-Pesa said: the answer or the error. Touches no database."""
    try:
        return gateway.pay(**request(claim, addresses=addresses))
    except gateway_errors.GatewayError as error:
        return error
