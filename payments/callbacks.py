"""Callbacks: stored raw before they are answered, then applied once, under lock.

An address is known by its token alone; what comes to an unknown one is not even stored. What comes to a known one is
kept as it came, whatever it says, and `evidence` decides what it proves.
"""

import hashlib
import logging
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from payments import crashpoints, daraja_messages, evidence, float_readings
from payments.addresses import Addresses, token_hash
from payments.models import Attempt, Callback, FloatReading, StatusQuery
from payments.policy import Policy

alarm = logging.getLogger("kasoko.alarm")


class UnknownAddress(LookupError):
    """No request of ours was given that callback address."""


class UnknownReference(LookupError):
    """No payout has the external reference that a plain callback names."""


def store(
    *, kind: str, token: str, body: bytes, source_ip: str | None, trusted: bool, at: datetime, addresses: Addresses
) -> None:
    """Keep a callback that came to one of our addresses, to be applied; once, where the very same came before.

    A result whose token is ours although we have no such request (a restore lost it) is parked until it is there.

    A timeout may be about a request or about a query: both are given such an address.
    Raises: UnknownAddress, and stores nothing.
    """
    hashed = token_hash(token)
    attempt_id = query_id = reading_id = None
    if kind == Callback.Kind.BALANCE:
        reading_id = FloatReading.objects.filter(token_hash=hashed).values_list("pk", flat=True).first()
    elif kind != Callback.Kind.STATUS:
        attempt_id = Attempt.objects.filter(token_hash=hashed).values_list("pk", flat=True).first()
    if attempt_id is None and kind in (Callback.Kind.STATUS, Callback.Kind.TIMEOUT):
        query_id = StatusQuery.objects.filter(token_hash=hashed).values_list("pk", flat=True).first()
    orphan = ""
    if attempt_id is None and query_id is None and reading_id is None:
        orphan = _orphan(kind, token, body, addresses)
        if not orphan:
            raise UnknownAddress("There is nothing at this address.")
        alarm.critical("A result for request %s, which we sent and do not have: restored from a backup?", orphan)
    crashpoints.reach("callback before store")
    Callback.objects.bulk_create(
        [
            Callback(
                kind=kind,
                attempt_id=attempt_id,
                query_id=query_id,
                reading_id=reading_id,
                originator_conversation_id=orphan,
                body=body,
                digest=hashlib.sha256(body).hexdigest(),
                received_at=at,
                source_ip=source_ip,
                trusted=trusted,
            )
        ],
        ignore_conflicts=True,
    )
    crashpoints.reach("callback after store")


def _orphan(kind: str, token: str, body: bytes, addresses: Addresses) -> str:
    """The id that a body names, if the token it came with is the one we would have given a request of that id."""
    if kind != Callback.Kind.RESULT:
        return ""
    try:
        named = daraja_messages.parse_result(body).originator_conversation_id or ""
    except daraja_messages.Unreadable:
        return ""
    return named if len(named) <= 36 and addresses.owns(token, named) else ""


def to_apply(*, after: int, limit: int) -> list[int]:
    """Ids above `after` of the stored callbacks that have not been applied yet, oldest first."""
    parked = Q(attempt=None, query=None, reading=None) & ~Exists(_attempt_of(OuterRef("originator_conversation_id")))
    waiting = Callback.objects.filter(applied_at=None, pk__gt=after).exclude(parked).order_by("pk")
    return list(waiting.values_list("pk", flat=True)[:limit])


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
        crashpoints.reach("apply before evidence")
        if callback.attempt_id is None and callback.query_id is None and callback.reading_id is None:
            callback.attempt_id = _attempt_of(callback.originator_conversation_id).values_list("pk", flat=True).first()
            if callback.attempt_id is None:
                return "parked: its request is not here"
        callback.verdict = _verdict(callback, at, policy)[:200]
        callback.applied_at = at
        callback.save(update_fields=["attempt", "applied_at", "verdict"])
        crashpoints.reach("apply before commit")
    return callback.verdict


def _attempt_of(originator_conversation_id: object) -> QuerySet[Attempt]:
    return Attempt.objects.filter(originator_conversation_id=originator_conversation_id)


def _verdict(callback: Callback, at: datetime, policy: Policy) -> str:
    body = bytes(callback.body)
    trusted = callback.trusted or not policy.production
    try:
        if callback.kind == Callback.Kind.RESULT and callback.attempt_id:
            result = daraja_messages.parse_result(body)
            verdict = evidence.hear_result(callback.attempt_id, result, trusted=trusted, at=at, policy=policy)
            if trusted and result.says_paid:
                float_readings.note(result.utility_available, at=at)
            return verdict
        if callback.reading_id:
            return float_readings.hear(callback.reading_id, body, trusted=trusted, at=at)
        if callback.kind == Callback.Kind.STATUS and callback.query_id:
            answer = daraja_messages.parse_status(body)
            return evidence.hear_status(callback.query_id, answer, trusted=trusted, at=at, policy=policy)
        if callback.attempt_id:
            return evidence.hear_timeout(callback.attempt_id, at=at, policy=policy)
    except daraja_messages.Unreadable as error:
        alarm.error("Callback %s cannot be read: %s", callback.pk, error)
        if callback.kind == Callback.Kind.RESULT and callback.attempt_id:
            return f"unreadable ({error}); " + evidence.hear_timeout(callback.attempt_id, at=at, policy=policy)
        return f"unreadable: {error}"
    return "a query's queue timed out: the next question is due already"


def apply_plain(*, body: bytes, source_ip: str | None, at: datetime, policy: Policy, addresses: Addresses) -> str:
    """Store and apply a callback that names its payout by `ExternalReference` (the guide's part 4.4), in one go.

    The edge offers this only outside production.
    Raises: daraja_messages.Unreadable; UnknownReference; then nothing is stored.
    """
    result = daraja_messages.parse_result(body)
    with transaction.atomic(durable=True):
        heard = evidence.hear_plain(result, at=at, policy=policy, addresses=addresses)
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
