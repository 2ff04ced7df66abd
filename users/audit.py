"""The audit trail: an append-only record of decisions, chained by hashes.

Each entry says who decided what, from where, and the values before and after. A trigger gives each entry the next
number and a hash. The hash covers the entry's own fields and the previous entry's hash. The trigger holds a lock until
the transaction ends, so the chain cannot fork, even if rows are inserted by plain SQL.

Personal texts are sealed under a key per member (users/personal.py): the values that the caller marks as `Personal`,
and the reason of a decision about a member. The hash covers the sealed texts. So the trail can still be verified after
the key of a member was destroyed.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, transaction
from django.db.models import F, TextField
from django.db.models.functions import Cast

from users import personal
from users.models import AuditEntry

HASH_BEFORE_FIRST = "0" * 64
PAGE = 2_000


@dataclass(frozen=True)
class Actor:
    """The person who acts, and the source: an IP address, or a word such as `command`.

    `user_id` is None if the system itself acts, or a machine with the API key `key_id`.
    """

    user_id: int | None
    source: str
    key_id: int | None = None


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
    """Add one entry to the audit trail. Call it last in the transaction that carries out the decision.

    `action` has the form market.resolve, `subject` the form market:12. `before` and `after` hold the values that the
    decision changed. They may contain Decimal and datetime. A whole phone number or a name must be a `Personal`.
    Locks: the end of the chain until the transaction ends. The caller may take no other lock afterwards.
    Raises: TransactionManagementError outside a transaction.
    """
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("Record a decision inside the transaction that carries it out.")
    AuditEntry.objects.create(
        at=at,
        action=action,
        actor_id=by.user_id,
        source=by.source,
        subject=subject,
        before=_canonical(before),
        after=_canonical(after),
        reason=_sealed_reason(subject, reason),
    )


@dataclass(frozen=True)
class Chain:
    """Result of a verification: number of good entries, hash of the last good entry, and first difference."""

    entries: int
    head: str
    difference: str | None


def verify(*, expected: Mapping[int, str] | None = None) -> Chain:
    """Check every entry's hash, number and link to the entry before it.

    `expected` has hashes by the numbers of their entries. They were noted earlier and stored elsewhere. Only such notes
    reveal that the end of the chain was cut off, or that the whole chain was rewritten.
    """
    count, head = 0, HASH_BEFORE_FIRST
    notes = dict(expected or {})
    for entry, reason in _entries():
        count += 1
        if entry.number != count:
            return Chain(count - 1, head, f"entry {count} is missing: entry {entry.number} follows {count - 1}")
        if entry.previous_hash != head:
            return Chain(count - 1, head, f"entry {count} does not follow the entry before it")
        if entry.hash != _hash_of(entry, reason):
            return Chain(count - 1, head, f"entry {count} was changed after recording: {entry.action} {entry.subject}")
        head = entry.hash
        if notes.pop(entry.number, head) != head:
            return Chain(count, head, f"entry {count} is not the entry that was noted: its hash is {head}")
    if notes:
        return Chain(count, head, f"entry {max(notes)} is missing: the trail ends at {count}")
    return Chain(count, head, None)


def _hash_of(entry: AuditEntry, reason: str) -> str:
    """Return the hash that an entry must have: SHA-256 over the digests of its fields, as the trigger computes it.

    `reason` is the stored text, which may be sealed.
    """
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
        reason,
    )
    return _digest("".join(_digest(field) for field in fields))


def _entries() -> Iterator[tuple[AuditEntry, str]]:
    """Yield all entries, each with its reason as it is stored."""
    last, stored = 0, AuditEntry.objects.defer("reason").annotate(stored_reason=Cast(F("reason"), TextField()))
    while page := list(stored.filter(number__gt=last).order_by("number")[:PAGE]):
        yield from ((entry, entry.stored_reason) for entry in page)
        last = page[-1].number


def _sealed_reason(subject: str, reason: str) -> str:
    match = re.fullmatch(r"member:([0-9]{1,18})", subject)
    return personal.seal(int(match[1]), reason) if match else reason


class _Encoder(DjangoJSONEncoder):
    def default(self, o: Any) -> Any:
        return personal.seal(o.member_id, o.text) if isinstance(o, personal.Personal) else super().default(o)


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, cls=_Encoder, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
