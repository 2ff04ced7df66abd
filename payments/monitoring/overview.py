"""What the home page shows: what needs a person now, where the money is, how well it goes, and whether we are alive.

`now` asks the database at each view, by indexes alone. What takes a look at every payout of a month (`measure`) and the
invariants of the books (`check_books`) are taken by beat every minute and read as they were last taken.
Amounts are shillings; times in figures are seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, F, Min, Q, Sum
from django.db.models.functions import Coalesce

from markets import pools
from markets.models import Market
from payments.ledger import invariants, journal, trial_balance
from payments.models import (
    Attempt,
    Breaker,
    Dispute,
    Figures,
    FloatReading,
    Heartbeat,
    InvariantCheck,
    Proposal,
    Recovery,
    Transaction,
    Verdict,
)
from payments.payouts import float_balance

Status = Transaction.Status
SUCCESS_GOAL = Decimal("0.99")
AGES = (
    ("under a minute", timedelta(minutes=1)),
    ("1 to 10 minutes", timedelta(minutes=10)),
    ("10 minutes to 1 hour", timedelta(hours=1)),
    ("1 to 24 hours", timedelta(hours=24)),
    ("over 24 hours", timedelta.max),
)
BOOKS_EVERY = timedelta(minutes=5)
SHOWN = 20


@dataclass(frozen=True)
class Total:
    """A number of payouts and their amount."""

    count: int
    amount: Decimal


@dataclass(frozen=True)
class Bucket:
    """Money in doubt of one age."""

    words: str
    count: int
    amount: Decimal


@dataclass(frozen=True)
class Now:
    """What the home page knows at this very moment."""

    to_resolve: int
    held: Total
    failed: Total
    pending: Total
    processing: Total
    verdicts: int
    proposals: int
    disputes: int
    overdue_disputes: int
    debts: int
    float_reading: FloatReading | None
    limbo: Total
    limbo_ages: list[Bucket]
    oldest_doubt: datetime | None
    breakers: list[Breaker]
    due: Decimal
    broken: list[InvariantCheck]
    books_checked_at: datetime | None
    heartbeats: list[Heartbeat]


def now(*, at: datetime) -> Now:
    """The state of things, by indexes alone: the open payouts, the doubts, the open breakers, the last checks."""
    # One query a state, so that each is answered by its own partial index and no completed payout is looked at.
    sums = {status: _sum(status) for status in (Status.PENDING, Status.PROCESSING, Status.HELD, Status.FAILED)}
    ages, oldest = _limbo_ages(at)
    checks = list(InvariantCheck.objects.order_by("checked_at"))
    return Now(
        to_resolve=Market.objects.filter(status__in=["OPEN", "CLOSED"], end_date__lt=at).count(),
        held=sums[Status.HELD],
        failed=sums[Status.FAILED],
        pending=sums[Status.PENDING],
        processing=sums[Status.PROCESSING],
        verdicts=Verdict.objects.filter(closed_at__isnull=True, transaction__status=Status.HELD).count(),
        proposals=Proposal.objects.filter(state=Proposal.State.OPEN).count(),
        disputes=Dispute.objects.filter(state=Dispute.State.OPEN).count(),
        overdue_disputes=Dispute.objects.filter(state=Dispute.State.OPEN, due_at__lt=at).count(),
        debts=Recovery.objects.filter(
            decision=Recovery.Decision.OPEN, amount__gt=F("recovered") + F("written_off")
        ).count(),
        float_reading=float_balance.latest(),
        limbo=Total(sum(one.count for one in ages), sum((one.amount for one in ages), journal.ZERO)),
        limbo_ages=ages,
        oldest_doubt=oldest,
        breakers=list(
            Breaker.objects.filter(opened_at__isnull=False).select_related("opened_by").order_by("opened_at")
        ),
        due=sum((one.amount for one in sums.values()), journal.ZERO),
        broken=[check for check in checks if check.broken_count],
        books_checked_at=checks[0].checked_at if len(checks) == len(invariants.INVARIANTS) else None,
        heartbeats=list(Heartbeat.objects.order_by("name")),
    )


def _sum(status: str) -> Total:
    payouts = Transaction.objects.filter(status=status, type__in=["PAYOUT", "WITHDRAWAL"], destination="mpesa")
    found = payouts.aggregate(count=Count("pk"), amount=Coalesce(Sum("amount"), journal.ZERO))
    return Total(found["count"], found["amount"])


def _limbo_ages(at: datetime) -> tuple[list[Bucket], datetime | None]:
    doubtful = Attempt.objects.filter(state=Attempt.State.IN_DOUBT)
    since = Coalesce("first_sent_at", "opened_at")
    sums: dict[str, Any] = {"oldest": Min(since)}
    younger: datetime | None = None
    for place, (_, limit) in enumerate(AGES):
        older = at - limit if limit != timedelta.max else None
        within = Q() if younger is None else Q(since__lte=younger)
        if older is not None:
            within &= Q(since__gt=older)
        sums[f"count_{place}"] = Count("pk", filter=within)
        sums[f"amount_{place}"] = Coalesce(Sum("amount", filter=within), journal.ZERO)
        younger = older
    found = doubtful.annotate(since=since).aggregate(**sums)
    return [
        Bucket(words, found[f"count_{place}"], found[f"amount_{place}"]) for place, (words, _) in enumerate(AGES)
    ], found["oldest"]


# --- figures that beat takes -----------------------------------------------------------------------------------------

_BY_TIME = """
    SELECT steps.moment, count(t.id) FILTER (WHERE t.status = 'COMPLETED'),
        count(t.id) FILTER (WHERE t.status = 'FAILED'),
        coalesce(sum(t.amount) FILTER (WHERE t.status = 'COMPLETED'), 0)
    FROM generate_series(
        date_trunc(%(unit)s, %(since)s AT TIME ZONE 'Africa/Nairobi'),
        date_trunc(%(unit)s, %(until)s AT TIME ZONE 'Africa/Nairobi'), ('1 ' || %(unit)s)::interval) AS steps(moment)
    LEFT JOIN (
        SELECT id, status, amount,
            date_trunc(%(unit)s, coalesce(completed_at, failed_at) AT TIME ZONE 'Africa/Nairobi') AS moment
        FROM payments_transaction
        WHERE destination = 'mpesa' AND type IN ('PAYOUT', 'WITHDRAWAL')
          AND (status = 'COMPLETED' AND completed_at >= %(since)s OR status = 'FAILED' AND failed_at >= %(since)s)
        ) t ON t.moment = steps.moment
    GROUP BY 1 ORDER BY 1"""
# A payout that went to the wallet after all did not succeed over M-Pesa: it has no receipt and no paid attempt.
_QUALITY = """
    SELECT count(*) FILTER (WHERE paid) AS paid, count(*) AS final,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE paid) AS median,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE paid) AS p95
    FROM (
        SELECT t.status = 'COMPLETED' AND NOT t.reason LIKE 'Paid into the wallet%%' AS paid,
            extract(epoch FROM t.completed_at - coalesce(s.resolved_at, t.created_at)) AS seconds
        FROM payments_transaction t LEFT JOIN payments_settlement s ON s.id = t.settlement_id
        WHERE t.destination = 'mpesa' AND t.type IN ('PAYOUT', 'WITHDRAWAL')
          AND (t.status = 'COMPLETED' AND t.completed_at >= %(since)s
               OR t.status = 'FAILED' AND t.failed_at >= %(since)s)) x"""


def figures() -> Figures | None:
    """The figures as they were last taken, or None where beat has not taken any yet."""
    return Figures.objects.filter(name="payouts").first()


def measure(*, at: datetime) -> None:
    """Take the figures of the last day, by the hour, and of the last month, by the day. Set-based. Idempotent."""
    value = {
        "day": _series("hour", at - timedelta(hours=23), at),
        "month": _series("day", at - timedelta(days=29), at),
        "quality_day": _quality(at - timedelta(hours=24)),
        "quality_month": _quality(at - timedelta(days=30)),
    }
    Figures.objects.update_or_create(name="payouts", defaults={"at": at, "value": value})


def _series(unit: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
    return [
        {"moment": moment.isoformat(), "paid": paid, "failed": failed, "amount": str(amount)}
        for moment, paid, failed, amount in _rows(_BY_TIME, {"unit": unit, "since": since, "until": until})
    ]


def _quality(since: datetime) -> dict[str, Any]:
    ((paid, final, median, p95),) = _rows(_QUALITY, {"since": since})
    return {"paid": paid, "final": final, "median": _seconds(median), "p95": _seconds(p95)}


def _seconds(value: Any) -> float | None:
    return None if value is None else round(float(value), 1)


def _rows(sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def check_books(*, at: datetime, keep_going: Callable[[], bool]) -> int:
    """Check the invariants that were not checked for BOOKS_EVERY, the longest unchecked first; return how many.

    An invariant over every bet takes seconds, so a caller with little time checks a few and goes on at the next call.
    """
    last = dict(InvariantCheck.objects.values_list("invariant", "checked_at"))
    never = datetime.min.replace(tzinfo=at.tzinfo)
    due = [name for name in invariants.INVARIANTS if last.get(name, never) <= at - BOOKS_EVERY]
    checked = 0
    for invariant in sorted(due, key=lambda name: last.get(name, never)):
        if not keep_going():
            break
        began = time.monotonic()
        found = invariants.broken(invariant)
        InvariantCheck.objects.update_or_create(
            invariant=invariant,
            defaults={
                "checked_at": at,
                "seconds": round(time.monotonic() - began, 3),
                "broken_by": [difference.detail for difference in found[:SHOWN]],
                "broken_count": len(found),
            },
        )
        checked += 1
    InvariantCheck.objects.exclude(invariant__in=invariants.INVARIANTS).delete()
    return checked


def sum_up(*, keep_going: Callable[[], bool]) -> None:
    """Add new bets to the tallies and new transfers to their days. Idempotent; readers see the same sums before it."""
    pools.advance(keep_going=keep_going)
    trial_balance.advance(keep_going=keep_going)


def beat(*, worker: str, at: datetime) -> None:
    """Note that beat sent a message and that this worker carried it out. Idempotent."""
    with transaction.atomic():
        for name in ("beat", f"worker {worker}"[:120]):
            Heartbeat.objects.update_or_create(name=name, defaults={"at": at})
        Heartbeat.objects.filter(at__lt=at - timedelta(days=1)).delete()
