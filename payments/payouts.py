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

from django.db import transaction
from django.db.models import Exists, Max, OuterRef, Q, QuerySet, Sum

from markets.models import NAIROBI
from payments import breakers, crashpoints, daraja, evidence, ledger, recoveries, releases
from payments.addresses import Addresses, token_hash
from payments.models import Attempt, Breaker, Settlement, StatusQuery, Transaction
from payments.policy import Policy

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

CAUSES = {
    "network": Breaker.Cause.NETWORK,
    "auth": Breaker.Cause.CREDENTIALS,
    "throttle": Breaker.Cause.THROTTLE,
}
LONGEST_QUERY_GAP = timedelta(hours=1)

State = Attempt.State
Status = Transaction.Status


@dataclass(frozen=True)
class Claim:
    """A request to be POSTed now, its attempt committed as SENDING. Amount in whole shillings."""

    attempt_id: int
    transaction_id: int
    originator_conversation_id: str
    amount_shillings: int
    phone_number: str
    external_ref: str
    token: str


@dataclass(frozen=True)
class Question:
    """A status query to be POSTed now, its row committed."""

    query_id: int
    originator_conversation_id: str
    token: str


# --- claiming: what may be sent now ----------------------------------------------------------------------------------


def due(*, at: datetime, policy: Policy) -> Q:
    """The payouts that may leave at `at`: over M-Pesa, pending, due, and released by their settlement."""
    in_canary = releases.in_canary(at=at, policy=policy)
    released = Q(settlement__isnull=True) | Q(
        settlement__state=Settlement.State.SETTLED,
        settlement__stopped_at=None,
        settlement__release_at__lte=at,
        settlement__release_open=True,
    )
    released |= Q(settlement__in=in_canary)
    # A retry asks first what became of the request that failed; so does a claim that it was paid after all.
    asked = Attempt.objects.filter(transaction=OuterRef("pk"), state=State.FAILED, next_query_at__isnull=False)
    return released & Q(
        ~Exists(asked),
        status=Status.PENDING,
        destination=Transaction.Destination.MPESA,
        type=Transaction.Type.PAYOUT,
        due_at__lte=at,
    )


def any_due(*, at: datetime, policy: Policy) -> bool:
    """Whether there is a payout to claim or a request to send again."""
    return Transaction.objects.filter(due(at=at, policy=policy)).exists() or _resendable(at).exists()


def _resendable(at: datetime) -> QuerySet[Attempt]:
    """Doubtful attempts whose same id may go again; what is undone, or is to be, is only asked about."""
    stands = Q(transaction__settlement=None) | Q(
        transaction__settlement__state=Settlement.State.SETTLED, transaction__settlement__stopped_at=None
    )
    return Attempt.objects.filter(stands, state=State.IN_DOUBT, resend_at__lte=at)


def claim(
    *, at: datetime, policy: Policy, addresses: Addresses, limit: int, transaction_id: int | None = None
) -> list[Claim]:
    """Claim up to `limit` due payouts for sending (or the one named, where it is due), oldest first.

    A payout whose last request never left keeps its id; any other gets a new attempt. What would pass a member's limit
    of the day is put off to the next day in Nairobi.
    Idempotent: what another worker holds or has claimed is passed over.
    Locks: Transactions (skipping locked ones), then their open Attempts.
    """
    with transaction.atomic(durable=True):
        rows = (
            Transaction.objects.filter(due(at=at, policy=policy)).select_related("settlement").order_by("due_at", "pk")
        )
        if transaction_id is not None:
            rows = rows.filter(pk=transaction_id)
        payouts = list(rows.select_for_update(skip_locked=True, no_key=True, of=("self",))[:limit])
        payouts = _within_day_limit(payouts, at, policy)
        if payouts:
            payouts = payouts[: breakers.allowance(at=at, policy=policy)]
        payouts = releases.within(payouts, policy)
        attempts = _attempts_for(payouts, at, policy, addresses)
        for payout in payouts:
            payout.status, payout.reason = Status.PROCESSING, ""
        Transaction.objects.bulk_update(payouts, ["status", "reason"])
        claims = [
            _claim_of(attempt, payout, addresses)
            for payout in payouts
            if (attempt := attempts[payout.pk]).state == State.SENDING
        ]
        crashpoints.reach("claim before commit")
    crashpoints.reach("claim after commit")
    return claims


def claim_resends(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[Claim]:
    """Claim doubtful attempts whose same id is to go again, because a status query did not find it.

    Only within the resend horizon of the first POST: M-Pesa publishes no retention for its check of duplicates.
    Locks: Transactions (skipping locked ones), then the Attempts.
    """
    with transaction.atomic(durable=True):
        doubtful = list(_resendable(at).order_by("resend_at").values_list("transaction", flat=True)[:limit])
        if doubtful:
            doubtful = doubtful[: breakers.allowance(at=at, policy=policy)]
        payouts = Transaction.objects.filter(pk__in=doubtful)
        claims = []
        for payout in payouts.order_by("pk").select_for_update(skip_locked=True, no_key=True, of=("self",)):
            attempt = evidence.open_attempt(payout)
            if attempt is None or attempt.state != State.IN_DOUBT or attempt.resend_at is None:
                continue
            attempt.resend_at = None
            due = payout.status == Status.PROCESSING and not recoveries.was_recalled(payout.pk)
            if due and evidence.within_horizon(attempt, at, policy):
                attempt.state, attempt.posted_at = State.SENDING, at
                attempt.next_query_at = at + policy.query_after
                claims.append(_claim_of(attempt, payout, addresses))
            attempt.save()
    return claims


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
        total = sent_today.get(payout.user_id, ledger.ZERO) + payout.amount
        if total > policy.day_limit:
            payout.due_at = midnight + timedelta(days=1, minutes=5)
            payout.reason = "M-Pesa's limit of the day for one member is reached; it leaves tomorrow."
            payout.save(update_fields=["due_at", "reason"])
        else:
            sent_today[payout.user_id] = total
            within.append(payout)
    return within


def _attempts_for(
    payouts: Sequence[Transaction], at: datetime, policy: Policy, addresses: Addresses
) -> dict[int, Attempt]:
    ids = [payout.pk for payout in payouts]
    waiting = {
        attempt.transaction_id: attempt
        for attempt in Attempt.objects.select_for_update(no_key=True, of=("self",)).filter(
            transaction__in=ids, state__in=Attempt.OPEN
        )
    }
    numbers = dict(
        Attempt.objects.filter(transaction__in=ids).values_list("transaction").annotate(last=Max("number")).order_by()
    )
    opened = []
    for payout in payouts:
        attempt = waiting.get(payout.pk)
        if attempt is None:
            opened.append(evidence.new_attempt(payout, numbers.get(payout.pk, 0) + 1, at, policy, addresses))
        elif evidence.within_horizon(attempt, at, policy):
            attempt.state, attempt.posted_at = State.SENDING, at
            attempt.first_sent_at = attempt.first_sent_at or at
            attempt.next_query_at = at + policy.query_after
            attempt.save()
        else:
            # It may have left once, too long ago for the same id to be safe: from now on only questions.
            attempt.state, attempt.next_query_at = State.IN_DOUBT, at
            attempt.doubted_at = attempt.doubted_at or at
            attempt.save()
    Attempt.objects.bulk_create(opened)
    ledger.post(
        [
            ledger.Entry(f"send:{attempt.pk}", ledger.PAYABLE, ledger.IN_FLIGHT, attempt.amount, attempt.transaction_id)
            for attempt in opened
        ],
        at=at,
    )
    return waiting | {attempt.transaction_id: attempt for attempt in opened}


def _claim_of(attempt: Attempt, payout: Transaction, addresses: Addresses) -> Claim:
    return Claim(
        attempt_id=attempt.pk,
        transaction_id=payout.pk,
        originator_conversation_id=attempt.originator_conversation_id,
        amount_shillings=int(attempt.amount),
        phone_number=attempt.phone_number,
        external_ref=payout.external_ref,
        token=addresses.token(attempt.originator_conversation_id),
    )


# --- sending: what the call left us knowing --------------------------------------------------------------------------


def call(claim: Claim, *, gateway: daraja.Gateway, addresses: Addresses) -> daraja.Accepted | daraja.GatewayError:
    """POST one claimed request and return what M-Pesa said: the answer or the error. Touches no database."""
    log.info("Initiating B2C payout for transaction %s, amount=%s", claim.transaction_id, claim.amount_shillings)
    try:
        return gateway.pay(
            originator_conversation_id=claim.originator_conversation_id,
            amount_shillings=claim.amount_shillings,
            phone_number=claim.phone_number,
            remarks=f"Payout {claim.external_ref.replace('-', ' ')}",
            occasion=claim.external_ref.replace("-", " "),
            result_url=addresses.result(claim.token),
            timeout_url=addresses.timeout(claim.token),
        )
    except daraja.GatewayError as error:
        return error


def record(claim: Claim, said: daraja.Accepted | daraja.GatewayError, *, at: datetime, policy: Policy) -> None:
    """Write down what a POST left us knowing. A callback that was faster has the last word: then nothing changes.

    Locks: Transaction, Attempt.
    """
    crashpoints.reach("answer read")
    with transaction.atomic(durable=True):
        payout, attempt = evidence.locked(claim.attempt_id)
        if isinstance(said, daraja.Accepted) and not attempt.conversation_id:
            attempt.conversation_id = said.conversation_id[:64]
            attempt.save(update_fields=["conversation_id"])
        sure = attempt.doubted_at is None
        if attempt.state != State.SENDING:
            log.info("A callback was faster than the answer for %s", attempt)
        elif isinstance(said, daraja.Accepted):
            attempt.state, attempt.next_query_at = State.ACCEPTED, at + policy.query_after
            attempt.save()
            breakers.acknowledged(attempt.posted_at)
        elif (
            isinstance(said, daraja.NotSent)
            and sure
            and (payout.status == Status.HELD or recoveries.was_recalled(payout.pk))
        ):
            # An earlier request was paid meanwhile, or the settlement undone: this one did not leave, and must not.
            evidence.fail(payout, attempt, code="", words="Not sent", at=at, policy=policy)
        elif isinstance(said, daraja.NotSent) and sure:
            _wait(payout, attempt, said, at, policy)
        elif isinstance(said, daraja.Rejected) and sure:
            evidence.fail(payout, attempt, code=said.code, words=str(said), at=at, policy=policy)
        else:
            attempt.result_words = str(said)[:300]
            evidence.doubt(attempt, ask_at=at + policy.query_after, at=at)
            breakers.watch(at=at, policy=policy)
    crashpoints.reach("record after commit")


def _wait(payout: Transaction, attempt: Attempt, said: daraja.NotSent, at: datetime, policy: Policy) -> None:
    """The request did not leave: the payout is pending again, its attempt stays open, the same id goes again."""
    attempt.state, attempt.next_query_at = State.WAITING, None
    if said.reason != "throttle" and attempt.first_sent_at == attempt.posted_at:
        attempt.first_sent_at = None
    attempt.save()
    # Waiting as long again as it has waited doubles the pause each time.
    pause = max(policy.retry_after, timedelta(seconds=float(said.retry_after_seconds or 0)))
    payout.due_at = at + min(max(pause, at - attempt.opened_at), evidence.LONGEST_WAIT)
    payout.reason = f"Not sent yet: {said}"[:300]
    payout.status = Status.PENDING
    payout.save(update_fields=["due_at", "reason", "status"])
    breakers.trip(CAUSES[said.reason], reason=str(said), at=at, policy=policy)


# --- doubt: asking what became of a request --------------------------------------------------------------------------


def ask(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[Question]:
    """Claim up to `limit` attempts that have gone without proof for too long, and write a question about each.

    The first is due `query_after` the POST, then at gaps that double from `query_gap` to an hour. An attempt in doubt
    for longer than `review_after` is HELD for a person; questions go on.
    Locks: Transactions (skipping locked ones), then their Attempts.
    """
    with transaction.atomic(durable=True):
        waiting = Attempt.objects.filter(next_query_at__lte=at).exclude(state__in=[State.WAITING, State.PAID])
        ids = list(waiting.order_by("next_query_at").values_list("transaction", "pk")[:limit])
        payouts = {
            payout.pk: payout
            for payout in Transaction.objects.filter(pk__in=[payout for payout, _ in ids])
            .order_by("pk")
            .select_for_update(skip_locked=True, no_key=True, of=("self",))
        }
        attempts = Attempt.objects.filter(pk__in=[pk for _, pk in ids], transaction__in=payouts, next_query_at__lte=at)
        questions = []
        for attempt in attempts.select_for_update(no_key=True, of=("self",)).order_by("pk"):
            if attempt.state in (State.SENDING, State.ACCEPTED):
                attempt.state, attempt.doubted_at = State.IN_DOUBT, attempt.doubted_at or at
            asked = attempt.queries.count()
            attempt.next_query_at = at + min(policy.query_gap * 2 ** min(asked, 10), LONGEST_QUERY_GAP)
            if attempt.state == State.FAILED and _asked_enough(payouts[attempt.transaction_id], attempt, at, policy):
                attempt.next_query_at = None
                attempt.save(update_fields=["next_query_at"])
                continue
            attempt.save()
            token = addresses.token(f"{attempt.originator_conversation_id}?{asked + 1}")
            query = StatusQuery.objects.create(
                attempt=attempt, number=asked + 1, token_hash=token_hash(token), asked_at=at
            )
            questions.append(Question(query.pk, attempt.originator_conversation_id, token))
            _hold_if_old(payouts[attempt.transaction_id], attempt, at, policy)
    crashpoints.reach("question after commit")
    return questions


def _asked_enough(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> bool:
    """Whether a proven failure has been asked about in vain: a claim that it was paid for long, before a retry once."""
    if attempt.result_code in (evidence.SAYS_PAID, evidence.MAY_SAY_PAID):
        claimed_at = attempt.callbacks.aggregate(last=Max("received_at"))["last"] or attempt.closed_at or at
        return at - claimed_at >= policy.review_after
    return attempt.queries.filter(asked_at__gte=payout.due_at).exists()


def put(question: Question, *, gateway: daraja.Gateway, addresses: Addresses) -> str | None:
    """POST one question and return Daraja's id of it. Touches no database.

    What goes wrong with it (None) changes nothing: the next question is due already.
    """
    try:
        accepted = gateway.ask_status(
            originator_conversation_id=question.originator_conversation_id,
            result_url=addresses.status_result(question.token),
            timeout_url=addresses.timeout(question.token),
            remarks="Payout status",
        )
    except daraja.GatewayError as error:
        log.warning("Question about %s not taken: %s", question.originator_conversation_id, error)
        return None
    return accepted.conversation_id


def record_question(question: Question, conversation_id: str) -> None:
    """Keep Daraja's id of a question, for whoever looks into it later; its answer comes by its own address."""
    crashpoints.reach("question put")
    StatusQuery.objects.filter(pk=question.query_id).update(conversation_id=conversation_id[:64])


def _hold_if_old(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> None:
    since = attempt.first_sent_at or attempt.opened_at
    if attempt.state in Attempt.OPEN and payout.status == Status.PROCESSING and at - since >= policy.review_after:
        payout.status = Status.HELD
        payout.reason = "In doubt for too long: a person must look at M-Pesa's statement."
        payout.save(update_fields=["status", "reason"])
        alarm.error("Transaction %s is held: in doubt since %s", payout.pk, since.isoformat())
