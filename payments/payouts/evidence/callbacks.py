"""Callbacks: stored raw before they are answered, then applied once, under lock.

An address is known by its token alone; what comes to an unknown one is not even stored. What comes to a known one is
kept as it came, whatever it says, and `evidence` decides what it proves.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce

from payments import failpoints
from payments.models import Attempt, Callback, Transaction
from payments.mpesa import messages, strict_json
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import float_balance
from payments.payouts.evidence import booking, rules
from payments.policy import Policy
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")


class UnknownAddress(Refusal):
    """No request of ours was given that callback address."""


@dataclass(frozen=True)
class Claimed:
    """What the first callback about one transaction claims."""

    callback_id: int
    attempt_id: int
    result: messages.Result
    is_trusted: bool


class UnknownReference(Refusal):
    """No payout has the external reference that a plain callback names."""


def store(
    *, kind: str, token: str, body: bytes, source_ip: str | None, trusted: bool, at: datetime, addresses: Addresses
) -> None:
    """Keep a callback that came to one of our addresses, to be applied; once, where the very same came before.

    Where a stranger brought the very same before M-Pesa did, M-Pesa's own is kept and applied beside it.

    A result whose token is ours although we have no such request (a restore lost it) is parked until it is there.

    A timeout may be about a request or about a query: both are given such an address.
    Raises: UnknownAddress, and stores nothing.
    """
    claimed: dict[str, Any] = {
        "kind": kind,
        "token_hash": token_hash(token),
        "body": body,
        "digest": hashlib.sha256(body).hexdigest(),
        "received_at": at,
        "source_ip": source_ip,
        "trusted": trusted,
    }
    failpoints.hit("callback before store")
    with connection.cursor() as cursor:
        cursor.execute(_STORE, claimed)
        (is_known,) = cursor.fetchone()
    if not is_known:
        _park(kind, token, body, claimed, addresses)
    failpoints.hit("callback after store")


# One statement, and so one commit and one round trip: M-Pesa waits for the answer.
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
    ), stored AS (
        INSERT INTO payments_callback (kind, originator_conversation_id, attempt_id, query_id, reading_id, body, digest,
            received_at, source_ip, trusted, verdict)
        SELECT %(kind)s, '', attempt_id, query_id, reading_id, %(body)s, %(digest)s, %(received_at)s,
            %(source_ip)s::inet, %(trusted)s, ''
        FROM known ON CONFLICT DO NOTHING
    )
    SELECT EXISTS (SELECT FROM known)
"""


def _park(kind: str, token: str, body: bytes, claimed: dict[str, Any], addresses: Addresses) -> None:
    """Keep a result of a request of ours that we do not have. Raises: UnknownAddress where it is none of ours."""
    orphan = _orphan(kind, token, body, addresses)
    if not orphan:
        raise UnknownAddress("There is nothing at this address.")
    alarm.critical("A result for request %s, which we sent and do not have: restored from a backup?", orphan)
    fields = {name: value for name, value in claimed.items() if name != "token_hash"}
    Callback.objects.bulk_create(
        [Callback(originator_conversation_id=orphan, **fields)],
        ignore_conflicts=True,
    )


def _orphan(kind: str, token: str, body: bytes, addresses: Addresses) -> str:
    """The id that a body names, if the token it came with is the one we would have given a request of that id."""
    if kind != Callback.Kind.RESULT:
        return ""
    try:
        named = messages.parse_result(body).originator_conversation_id or ""
    except strict_json.Unreadable:
        return ""
    return named if len(named) <= 36 and addresses.owns(token, named) else ""


def to_apply(*, after: int, limit: int) -> list[int]:
    """Ids above `after` of the stored callbacks that have not been applied yet, oldest first."""
    parked = Q(attempt=None, query=None, reading=None) & ~Exists(_attempt_of(OuterRef("originator_conversation_id")))
    waiting = Callback.objects.filter(applied_at=None, pk__gt=after).exclude(parked).order_by("pk")
    return list(waiting.values_list("pk", flat=True)[:limit])


def apply_paid(*, callback_ids: Sequence[int], at: datetime, policy: Policy) -> list[int]:
    """Apply those of the callbacks that plainly prove a payment, all at once; return the others, for `apply`, in order.

    Of the callbacks about one transaction only the first is looked at: what came before a proof has the first word.
    Idempotent: an applied one is passed over.
    Locks: the Callbacks, the Transactions by id (passing over locked ones), their Attempts.
    """
    with transaction.atomic(durable=True):
        about = Coalesce("attempt__transaction", "query__attempt__transaction")
        waiting = Callback.objects.filter(pk__in=callback_ids, applied_at=None).order_by("pk")
        locked = waiting.select_for_update(skip_locked=True, no_key=True, of=("self",))
        found: dict[int, Claimed] = {}
        seen: set[int] = set()
        left = []
        for pk, kind, attempt_id, body, trusted, payout_id in locked.annotate(payout=about).values_list(
            "pk", "kind", "attempt", "body", "trusted", "payout"
        ):
            left.append(pk)
            if payout_id is not None and payout_id not in seen:
                seen.add(payout_id)
                if (result := _result(kind, bytes(body)) if attempt_id else None) is not None:
                    found[payout_id] = Claimed(pk, attempt_id, result, trusted or not policy.production)
        failpoints.hit("apply before evidence")
        plain = _plainly_paid(found, policy)
        booking.book(list(plain.values()), at=at)
        if plain:
            last = max((claim for claim in found.values() if claim.callback_id in plain), key=lambda c: c.callback_id)
            float_balance.note(last.result.utility_available, at=at)
        Callback.objects.filter(pk__in=list(plain)).update(applied_at=at, verdict="paid")
        failpoints.hit("apply before commit")
    return [pk for pk in left if pk not in plain]


def _result(kind: str, body: bytes) -> messages.Result | None:
    try:
        return messages.parse_result(body) if kind == Callback.Kind.RESULT else None
    except strict_json.Unreadable:
        return None


def _plainly_paid(found: dict[int, Claimed], policy: Policy) -> dict[int, booking.Proof]:
    """The proofs, by callback, among what is claimed, by transaction."""
    rows = Transaction.objects.filter(pk__in=list(found)).order_by("pk").only("status", "user")
    payouts = {row.pk: row for row in rows.select_for_update(skip_locked=True, no_key=True, of=("self",))}
    wanted = [claimed.attempt_id for payout_id, claimed in found.items() if payout_id in payouts]
    columns = ("transaction", "state", "amount", "phone_number", "originator_conversation_id", "posted_at")
    attempts = Attempt.objects.filter(pk__in=wanted).order_by("pk").only(*columns)
    plain = {}
    for attempt in attempts.select_for_update(no_key=True, of=("self",)):
        payout = payouts[attempt.transaction_id]
        claimed = found[payout.pk]
        if rules.is_plainly_paid(payout, attempt, claimed.result, trusted=claimed.is_trusted, policy=policy):
            plain[claimed.callback_id] = booking.Proof(attempt, payout.user_id, claimed.result.receipt or "")
    return plain


def apply(*, callback_id: int, at: datetime, policy: Policy) -> str:
    """Apply one stored callback and say what came of it. Idempotent: an applied one is passed over.

    Locks: the Callback (skipped where another worker holds it), then what its evidence touches.
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
                return "parked: its request is not here"
        callback.verdict = _verdict(callback, at, policy)[:200]
        callback.applied_at = at
        callback.save(update_fields=["attempt", "applied_at", "verdict"])
        failpoints.hit("apply before commit")
    return callback.verdict


def _attempt_of(originator_conversation_id: object) -> QuerySet[Attempt]:
    return Attempt.objects.filter(originator_conversation_id=originator_conversation_id)


def _verdict(callback: Callback, at: datetime, policy: Policy) -> str:
    body = bytes(callback.body)
    trusted = callback.trusted or not policy.production
    try:
        if callback.kind == Callback.Kind.RESULT and callback.attempt_id:
            result = messages.parse_result(body)
            verdict = rules.hear_result(callback.attempt_id, result, trusted=trusted, at=at, policy=policy)
            if trusted and result.says_paid:
                float_balance.note(result.utility_available, at=at)
            return verdict
        if callback.kind == Callback.Kind.BALANCE and callback.reading_id:
            return float_balance.hear(callback.reading_id, body, trusted=trusted, at=at)
        if callback.kind == Callback.Kind.STATUS and callback.query_id:
            answer = messages.parse_status(body)
            return rules.hear_status(callback.query_id, answer, trusted=trusted, at=at, policy=policy)
        if callback.attempt_id:
            return rules.hear_timeout(callback.attempt_id, at=at, policy=policy)
    except strict_json.Unreadable as error:
        alarm.error("Callback %s cannot be read: %s", callback.pk, error)
        if callback.kind == Callback.Kind.RESULT and callback.attempt_id:
            return f"unreadable ({error}); " + rules.hear_timeout(callback.attempt_id, at=at, policy=policy)
        return f"unreadable: {error}"
    return "a query's queue timed out: the next question is due already"


def apply_plain(*, body: bytes, source_ip: str | None, at: datetime, policy: Policy, addresses: Addresses) -> str:
    """Store and apply a callback that names its payout by `ExternalReference` (the guide's part 4.4), in one go.

    The edge offers this only outside production.
    Raises: strict_json.Unreadable; UnknownReference; then nothing is stored.
    """
    result = messages.parse_result(body)
    with transaction.atomic(durable=True):
        heard = rules.hear_plain(result, at=at, policy=policy, addresses=addresses)
        if heard is None:
            raise UnknownReference(f"No payout has the reference {result.external_reference!r}.")
        attempt_id, verdict = heard
        Callback.objects.create(
            kind=Callback.Kind.PLAIN,
            attempt_id=attempt_id,
            body=body,
            digest=hashlib.sha256(body).hexdigest(),
            received_at=at,
            source_ip=source_ip,
            trusted=False,
            applied_at=at,
            verdict=verdict[:200],
        )
    return verdict
