"""Callbacks: stored raw before we answer them, then applied once, under lock.

Each callback address holds a secret token. A message to an unknown address is refused and not stored. A message to a
known address is stored exactly as received. `rules` then decides how much the message proves.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce

from payments import failpoints
from payments.models import Attempt, Breaker, Callback, Transaction
from payments.mpesa import messages, strict_json
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import breakers, float_balance
from payments.payouts.evidence import applying, booking, orphans, rules
from payments.policy import Policy
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")


class UnknownAddress(Refusal):
    """The callback address belongs to none of our requests."""


class UnknownReference(Refusal):
    """No payout has the external reference that a plain callback names."""


class TooManyBodies(Refusal):
    """The callback address already has as many different bodies as we store for one address."""


# M-Pesa sends one or two bodies to an address, and perhaps repeats them. Without a limit, one leaked address could fill
# the disk. Each level of trust has its own limit, so that nobody else can use up M-Pesa's.
MOST_BODIES = 50
# The ids of our requests. The tokens of our status queries belong to ids of another form.
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]+-[1-9][0-9]{0,2}")


@dataclass(frozen=True)
class Report:
    """The first stored callback about one transaction, with the result that it reports."""

    callback_id: int
    attempt_id: int
    result: messages.Result
    is_trusted: bool


def store(
    *, kind: str, token: str, body: bytes, source_ip: str | None, trusted: bool, at: datetime, addresses: Addresses
) -> None:
    """Store a callback to one of our addresses, to be applied later.

    Idempotent: the same body is stored once from trusted addresses and once from untrusted ones. If an untrusted caller
    sent a body first, M-Pesa's own copy is therefore stored and applied too.
    A result may have a token of ours and name a request that we do not have, because the server lost its last commits.
    Such a result is parked until the request exists, and the request is recorded as an orphan.
    A timeout may be about a request or any query, because all of these have a timeout address.
    Raises: UnknownAddress; TooManyBodies. Then nothing is stored.
    """
    fields: dict[str, Any] = {
        "kind": kind,
        "token_hash": token_hash(token),
        "body": body,
        "digest": hashlib.sha256(body).hexdigest(),
        "received_at": at,
        "source_ip": source_ip,
        "trusted": trusted,
        "most": MOST_BODIES,
    }
    failpoints.hit("callback before store")
    with connection.cursor() as cursor:
        cursor.execute(_STORE, fields)
        is_known, bodies, is_repeated = cursor.fetchone()
    if not is_known:
        _park(kind, token, body, fields, addresses)
    elif not is_repeated:
        _refuse_above_limit(bodies, f"An address for {kind} callbacks ({fields['token_hash'][:8]})")
    failpoints.hit("callback after store")


def _refuse_above_limit(bodies: int, address: str) -> None:
    """Raise an alarm about an address that just got its last body. Raises: TooManyBodies above the limit."""
    if bodies >= MOST_BODIES:
        raise TooManyBodies(f"{MOST_BODIES} different messages came to this address. This one was not stored.")
    if bodies == MOST_BODIES - 1:
        alarm.error("%s got its %s. different body. Others are refused: somebody may know it", address, MOST_BODIES)


# A single statement, so that the view needs only one round trip and one commit: M-Pesa waits for our answer.
_STORE = """
    WITH known AS (
        SELECT id AS attempt_id, NULL::bigint AS query_id, NULL::bigint AS reading_id FROM payments_attempt
        WHERE token_hash = %(token_hash)s AND %(kind)s IN ('result', 'timeout')
        UNION ALL
        SELECT NULL, id, NULL FROM payments_statusquery
        WHERE token_hash = %(token_hash)s AND %(kind)s IN ('status', 'timeout')
        UNION ALL
        SELECT NULL, NULL, id FROM payments_floatreading
        WHERE token_hash = %(token_hash)s AND %(kind)s IN ('balance', 'timeout')
        LIMIT 1
    ), held AS (
        SELECT count(*) AS bodies, coalesce(bool_or(digest = %(digest)s), false) AS is_repeated
        FROM (
            SELECT digest, kind, trusted FROM payments_callback JOIN known USING (attempt_id)
            UNION ALL
            SELECT digest, kind, trusted FROM payments_callback JOIN known USING (query_id)
            UNION ALL
            SELECT digest, kind, trusted FROM payments_callback JOIN known USING (reading_id)
        ) earlier
        WHERE kind = %(kind)s AND trusted = %(trusted)s
    ), stored AS (
        INSERT INTO payments_callback (kind, originator_conversation_id, attempt_id, query_id, reading_id, body, digest,
            received_at, source_ip, trusted, verdict)
        SELECT %(kind)s, '', attempt_id, query_id, reading_id, %(body)s, %(digest)s, %(received_at)s,
            %(source_ip)s::inet, %(trusted)s, ''
        FROM known, held WHERE bodies < %(most)s AND NOT is_repeated ON CONFLICT DO NOTHING
    )
    SELECT EXISTS (SELECT FROM known), bodies, is_repeated FROM held
"""


def _park(kind: str, token: str, body: bytes, fields: dict[str, Any], addresses: Addresses) -> None:
    """Store a message about a request that we sent and no longer have, and record the request as an orphan.

    Raises: UnknownAddress, if we never sent such a request; TooManyBodies.
    """
    asked_about = orphans.asked_with(token)
    orphan = asked_about or _orphan(kind, token, body, addresses)
    if not orphan:
        raise UnknownAddress("There is nothing at this address.")
    columns = {name: value for name, value in fields.items() if name not in ("token_hash", "most")}
    parked = Callback.objects.filter(kind=kind, attempt=None, query=None, reading=None, trusted=fields["trusted"])
    others = parked.filter(originator_conversation_id=orphan).exclude(digest=fields["digest"])
    _refuse_above_limit(others[:MOST_BODIES].count(), f"The address of request {orphan}")
    with transaction.atomic():
        if not asked_about:
            orphans.record(orphan, at=fields["received_at"], addresses=addresses)
        Callback.objects.bulk_create([Callback(originator_conversation_id=orphan, **columns)], ignore_conflicts=True)


def _orphan(kind: str, token: str, body: bytes, addresses: Addresses) -> str:
    """Return the request id that the body names if `token` is the token of that id, else an empty string."""
    if kind not in (Callback.Kind.RESULT, Callback.Kind.TIMEOUT):
        return ""
    try:
        named = messages.parse_result(body).originator_conversation_id or ""
    except strict_json.Unreadable:
        return ""
    return named if len(named) <= 36 and _REQUEST_ID.fullmatch(named) and addresses.owns(token, named) else ""


def to_apply(*, after: int, limit: int) -> list[int]:
    """Return the ids above `after` of stored callbacks that are not applied yet, the oldest first."""
    parked = Q(attempt=None, query=None, reading=None) & ~Exists(_attempt_of(OuterRef("originator_conversation_id")))
    waiting = Callback.objects.filter(applied_at=None, pk__gt=after).exclude(parked).order_by("pk")
    return list(waiting.values_list("pk", flat=True)[:limit])


def apply_paid(*, callback_ids: Sequence[int], at: datetime, policy: Policy) -> list[int]:
    """Apply in bulk the callbacks that plainly prove a payment. Return the ids of all other callbacks for `apply`.

    Only the first callback about each transaction is considered, because callbacks are applied in order of arrival.
    Idempotent: skips applied callbacks.
    Locks: the Callbacks, the Transactions by id (skipping locked ones), their Attempts.
    """
    with transaction.atomic(durable=True):
        about = Coalesce("attempt__transaction", "query__attempt__transaction")
        waiting = Callback.objects.filter(pk__in=callback_ids, applied_at=None).order_by("pk")
        locked = waiting.select_for_update(skip_locked=True, no_key=True, of=("self",))
        reports: dict[int, Report] = {}
        considered: set[int] = set()
        remaining = []
        for pk, kind, attempt_id, body, trusted, payout_id in locked.annotate(payout=about).values_list(
            "pk", "kind", "attempt", "body", "trusted", "payout"
        ):
            remaining.append(pk)
            if payout_id is not None and payout_id not in considered:
                considered.add(payout_id)
                if (result := _result(kind, bytes(body)) if attempt_id else None) is not None:
                    reports[payout_id] = Report(pk, attempt_id, result, trusted or not policy.production)
        failpoints.hit("apply before evidence")
        proofs = _plainly_paid(reports, at, policy)
        booking.book(list(proofs.values()), at=at)
        if proofs:
            paid = (report for report in reports.values() if report.callback_id in proofs)
            last = max(paid, key=lambda report: report.callback_id)
            float_balance.note(last.result.utility_available, at=at)
        Callback.objects.filter(pk__in=list(proofs)).update(applied_at=at, verdict="paid")
        failpoints.hit("apply before commit")
    return [pk for pk in remaining if pk not in proofs]


def _result(kind: str, body: bytes) -> messages.Result | None:
    try:
        return messages.parse_result(body) if kind == Callback.Kind.RESULT else None
    except strict_json.Unreadable:
        return None


def _plainly_paid(reports: dict[int, Report], at: datetime, policy: Policy) -> dict[int, booking.Proof]:
    """Return the reports that plainly prove a payment, as proofs by callback id. `reports` is by transaction id.

    Locks: the Transactions (skipping locked ones), then their Attempts.
    """
    rows = Transaction.objects.filter(pk__in=list(reports)).order_by("pk").only("status", "user")
    payouts = {row.pk: row for row in rows.select_for_update(skip_locked=True, no_key=True, of=("self",))}
    wanted = [report.attempt_id for payout_id, report in reports.items() if payout_id in payouts]
    attempts = Attempt.objects.filter(pk__in=wanted).order_by("pk").only(*applying.ATTEMPT_COLUMNS)
    proofs = {}
    for attempt in attempts.select_for_update(no_key=True, of=("self",)):
        payout = payouts[attempt.transaction_id]
        report = reports[payout.pk]
        # `pay` takes a payment over from `suspense`, and counts a request that left before a restore.
        if attempt.kind == Attempt.Kind.FOUND or attempt.asked_first_at is not None:
            continue
        facts = applying.facts_of(payout, attempt)
        if rules.is_plainly_paid(facts, report.result, trusted=report.is_trusted, at=at, policy=policy):
            proofs[report.callback_id] = booking.Proof(attempt, payout.user_id, report.result.receipt or "")
    return proofs


def apply(*, callback_id: int, at: datetime, policy: Policy) -> str:
    """Apply one stored callback and return the outcome in words.

    Idempotent: skips an applied callback.
    Locks: the Callback (skipped if another worker holds it), then the rows that its evidence changes.
    """
    with transaction.atomic(durable=True):
        callback = (
            Callback.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
            .filter(pk=callback_id, applied_at=None)
            .first()
        )
        if callback is None:
            return "applied already"
        failpoints.hit("apply before evidence")
        if callback.attempt_id is None and callback.query_id is None and callback.reading_id is None:
            callback.attempt_id = _attempt_of(callback.originator_conversation_id).values_list("pk", flat=True).first()
            if callback.attempt_id is None:
                return "parked: we do not have its request"
        callback.verdict = _outcome(callback, at, policy)[:200]
        callback.applied_at = at
        callback.save(update_fields=["attempt", "applied_at", "verdict"])
        failpoints.hit("apply before commit")
    return callback.verdict


def _attempt_of(originator_conversation_id: object) -> QuerySet[Attempt]:
    return Attempt.objects.filter(originator_conversation_id=originator_conversation_id)


def _outcome(callback: Callback, at: datetime, policy: Policy) -> str:
    """Apply a callback's evidence by its kind, and return the outcome in words."""
    body = bytes(callback.body)
    trusted = callback.trusted or not policy.production
    try:
        if callback.kind == Callback.Kind.RESULT and callback.attempt_id:
            result = messages.parse_result(body)
            outcome = applying.apply_result(callback.attempt_id, result, trusted=trusted, at=at, policy=policy)
            if trusted and result.says_paid:
                float_balance.note(result.utility_available, at=at)
            return outcome
        if callback.kind == Callback.Kind.BALANCE and callback.reading_id:
            return _apply_balance(callback.reading_id, body, trusted=trusted, at=at, policy=policy)
        if callback.kind == Callback.Kind.STATUS and callback.query_id:
            answer = messages.parse_status(body)
            return applying.apply_status_answer(callback.query_id, answer, trusted=trusted, at=at, policy=policy)
        if callback.kind == Callback.Kind.STATUS:
            return "the request was found again; the queries about its attempt decide"
        if callback.attempt_id:
            return applying.apply_timeout(callback.attempt_id, at=at, policy=policy)
    except strict_json.Unreadable as error:
        alarm.error("Callback %s cannot be read: %s", callback.pk, error)
        if callback.kind == Callback.Kind.RESULT and callback.attempt_id:
            return f"unreadable ({error}); " + applying.apply_timeout(callback.attempt_id, at=at, policy=policy)
        return f"unreadable: {error}"
    return "a status query timed out in M-Pesa's queue: the next query is already due"


def _apply_balance(reading_id: int, body: bytes, *, trusted: bool, at: datetime, policy: Policy) -> str:
    """Apply the answer to a balance query. If M-Pesa refused our initiator, pause sending, because payouts need it too.

    Raises: strict_json.Unreadable.
    """
    answer = messages.parse_balance(body)
    if trusted and answer.refuses_our_credentials:
        breakers.trip(Breaker.Cause.CREDENTIALS, reason=_refusal(answer), at=at, policy=policy)
    return float_balance.apply_answer(reading_id, answer, trusted=trusted, at=at)


def _refusal(answer: messages.BalanceAnswer) -> str:
    return f"M-Pesa's code {answer.result_code} to a balance query: {answer.result_desc}"


def apply_plain(*, body: bytes, source_ip: str | None, at: datetime, policy: Policy, addresses: Addresses) -> str:
    """Store and apply a callback that names its payout by `ExternalReference` (the guide's part 4.4).

    The endpoint exists only outside production.
    Raises: strict_json.Unreadable; UnknownReference. Then nothing is stored.
    """
    result = messages.parse_result(body)
    with transaction.atomic(durable=True):
        applied = applying.apply_plain_result(result, at=at, policy=policy, addresses=addresses)
        if applied is None:
            raise UnknownReference(f"No payout has the reference {result.external_reference!r}.")
        attempt_id, outcome = applied
        Callback.objects.create(
            kind=Callback.Kind.PLAIN,
            attempt_id=attempt_id,
            body=body,
            digest=hashlib.sha256(body).hexdigest(),
            received_at=at,
            source_ip=source_ip,
            trusted=False,
            applied_at=at,
            verdict=outcome[:200],
        )
    return outcome
