"""Counters of wrong PINs in PostgreSQL. Neither a race nor an empty Redis resets them.

A try is counted as wrong before its PIN is checked. So simultaneous tries cannot exceed a limit, and no transaction is
open while a PIN is hashed. A right PIN takes its count back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection, transaction

from users.models import PinCounter
from users.pin_counters import FORGOTTEN_AFTER, OVERALL, Counter, Limits, Lock
from users.refusal import Refusal

DELETED_AT_ONCE = 20


class TooManyTries(Refusal):
    """Too many wrong PINs came for this number, from this address, or altogether."""

    def __init__(self, until: datetime) -> None:
        super().__init__(f"Too many wrong PINs. Try again after {until.isoformat(timespec='seconds')}.")
        self.until = until


@dataclass(frozen=True)
class Ticket:
    """A counted try. `first` is the state of its first counter, which is the one of the number or device."""

    keys: tuple[str, ...]
    limits: Limits
    first: Counter
    locked_until: datetime | None


def reserve(keys: Sequence[str], *, limits: Limits, at: datetime) -> Ticket:
    """Count a try in all these counters, or refuse it if one of them is at its limit.

    A refused try writes nothing, so a flood of tries costs one short read each.
    Locks: the counters in the order of their keys.
    Raises: TooManyTries.
    """
    ordered = sorted(keys)
    _refuse({row.key: Counter(row.wrong, row.until) for row in PinCounter.objects.filter(key__in=ordered)}, limits, at)
    with transaction.atomic(durable=True):
        counters = _locked(ordered, at)
        _refuse(counters, limits, at)
        counted = {key: limits.of(key).after_try(counter, at) for key, counter in counters.items()}
        _write(counted)
        _delete_forgotten(at)
    first = counted[keys[0]]
    return Ticket(tuple(keys), limits, first, limits.of(keys[0]).refused_until(first, at))


def overall_refused_until(limits: Limits, *, at: datetime) -> datetime | None:
    """Return until when all untrusted callers are refused, or None if they may try."""
    row = PinCounter.objects.filter(key=OVERALL).first()
    return None if row is None else limits.of(OVERALL).refused_until(Counter(row.wrong, row.until), at)


def accept(ticket: Ticket, *, at: datetime) -> None:
    """Forget the wrong PINs of a number or device whose PIN was right, and give the try back to the budgets.

    Locks: the counters in the order of their keys.
    """
    with transaction.atomic():
        PinCounter.objects.filter(key__in=[key for key in ticket.keys if _is_lock(ticket, key)]).delete()
        _take_back(ticket, [key for key in ticket.keys if not _is_lock(ticket, key)], at)


def cancel(ticket: Ticket, *, at: datetime) -> None:
    """Take back a try whose PIN was never checked.

    Locks: the counters in the order of their keys.
    """
    with transaction.atomic():
        _take_back(ticket, ticket.keys, at)


def forget(keys: Sequence[str]) -> None:
    """Delete counters, so that a locked number may try again at once."""
    PinCounter.objects.filter(key__in=keys).delete()


def _is_lock(ticket: Ticket, key: str) -> bool:
    return isinstance(ticket.limits.of(key), Lock)


def _refuse(counters: dict[str, Counter], limits: Limits, at: datetime) -> None:
    refusals = [until for key, counter in counters.items() if (until := limits.of(key).refused_until(counter, at))]
    if refusals:
        raise TooManyTries(max(refusals))


def _take_back(ticket: Ticket, keys: Sequence[str], at: datetime) -> None:
    rows = PinCounter.objects.select_for_update().filter(key__in=keys).order_by("key")
    _write({row.key: ticket.limits.of(row.key).after_taking_back(Counter(row.wrong, row.until), at) for row in rows})


def _locked(ordered: list[str], at: datetime) -> dict[str, Counter]:
    """Return the counters, locked. A missing counter is created with no wrong PIN."""
    with connection.cursor() as cursor:
        # The update changes nothing. It locks the row and returns it, also if another transaction has just made it.
        cursor.execute(
            """
            INSERT INTO users_pincounter (key, wrong, until) SELECT key, 0, %s FROM unnest(%s::text[]) AS key
            ON CONFLICT (key) DO UPDATE SET wrong = users_pincounter.wrong RETURNING key, wrong, until
            """,
            [at, ordered],
        )
        return {key: Counter(wrong, until) for key, wrong, until in cursor.fetchall()}


def _write(counters: dict[str, Counter]) -> None:
    rows = [PinCounter(key=key, wrong=counter.wrong, until=counter.until) for key, counter in counters.items()]
    PinCounter.objects.bulk_update(rows, ["wrong", "until"])


def _delete_forgotten(at: datetime) -> None:
    """Delete a few counters that count no more, so that guesses at unknown numbers do not fill the table."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            DELETE FROM users_pincounter WHERE key IN (
                SELECT key FROM users_pincounter WHERE until < %s ORDER BY until LIMIT %s FOR UPDATE SKIP LOCKED)
            """,
            [at - FORGOTTEN_AFTER, DELETED_AT_ONCE],
        )
