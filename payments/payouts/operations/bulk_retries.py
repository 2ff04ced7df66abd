"""Bulk retries: failed payouts of a choice are retried, the first at once and the rest in the background.

A bulk retry is one row. Each batch is one database transaction, which also moves the row's place. So a killed worker
loses no payout and counts none twice, and another worker continues.
Lock order: BulkRetry, Transactions by id, Attempts, then the end of the audit trail.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Q, QuerySet

from payments import own_affairs
from payments.models import BulkRetry, Transaction
from payments.payouts.operations import actions, failures
from users import audit

BATCH = 50


@dataclass(frozen=True)
class RetryResult:
    """The result of the first part of a bulk retry.

    `retried` has the ids of payouts that are pending again. `skipped` counts the others by reason. `remaining` payouts
    are retried in the background.
    """

    retried: list[int]
    skipped: dict[str, int]
    remaining: int = 0


def start(
    *,
    code: str = "",
    market_id: int | None = None,
    since: datetime | None = None,
    by: audit.Actor,
    at: datetime,
) -> RetryResult:
    """Retry the failed payouts of a choice (`failures.chosen`), oldest first: up to AT_ONCE now, the rest by a sweep.

    Skips payouts that a single retry would refuse. Payouts that fail after `at` do not belong to the choice.
    Locks: as a batch, one batch at a time.
    """
    with transaction.atomic(durable=True):
        bulk = BulkRetry(
            code=code,
            market_id=market_id,
            since=since,
            started_at=at,
            started_by_id=by.user_id,
            started_from=by.source,
        )
        bulk.chosen = _left(bulk).count()
        if not bulk.chosen:
            return RetryResult([], {})
        bulk.save()
        if bulk.chosen > failures.AT_ONCE:  # Each retry has an entry of its own. This one names the whole choice.
            audit.record(
                action="payout.retry_many",
                by=by,
                subject=f"bulk_retry:{bulk.pk}",
                before={},
                after={"code": code, "market": market_id, "since": since, "payouts": bulk.chosen},
                at=at,
            )
    retried: list[int] = []
    skipped: Counter[str] = Counter()
    examined = 0
    while examined < failures.AT_ONCE and (batch := _next_batch(bulk.pk, failures.AT_ONCE - examined, at)):
        retried += batch.retried
        skipped.update(batch.skipped)
        examined += len(batch.retried) + sum(batch.skipped.values())
    bulk.refresh_from_db()
    return RetryResult(retried, dict(skipped), _left(bulk).count() if bulk.finished_at is None else 0)


def to_continue(limit: int) -> list[int]:
    """Return the ids of unfinished bulk retries, oldest first."""
    return list(BulkRetry.objects.filter(finished_at=None).order_by("pk").values_list("pk", flat=True)[:limit])


def carry_on(*, bulk_id: int, at: datetime, keep_going: Callable[[], bool]) -> int:
    """Continue a bulk retry as far as `keep_going` allows, and return the number of payouts that are pending again.

    Idempotent: skips a bulk retry that is finished or that another worker continues. Safe to kill at any line.
    Locks: as a batch, one batch at a time.
    """
    retried = 0
    while keep_going() and (batch := _next_batch(bulk_id, BATCH, at)):
        retried += len(batch.retried)
    return retried


def latest(limit: int = 5) -> list[BulkRetry]:
    """Return the latest bulk retries with their progress. Those that still go on come first, then the newest."""
    retries = BulkRetry.objects.select_related("started_by").annotate(goes_on=Q(finished_at__isnull=True))
    return list(retries.order_by("-goes_on", "-pk")[:limit])


def _left(bulk: BulkRetry) -> QuerySet[Transaction]:
    """Return the payouts of a bulk retry that it has not reached yet."""
    payouts = failures.chosen(code=bulk.code, market_id=bulk.market_id, since=bulk.since)
    payouts = payouts.filter(type=Transaction.Type.PAYOUT, failed_at__lte=bulk.started_at, pk__gt=bulk.last_id)
    return payouts.order_by("pk")


def _next_batch(bulk_id: int, limit: int, at: datetime) -> RetryResult | None:
    """Retry the next payouts of a bulk retry, at most BATCH. Return None if none is left or another worker holds it.

    Locks: BulkRetry (skipped if locked), the Transactions by id, their Attempts.
    """
    with transaction.atomic(durable=True):
        rows = BulkRetry.objects.filter(pk=bulk_id, finished_at=None)
        bulk = rows.select_for_update(skip_locked=True, no_key=True, of=("self",)).first()
        if bulk is None:
            return None
        ids = list(_left(bulk).values_list("pk", flat=True)[: min(limit, BATCH)])
        if not ids:
            bulk.finished_at = at
            bulk.save(update_fields=["finished_at"])
            return None
        # The audit trail is locked last, so all payouts of the batch are locked first.
        payouts = Transaction.objects.filter(pk__in=ids).order_by("pk")
        list(payouts.select_for_update(no_key=True, of=("self",)).values_list("pk"))
        by = audit.Actor(user_id=bulk.started_by_id, source=bulk.started_from)
        done, skipped = [], Counter[str]()
        for transaction_id in ids:
            try:
                done.append(actions.make_pending_again(transaction_id, by=by, at=at))
            except actions.PayoutNotRetryable:
                skipped[failures.CHANGED] += 1
            except own_affairs.OwnPayout:
                skipped[failures.BLOCKED["own"]] += 1
        bulk.last_id = ids[-1]
        bulk.retried += len(done)
        bulk.skipped += len(ids) - len(done)
        bulk.save(update_fields=["last_id", "retried", "skipped"])
        for payout, before in done:
            actions.record("payout.retry", payout, before, by=by, at=at, reason=f"Bulk retry {bulk.pk}")
    return RetryResult([payout.pk for payout, _ in done], dict(skipped))
