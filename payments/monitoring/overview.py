"""Figures of the home page: work for staff, money by state, payout quality, health.

`now` queries the database at each view, through indexes only. `measure` reads every payout of a month, and
`check_books` checks the invariants. Beat has `measure` run every minute and `check_books` every 30 seconds; the page
shows their stored results.
Units: amounts in shillings; times in figures in seconds.
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
from payments.ledger import invariants, journal, trial_balance
from payments.models import (
    Attempt,
    Breaker,
    Dispute,
    Figures,
    FloatReading,
    Heartbeat,
    InvariantCheck,
    Recovery,
    Restore,
    Transaction,
    Verdict,
)
from payments.payouts import day_limit, float_balance
from payments.payouts.restores import asking
from payments.settlement import market_overview
from users.models import Proposal

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
# Beat sends a heartbeat every 30 seconds at least.
SILENT_AFTER = timedelta(seconds=60)
SHOWN = 20


@dataclass(frozen=True)
class Total:
    """A number of payouts and their amount."""

    count: int
    amount: Decimal


@dataclass(frozen=True)
class Bucket:
    """The money in doubt within one range of ages. `words` names the range."""

    words: str
    count: int
    amount: Decimal


@dataclass(frozen=True)
class Now:
    """The figures that the home page computes at each view."""

    to_resolve: int
    held: Total
    failed: Total
    pending: Total
    processing: Total
    decisions: int
    proposals: int
    disputes: int
    overdue_disputes: int
    receivables: int
    float_reading: FloatReading | None
    in_doubt: Total
    in_doubt_ages: list[Bucket]
    oldest_doubt: datetime | None
    breakers: list[Breaker]
    due: Decimal
    broken: list[InvariantCheck]
    books_checked_at: datetime | None
    heartbeats: list[Heartbeat]
    restores: list[tuple[Restore, int]]


def now(*, at: datetime) -> Now:
    """Return the current figures, such as open payouts, money in doubt and open breakers. Read through indexes only."""
    # One query per status, so that each query uses its own partial index and reads no completed payout.
    sums = {status: _sum(status) for status in (Status.PENDING, Status.PROCESSING, Status.HELD, Status.FAILED)}
    ages, oldest = _in_doubt_ages(at)
    checks = list(InvariantCheck.objects.order_by("checked_at"))
    return Now(
        to_resolve=market_overview.to_resolve(at=at).count(),
        held=sums[Status.HELD],
        failed=sums[Status.FAILED],
        pending=sums[Status.PENDING],
        processing=sums[Status.PROCESSING],
        decisions=Verdict.objects.filter(closed_at__isnull=True, transaction__status=Status.HELD).count(),
        proposals=Proposal.objects.filter(state=Proposal.State.OPEN).count(),
        disputes=Dispute.objects.filter(state=Dispute.State.OPEN).count(),
        overdue_disputes=Dispute.objects.filter(state=Dispute.State.OPEN, due_at__lt=at).count(),
        receivables=Recovery.objects.filter(
            decision=Recovery.Decision.OPEN, amount__gt=F("recovered") + F("written_off")
        ).count(),
        float_reading=float_balance.latest(),
        in_doubt=Total(sum(bucket.count for bucket in ages), sum((bucket.amount for bucket in ages), journal.ZERO)),
        in_doubt_ages=ages,
        oldest_doubt=oldest,
        breakers=list(
            Breaker.objects.filter(opened_at__isnull=False).select_related("opened_by").order_by("opened_at")
        ),
        due=sum((total.amount for total in sums.values()), journal.ZERO),
        broken=[check for check in checks if check.broken_count],
        books_checked_at=checks[0].checked_at if len(checks) == len(invariants.INVARIANTS) else None,
        heartbeats=list(Heartbeat.objects.order_by("name")),
        restores=[(restore, count) for restore, count in asking.progress() if count or restore.stops_sending],
    )


def _sum(status: str) -> Total:
    """Return the number and amount of M-Pesa payouts and withdrawals in one status."""
    payouts = Transaction.objects.filter(status=status, type__in=["PAYOUT", "WITHDRAWAL"], destination="mpesa")
    total = payouts.aggregate(count=Count("pk"), amount=Coalesce(Sum("amount"), journal.ZERO))
    return Total(total["count"], total["amount"])


def _in_doubt_ages(at: datetime) -> tuple[list[Bucket], datetime | None]:
    """Return the money in doubt by age, and the time at which its oldest request was first sent."""
    since = Coalesce("first_sent_at", "opened_at")
    sums: dict[str, Any] = {"oldest": Min(since)}
    younger: datetime | None = None
    for index, (_, limit) in enumerate(AGES):
        older = at - limit if limit != timedelta.max else None
        within = Q() if younger is None else Q(since__lte=younger)
        if older is not None:
            within &= Q(since__gt=older)
        sums[f"count_{index}"] = Count("pk", filter=within)
        sums[f"amount_{index}"] = Coalesce(Sum("amount", filter=within), journal.ZERO)
        younger = older
    totals = Attempt.objects.in_doubt().annotate(since=since).aggregate(**sums)
    return [
        Bucket(words, totals[f"count_{index}"], totals[f"amount_{index}"]) for index, (words, _) in enumerate(AGES)
    ], totals["oldest"]


# --- figures computed by a task --------------------------------------------------------------------------------------

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
# A payout that was redirected to the wallet did not succeed over M-Pesa.
_QUALITY = """
    SELECT count(*) FILTER (WHERE paid) AS paid, count(*) AS final,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE paid) AS median,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE paid) AS p95
    FROM (
        SELECT t.status = 'COMPLETED' AND t.redirected_at IS NULL AS paid,
            extract(epoch FROM t.completed_at - coalesce(s.resolved_at, t.created_at)) AS seconds
        FROM payments_transaction t LEFT JOIN payments_settlement s ON s.id = t.settlement_id
        WHERE t.destination = 'mpesa' AND t.type IN ('PAYOUT', 'WITHDRAWAL')
          AND (t.status = 'COMPLETED' AND t.completed_at >= %(since)s
               OR t.status = 'FAILED' AND t.failed_at >= %(since)s)) x"""


def figures() -> Figures | None:
    """Return the figures that `measure` stored last, or None if there are none."""
    return Figures.objects.filter(name="payouts").first()


def measure(*, at: datetime) -> None:
    """Compute and store the figures of the last day by hour and of the last month by day. Idempotent."""
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
    """Check the invariants that are due, the longest unchecked first, and return the number checked.

    An invariant over every bet takes seconds. A caller with little time stops after a few invariants (`keep_going`),
    and the next call checks the rest.
    """
    last = dict(InvariantCheck.objects.values_list("invariant", "checked_at"))
    never = datetime.min.replace(tzinfo=at.tzinfo)
    due = [name for name in invariants.INVARIANTS if last.get(name, never) <= at - BOOKS_EVERY]
    checked = 0
    for invariant in sorted(due, key=lambda name: last.get(name, never)):
        if not keep_going():
            break
        began = time.monotonic()
        differences = invariants.broken(invariant)
        InvariantCheck.objects.update_or_create(
            invariant=invariant,
            defaults={
                "checked_at": at,
                "seconds": round(time.monotonic() - began, 3),
                "broken_by": [difference.detail for difference in differences[:SHOWN]],
                "broken_count": len(differences),
            },
        )
        checked += 1
    InvariantCheck.objects.exclude(invariant__in=invariants.INVARIANTS).delete()
    return checked


def sum_up(*, keep_going: Callable[[], bool]) -> None:
    """Add new bets to the pools and new transfers to the trial balance, and delete old day totals. Idempotent.

    The sums that readers see do not change.
    """
    pools.advance(keep_going=keep_going)
    trial_balance.advance(keep_going=keep_going)
    day_limit.prune(keep_going=keep_going)


def beat(*, worker: str, at: datetime) -> None:
    """Record that beat sent this task and that this worker ran it. Idempotent."""
    with transaction.atomic():
        for name in ("beat", f"worker {worker}"[:120]):
            Heartbeat.objects.update_or_create(name=name, defaults={"at": at})
        Heartbeat.objects.filter(at__lt=at - timedelta(days=1)).delete()


def last_heartbeat() -> datetime | None:
    """Return the latest time at which beat and a worker were at work together, or None if there is no such time."""
    return Heartbeat.objects.filter(name="beat").values_list("at", flat=True).first()
