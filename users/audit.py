"""The audit trail: who decided what, from where, before and after. Append-only and chained by hashes.

A trigger gives each entry the next number and a hash over its own fields and the hash before it, under a lock that is
held until the transaction commits: so the chain has no fork, whoever writes and however. A field counts in the hash by
its own digest, so personal words could be erased by law and the rest still be checked.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, transaction

from users.models import AuditEntry

BEFORE_THE_FIRST = "0" * 64
PAGE = 2_000


@dataclass(frozen=True)
class Actor:
    """Who acts, and from where: a member of staff's id (None for the machine itself), and an address or a place."""

    user_id: int | None
    source: str


MACHINE = Actor(user_id=None, source="machine")


def record(
    *,
    action: str,
    by: Actor,
    subject: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    at: datetime,
    reason: str = "",
) -> None:
    """Add one entry, in the caller's transaction, as its last statement.

    `action` is named like market.resolve, `subject` like market:12; `before` and `after` hold what the decision changed
    (Decimal and datetime may be in them; whole phone numbers may not).
    Locks: the end of the chain, until the transaction ends; so nothing may be locked after it.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("A decision is recorded in the transaction that carries it out.")
    AuditEntry.objects.create(
        at=at,
        action=action,
        actor_id=by.user_id,
        source=by.source,
        subject=subject,
        before=_canonical(before),
        after=_canonical(after),
        reason=reason,
    )


@dataclass(frozen=True)
class Chain:
    """What a verification saw: the entries up to the first difference, the hash of the last one, the difference."""

    entries: int
    head: str
    difference: str | None


def verify(*, expected: tuple[int, str] | None = None) -> Chain:
    """Check every entry against its own hash, its place and the hash before it.

    `expected` is an entry's number and hash that somebody noted earlier: that the end of the chain was cut off, or all
    of it written anew, shows only against something kept elsewhere.
    """
    count, head = 0, BEFORE_THE_FIRST
    seen_expected = expected is None
    for entry in _entries():
        count += 1
        if entry.number != count:
            return Chain(count - 1, head, f"entry {count} is missing: entry {entry.number} follows {count - 1}")
        if entry.previous_hash != head:
            return Chain(count - 1, head, f"entry {count} does not follow the entry before it")
        if entry.hash != hash_of(entry):
            return Chain(count - 1, head, f"entry {count} is not what was recorded: {entry.action} {entry.subject}")
        head = entry.hash
        if expected is not None and entry.number == expected[0]:
            if head != expected[1]:
                return Chain(count, head, f"entry {count} is another one than was noted: its hash is {head}")
            seen_expected = True
    if not seen_expected and expected is not None:
        return Chain(count, head, f"entry {expected[0]} is missing: the trail ends at {count}")
    return Chain(count, head, None)


def hash_of(entry: AuditEntry) -> str:
    """The hash an entry must have: SHA-256 over the digests of its fields in order, as the trigger computes it."""
    fields = (
        str(entry.number),
        entry.previous_hash,
        entry.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        entry.action,
        "" if entry.actor_id is None else str(entry.actor_id),
        entry.source,
        entry.subject,
        entry.before,
        entry.after,
        entry.reason,
    )
    return _digest("".join(_digest(field) for field in fields))


def _entries() -> Iterator[AuditEntry]:
    last = 0
    while page := list(AuditEntry.objects.filter(number__gt=last).order_by("number")[:PAGE]):
        yield from page
        last = page[-1].number


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, cls=DjangoJSONEncoder, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
