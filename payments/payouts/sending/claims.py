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
from django.db.models import Exists, Max, OuterRef, Q, QuerySet, Sum

from markets.models import NAIROBI
from payments import failpoints
from payments.ledger import journal, receivables
from payments.models import Attempt, Breaker, Settlement, StatusQuery, Transaction
from payments.mpesa import client
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import breakers
from payments.payouts.evidence import rules
from payments.payouts.sending import canary, fair_queue
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
Said: TypeAlias = client.Accepted | client.GatewayError


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


@dataclass(frozen=True)
class Question:
    """A status query to be POSTed now, its row committed."""

    query_id: int
    originator_conversation_id: str
    token: str


# --- claiming: what may be sent now ----------------------------------------------------------------------------------


def due(*, at: datetime, policy: Policy) -> Q:
    """The payouts that may leave at `at`: over M-Pesa, pending, due, and released by their settlement.

    Of one payout it says whether; whose turn it is among all of them, is found by `turns`, which says the same in SQL.
    """
    in_canary = canary.in_canary(at=at, policy=policy)
    released = Q(settlement__isnull=True) | Q(
        settlement__state=Settlement.State.SETTLED,
        settlement__stopped_at=None,
        settlement__release_at__lte=at,
        settlement__release_open=True,
    )
    released |= Q(settlement__in=in_canary)
    # A retry asks first what became of the request that failed; so does a claim that it was paid after all.
    paid_or_asked = Q(state=State.PAID) | Q(state=State.FAILED, next_query_at__isnull=False)
    barred = Attempt.objects.filter(paid_or_asked, transaction=OuterRef("pk"))
    return released & Q(
        ~Exists(barred),
        status=Status.PENDING,
        destination=Transaction.Destination.MPESA,
        type=Transaction.Type.PAYOUT,
        due_at__lte=at,
    )


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
            is_due = Transaction.objects.filter(due(at=at, policy=policy), pk=transaction_id).exists()
            taken = fair_queue.take_named(transaction_id, at=at) if is_due else []
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
        failpoints.reach("claim before commit")
    failpoints.reach("claim after commit")
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
            attempt = rules.open_attempt(payout)
            if attempt is None or attempt.state != State.IN_DOUBT or attempt.resend_at is None:
                continue
            due = payout.status == Status.PROCESSING and not receivables.was_recalled(payout.pk)
            if due and rules.within_horizon(attempt, at, policy):
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
            opened.append(rules.new_attempt(payout, turn.last_number + 1, at, policy, addresses))
        elif rules.within_horizon(attempt, at, policy):
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
    except client.GatewayError as error:
        return error


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


def record_all(answers: Sequence[tuple[Claim, Said]], *, at: datetime, policy: Policy) -> None:
    """Write down what many POSTs left us knowing: plain acknowledgements in one statement, the others one by one.

    Plain is one whose attempt is still SENDING and whose transaction nobody else holds at the moment.
    Locks: Transactions by id (passing over locked ones), their Attempts; then as `record`.
    """
    accepted = {claim.attempt_id: (claim, said) for claim, said in answers if isinstance(said, client.Accepted)}
    recorded: set[int] = set()
    if len(accepted) > 1:
        failpoints.reach("answer read")
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
        failpoints.reach("record after commit")
    for claim, said in answers:
        if claim.attempt_id not in recorded:
            record(claim, said, at=at, policy=policy)


def record(claim: Claim, said: Said, *, at: datetime, policy: Policy) -> None:
    """Write down what a POST left us knowing. A callback that was faster has the last word: then nothing changes.

    Locks: Transaction, Attempt.
    """
    failpoints.reach("answer read")
    with transaction.atomic(durable=True):
        payout, attempt = rules.locked(claim.attempt_id)
        if isinstance(said, client.Accepted) and not attempt.conversation_id:
            attempt.conversation_id = said.conversation_id[:64]
            attempt.save(update_fields=["conversation_id"])
        if isinstance(said, client.OutcomeUnknown) and said.duplicate:
            rules.is_known(attempt, at=at)
        sure = attempt.doubted_at is None
        if attempt.state != State.SENDING:
            log.info("A callback was faster than the answer for %s", attempt)
        elif isinstance(said, client.Accepted):
            attempt.state, attempt.next_query_at = State.ACCEPTED, at + policy.query_after
            attempt.save()
            breakers.acknowledged(attempt.posted_at)
        elif (
            isinstance(said, client.NotSent)
            and sure
            and (payout.status == Status.HELD or receivables.was_recalled(payout.pk))
        ):
            # An earlier request was paid meanwhile, or the settlement undone: this one did not leave, and must not.
            rules.fail(payout, attempt, code="", words="Not sent", at=at, policy=policy)
        elif isinstance(said, client.NotSent) and sure:
            _wait(payout, attempt, said, at, policy)
        elif isinstance(said, client.Rejected) and sure:
            rules.fail(payout, attempt, code=said.code, words=str(said), at=at, policy=policy)
        else:
            attempt.result_words = str(said)[:300]
            rules.doubt(attempt, ask_at=at + policy.query_after, at=at)
            breakers.watch(at=at, policy=policy)
    failpoints.reach("record after commit")


def _wait(payout: Transaction, attempt: Attempt, said: client.NotSent, at: datetime, policy: Policy) -> None:
    """The request did not leave: the payout is pending again, its attempt stays open, the same id goes again."""
    attempt.state, attempt.next_query_at = State.WAITING, None
    if said.reason != "throttle" and attempt.first_sent_at == attempt.posted_at:
        attempt.first_sent_at = None
    attempt.save()
    # Waiting as long again as it has waited doubles the pause each time.
    pause = max(policy.retry_after, timedelta(seconds=float(said.retry_after_seconds or 0)))
    payout.due_at = at + min(max(pause, at - attempt.opened_at), rules.LONGEST_WAIT)
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
    failpoints.reach("question after commit")
    return questions


def _asked_enough(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> bool:
    """Whether a proven failure has been asked about in vain: a claim that it was paid for long, before a retry once."""
    if attempt.result_code in (rules.SAYS_PAID, rules.MAY_SAY_PAID):
        claimed_at = attempt.callbacks.aggregate(last=Max("received_at"))["last"] or attempt.closed_at or at
        return at - claimed_at >= policy.review_after
    return attempt.queries.filter(asked_at__gte=payout.due_at).exists()


def put(question: Question, *, gateway: client.Gateway, addresses: Addresses) -> str | None:
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
    except client.GatewayError as error:
        log.warning("Question about %s not taken: %s", question.originator_conversation_id, error)
        return None
    return accepted.conversation_id


def record_question(question: Question, conversation_id: str) -> None:
    """Keep Daraja's id of a question, for whoever looks into it later; its answer comes by its own address."""
    failpoints.reach("question put")
    StatusQuery.objects.filter(pk=question.query_id).update(conversation_id=conversation_id[:64])


def _hold_if_old(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> None:
    since = attempt.first_sent_at or attempt.opened_at
    if attempt.state in Attempt.OPEN and payout.status == Status.PROCESSING and at - since >= policy.review_after:
        payout.status = Status.HELD
        payout.reason = "In doubt for too long: a person must look at M-Pesa's statement."
        payout.save(update_fields=["status", "reason"])
        alarm.error("Transaction %s is held: in doubt since %s", payout.pk, since.isoformat())
