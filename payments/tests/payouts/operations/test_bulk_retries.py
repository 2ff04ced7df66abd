"""Bulk retries: the first payouts at once, the rest in the background, each payout once."""

from datetime import timedelta

import pytest

from payments.models import Attempt, BulkRetry, Transaction
from payments.payouts.operations import bulk_retries, failures
from payments.settlement import pacing
from testing import builders, payout_steps
from testing.builders import AT, actor, operator
from testing.crashes import Crash, crash_at_statement
from testing.payout_steps import after, claims, sent
from testing.settlement_steps import steps
from users.audit import MACHINE
from users.models import AuditEntry

pytestmark = pytest.mark.django_db

NOW = after(9_000)


def failed(count: int) -> list[Transaction]:
    payouts = [builders.payout(285) for _ in range(count)]
    for claim in claims():  # All leave before the first answer, because failures pause the sending.
        payout_steps.put_through(claim, payout_steps.REJECTED)
    return payouts


def statuses() -> list[str]:
    return list(Transaction.objects.order_by("pk").values_list("status", flat=True))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bulk retry examine 4 payouts at once, in batches of 2."""
    monkeypatch.setattr(failures, "AT_ONCE", 4)
    monkeypatch.setattr(bulk_retries, "BATCH", 2)


def test_bulk_retry_covers_payouts_failed_since_a_time() -> None:
    # given
    long_ago, at_the_edge, lately, fine = (builders.payout(285, at=AT) for _ in range(4))
    payout_steps.failed(long_ago, at=AT)
    payout_steps.failed(at_the_edge, at=after(3_600))
    payout_steps.failed(lately, at=after(7_200))
    sent(fine)

    # when
    outcome = bulk_retries.start(since=after(3_600), by=MACHINE, at=NOW)

    # then
    assert outcome == bulk_retries.RetryResult([at_the_edge.pk, lately.pk], {})
    assert {claim.transaction_id for claim in claims(NOW)} == {at_the_edge.pk, lately.pk}
    again = bulk_retries.start(since=after(3_600), by=MACHINE, at=after(9_001))
    assert again == bulk_retries.RetryResult([], {})


def test_bulk_retry_counts_payouts_that_a_retry_refuses() -> None:
    good, reported = failed(2)
    Attempt.objects.filter(transaction=reported).update(next_query_at=NOW)
    outcome = bulk_retries.start(by=MACHINE, at=NOW)
    assert outcome == bulk_retries.RetryResult([good.pk], {failures.CHANGED: 1})
    bulk = BulkRetry.objects.get()
    assert (bulk.chosen, bulk.retried, bulk.skipped, bulk.finished_at) == (2, 1, 1, NOW)


@pytest.mark.usefixtures("small")
def test_rest_of_a_bulk_retry_goes_on_in_the_background() -> None:
    # given
    payouts = failed(7)
    boss = operator()

    # when
    outcome = bulk_retries.start(by=actor(boss), at=NOW)

    # then
    assert outcome.retried == [payout.pk for payout in payouts[:4]]
    assert outcome.remaining == 3
    assert bulk_retries.to_continue(limit=10) == [BulkRetry.objects.get().pk]

    # when
    keep_going = pacing.for_seconds(60)
    assert bulk_retries.carry_on(bulk_id=bulk_retries.to_continue(1)[0], at=after(9_010), keep_going=keep_going) == 3

    # then
    assert statuses() == ["PENDING"] * 7
    bulk = BulkRetry.objects.get()
    assert (bulk.chosen, bulk.retried, bulk.skipped, bulk.finished_at) == (7, 7, 0, after(9_010))
    assert bulk_retries.to_continue(limit=10) == []
    entries = AuditEntry.objects.filter(action="payout.retry", actor=boss, reason=f"Bulk retry {bulk.pk}")
    assert entries.count() == 7


@pytest.mark.usefixtures("small")
def test_payout_that_fails_again_is_not_retried_by_the_same_bulk_retry() -> None:
    payouts = failed(6)
    bulk_retries.start(by=MACHINE, at=NOW)
    payout_steps.failed(payouts[0], at=after(9_005))
    (bulk_id,) = bulk_retries.to_continue(limit=10)
    bulk_retries.carry_on(bulk_id=bulk_id, at=after(9_010), keep_going=lambda: True)
    payouts[0].refresh_from_db()
    assert payouts[0].status == "FAILED"
    assert BulkRetry.objects.get().retried == 6


@pytest.mark.usefixtures("small")
def test_killed_bulk_retry_continues_and_counts_each_payout_once() -> None:
    # given
    failed(6)
    with pytest.raises(Crash), crash_at_statement(25):
        bulk_retries.start(by=MACHINE, at=NOW)
    before = statuses().count("PENDING")
    assert before < 6

    # when
    for bulk_id in bulk_retries.to_continue(limit=10):
        bulk_retries.carry_on(bulk_id=bulk_id, at=NOW + timedelta(seconds=9), keep_going=lambda: True)

    # then
    assert statuses() == ["PENDING"] * 6
    assert (BulkRetry.objects.get().retried, AuditEntry.objects.filter(action="payout.retry").count()) == (6, 6)


@pytest.mark.usefixtures("small")
def test_worker_stops_between_batches() -> None:
    failed(8)
    bulk_retries.start(by=MACHINE, at=NOW)
    (bulk_id,) = bulk_retries.to_continue(limit=10)
    assert bulk_retries.carry_on(bulk_id=bulk_id, at=NOW, keep_going=steps(1)) == 2
    assert statuses().count("PENDING") == 6


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("small")
def test_concurrent_workers_retry_each_payout_once() -> None:
    failed(10)
    bulk_retries.start(by=MACHINE, at=NOW)
    (bulk_id,) = bulk_retries.to_continue(limit=10)
    found = builders.at_once(*[lambda: bulk_retries.carry_on(bulk_id=bulk_id, at=NOW, keep_going=lambda: True)] * 3)
    rest = bulk_retries.carry_on(bulk_id=bulk_id, at=NOW, keep_going=lambda: True)
    assert sum(found) + rest == 6
    assert BulkRetry.objects.get().retried == 10
