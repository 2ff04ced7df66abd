"""M-Pesa's limit of the day for one member, counted in one row per member and Nairobi day.

A claim counts its amounts in its own database transaction, so two workers cannot pass the limit together. A request
counts on the day of its latest POST. A request that is proven not paid gives its amount back.
Lock order: Transaction, Attempt, then day totals by day (the latest first) and member, then breakers and wallets.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection
from django.db.models import F

from markets.models import NAIROBI
from payments.models import Attempt, DayTotal

# Payouts that the limit holds back are due this long after midnight.
AFTER_MIDNIGHT = timedelta(minutes=5)
# The limit reads the present day, and a request that is sent again may leave its day. Older totals are never read.
DAYS_KEPT = 7
PRUNED_AT_ONCE = 2_000
ZERO = Decimal("0.00")

# Add each member's amount, if the member's total stays within the limit. PostgreSQL locks the other members' rows too,
# in the order of the members' ids.
_ADD = """
    INSERT INTO payments_daytotal AS d (user_id, day, amount)
    SELECT user_id, %(day)s, amount FROM unnest(%(users)s::bigint[], %(amounts)s::numeric[]) AS a (user_id, amount)
    ORDER BY user_id
    ON CONFLICT (user_id, day) DO UPDATE SET amount = d.amount + excluded.amount
    WHERE d.amount + excluded.amount <= %(limit)s
    RETURNING user_id
"""
_SUBTRACT = """
    WITH part AS (
        SELECT user_id, day, sum(amount) AS amount
        FROM unnest(%(users)s::bigint[], %(days)s::date[], %(amounts)s::numeric[]) AS p (user_id, day, amount)
        GROUP BY user_id, day
    ), locked AS (
        SELECT d.user_id, d.day FROM payments_daytotal d JOIN part USING (user_id, day)
        ORDER BY d.day DESC, d.user_id FOR NO KEY UPDATE OF d
    )
    UPDATE payments_daytotal d SET amount = d.amount - part.amount FROM part JOIN locked USING (user_id, day)
    WHERE d.user_id = part.user_id AND d.day = part.day
"""
# The newest day of a request, not the clock, is the measure: then the invariant compares no day that is half deleted.
_PRUNE = """
    DELETE FROM payments_daytotal WHERE (user_id, day) IN (
        SELECT user_id, day FROM payments_daytotal
        WHERE day <= (SELECT counted_on FROM payments_attempt WHERE counted_on IS NOT NULL ORDER BY id DESC LIMIT 1)
            - %(kept)s::int
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )
"""


@dataclass(frozen=True)
class Part:
    """An amount in shillings of one member, named by the id of its transaction.

    `counted_on` is the day on which an earlier POST of the same request counts.
    """

    transaction_id: int
    user_id: int
    amount: Decimal
    counted_on: date | None = None


def day_of(at: datetime) -> date:
    """Return the day in Nairobi."""
    return at.astimezone(NAIROBI).date()


def next_day(at: datetime) -> datetime:
    """Return the time on the next day in Nairobi at which payouts leave that the limit holds back."""
    midnight = at.astimezone(NAIROBI).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=1) + AFTER_MIDNIGHT


def take(parts: Sequence[Part], *, at: datetime, limit: int) -> set[int]:
    """Count these amounts today, as far as they fit, and return the ids of the transactions that fit.

    An amount that counts today already fits.
    Runs in the caller's transaction. The caller then says which of the requests it sends (`confirm`).
    Locks: the DayTotals, by day (the latest first) and member.
    """
    today = day_of(at)
    new = [part for part in parts if part.counted_on != today]
    fitting = {part.transaction_id for part in parts if part.counted_on == today}
    if not new:
        return fitting
    earlier = {(part.user_id, part.counted_on) for part in new if part.counted_on is not None}
    wanted: dict[int, Decimal] = {}
    for part in new:
        wanted[part.user_id] = wanted.get(part.user_id, ZERO) + part.amount
    whole = {user_id for user_id, amount in wanted.items() if amount <= limit}
    whole &= _add({user_id: amount if user_id in whole else ZERO for user_id, amount in wanted.items()}, today, limit)
    # `confirm` may take these parts out of an earlier day. Lock that day now: the caller locks Settlements in between.
    _lock([part.user_id for part in new if part.counted_on], {part.counted_on for part in new if part.counted_on})
    taken = [part for part in new if part.user_id in whole]
    taken += _add_some([part for part in new if part.user_id not in whole], today, limit)
    _subtract([(user_id, day, ZERO) for user_id, day in earlier])  # Lock now what `confirm` may change.
    return fitting | {part.transaction_id for part in taken}


def confirm(parts: Iterable[Part], *, sent: Collection[int], at: datetime) -> None:
    """Correct the totals after `take`, for the parts that fitted. `sent` has the ids of the transactions that leave.

    A part that is not sent does not count today. A part that is sent does not count on an earlier day any more.
    Locks: none further.
    """
    today = day_of(at)
    wrong = []
    for part in parts:
        if part.counted_on != today:
            day = part.counted_on if part.transaction_id in sent else today
            wrong += [(part.user_id, day, part.amount)] if day is not None else []
    _subtract(wrong)


def give_back(attempt: Attempt, user_id: int) -> None:
    """Take a request's amount out of its day, because M-Pesa is proven not to have paid it.

    Locks: the DayTotal.
    """
    if attempt.counted_on is not None:
        _subtract([(user_id, attempt.counted_on, attempt.amount)])


def count_paid_late(attempt: Attempt, user_id: int) -> None:
    """Count a request again that was recorded as failed, because M-Pesa has paid it after all.

    Locks: the DayTotal.
    """
    if attempt.counted_on is not None:
        count_left([(user_id, attempt.amount)], day=attempt.counted_on)


def count_left(amounts: Sequence[tuple[int, Decimal]], *, day: date) -> None:
    """Count amounts that have left already, each with its member, even above the limit.

    Locks: the DayTotals by member.
    """
    for user_id, amount in sorted(amounts):
        DayTotal.objects.bulk_create([DayTotal(user_id=user_id, day=day, amount=ZERO)], ignore_conflicts=True)
        DayTotal.objects.filter(user=user_id, day=day).update(amount=F("amount") + amount)


def lock(user_ids: Iterable[int]) -> None:
    """Lock all day totals of these members in the lock order, before several requests of theirs are failed.

    Locks: the DayTotals, by day (the latest first) and member.
    """
    totals = DayTotal.objects.filter(user__in=set(user_ids)).order_by("-day", "user")
    list(totals.select_for_update(no_key=True, of=("self",)).values_list("user_id"))


def prune(*, keep_going: Callable[[], bool]) -> None:
    """Delete totals of days that the limit cannot read any more, PRUNED_AT_ONCE at a time. Idempotent.

    Locks: DayTotals of old days, skipping locked ones. Each batch is one short transaction.
    """
    deleted = PRUNED_AT_ONCE
    while deleted == PRUNED_AT_ONCE and keep_going():
        with connection.cursor() as cursor:
            cursor.execute(_PRUNE, {"kept": DAYS_KEPT, "limit": PRUNED_AT_ONCE})
            deleted = cursor.rowcount


def plan(amounts: Sequence[Decimal], *, sent_today: Decimal, at: datetime, limit: int) -> list[date]:
    """Return the day on which each amount of one member leaves, if every request is paid at once. Pure.

    The amounts are in their order of sending. A smaller amount may leave before a larger one that no longer fits.
    Units: shillings.
    """
    first = day_of(at)
    room = {first: limit - sent_today}
    smallest = min((amount for amount in amounts if amount <= limit), default=Decimal(limit))
    days = []
    for amount in amounts:
        while room.setdefault(first, Decimal(limit)) < smallest:
            first += timedelta(days=1)
        day = first
        while room.setdefault(day, Decimal(limit)) < amount <= limit:
            day += timedelta(days=1)
        room[day] -= amount
        days.append(day)
    return days


def sent_on(day: date, user_ids: Iterable[int]) -> Mapping[int, Decimal]:
    """Return the amounts that count on a day, by member."""
    return dict(DayTotal.objects.filter(day=day, user__in=set(user_ids)).values_list("user_id", "amount"))


def _add(amounts: Mapping[int, Decimal], day: date, limit: int) -> set[int]:
    parameters: dict[str, Any] = {"day": day, "users": list(amounts), "amounts": list(amounts.values()), "limit": limit}
    with connection.cursor() as cursor:
        cursor.execute(_ADD, parameters)
        return {user_id for (user_id,) in cursor.fetchall()}


def _add_some(parts: Sequence[Part], day: date, limit: int) -> list[Part]:
    """Count the amounts of members whose amounts do not all fit, in the given order. The caller holds their rows."""
    if not parts:
        return []
    totals = dict(sent_on(day, {part.user_id for part in parts}))
    taken = []
    for part in parts:
        if totals[part.user_id] + part.amount <= limit:
            totals[part.user_id] += part.amount
            taken.append(part)
    for user_id in {part.user_id for part in taken}:
        DayTotal.objects.filter(day=day, user=user_id).update(amount=totals[user_id])
    return taken


def _lock(user_ids: Sequence[int], days: Collection[date]) -> None:
    if user_ids:
        totals = DayTotal.objects.filter(user__in=user_ids, day__in=days).order_by("-day", "user")
        list(totals.select_for_update(no_key=True, of=("self",)).values_list("user_id"))


def _subtract(parts: Sequence[tuple[int, date, Decimal]]) -> None:
    if not parts:
        return
    users, days, amounts = zip(*parts, strict=True)
    parameters: dict[str, Any] = {"users": list(users), "days": list(days), "amounts": list(amounts)}
    with connection.cursor() as cursor:
        cursor.execute(_SUBTRACT, parameters)
