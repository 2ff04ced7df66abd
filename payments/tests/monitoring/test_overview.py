"""Figures of the home page: sums by state, money in doubt by age, series, invariant checks, heartbeats."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection

from markets.models import Market
from payments import monitoring_tasks
from payments.ledger import invariants
from payments.models import Attempt, Figures, Heartbeat, InvariantCheck
from payments.monitoring import overview
from payments.payouts.operations import actions
from testing import console_scenes, database
from testing.builders import market, payout
from users.models import CustomUser

NOTHING = overview.Total(0, Decimal(0))


def test_empty_database_has_no_work_and_no_figures(db: None, at: datetime) -> None:
    now = overview.now(at=at)
    assert (now.to_resolve, now.decisions, now.breakers, now.broken, now.books_checked_at) == (0, 0, [], [], None)
    assert (now.held, now.failed, now.pending, now.processing, now.in_doubt, now.due) == (*[NOTHING] * 5, 0)
    assert now.oldest_doubt is None
    assert overview.figures() is None


def test_payouts_are_counted_by_state_and_unpaid_ones_are_due(db: None, at: datetime) -> None:
    payout(100, at=at)
    console_scenes.send_and_refuse(payout(200, at=at), at)
    console_scenes.send_and_time_out(payout(400, at=at), at)
    console_scenes.pay(payout(800, at=at), at, "SKG7ABC001")
    held = console_scenes.held_in_doubt(1_600, at)
    now = overview.now(at=at)
    assert now.pending == overview.Total(1, Decimal(100))
    assert now.failed == overview.Total(1, Decimal(200))
    assert now.processing == overview.Total(1, Decimal(400))
    assert now.held == overview.Total(1, held.amount)
    assert now.due == 2_300
    assert now.in_doubt == overview.Total(2, Decimal(2_000))
    assert now.oldest_doubt == at - timedelta(days=2)


@pytest.mark.parametrize(
    ("age", "bucket"),
    [
        (timedelta(0), 0),
        (timedelta(seconds=59), 0),
        (timedelta(minutes=1), 1),
        (timedelta(minutes=10), 2),
        (timedelta(hours=1), 3),
        (timedelta(hours=24), 4),
        (timedelta(days=400), 4),
    ],
)
def test_money_in_doubt_is_in_exactly_one_age_bucket(db: None, at: datetime, age: timedelta, bucket: int) -> None:
    console_scenes.send_and_time_out(payout(400, at=at), at)
    Attempt.objects.update(first_sent_at=at - age)
    counts = [bucket.count for bucket in overview.now(at=at).in_doubt_ages]
    assert counts == [int(place == bucket) for place in range(5)]


def test_markets_past_their_end_wait_to_be_resolved(db: None, at: datetime) -> None:
    late, _ = market(), market()
    Market.objects.filter(pk=late.pk).update(end_date=at - timedelta(seconds=1))
    assert overview.now(at=at).to_resolve == 1


def test_figures_by_hour_and_by_day_have_no_gaps(db: None, at: datetime) -> None:
    # given: paid after 4 and 8 seconds, one failed, one paid long ago
    console_scenes.pay(payout(100, at=at), at, "SKG7ABC001", after=4)
    console_scenes.pay(payout(200, at=at), at, "SKG7ABC002", after=8)
    console_scenes.send_and_refuse(payout(400, at=at), at)
    old = at - timedelta(days=10)
    console_scenes.pay(payout(800, at=old), old, "SKG7ABC003", after=2)

    # when
    overview.measure(at=at + timedelta(minutes=1))

    # then
    figures = overview.figures()
    assert figures is not None
    assert len(figures.value["day"]) == 24
    assert len(figures.value["month"]) == 30
    assert figures.value["day"][-1] == {"moment": "2026-02-16T10:00:00", "paid": 2, "failed": 1, "amount": "300.00"}
    assert figures.value["day"][0] == {"moment": "2026-02-15T11:00:00", "paid": 0, "failed": 0, "amount": "0"}
    assert sum(day["paid"] for day in figures.value["month"]) == 3
    assert figures.value["quality_day"] == {"paid": 2, "final": 3, "median": 6.0, "p95": 7.8}
    assert figures.value["quality_month"]["paid"] == 3
    overview.measure(at=at + timedelta(minutes=2))
    assert Figures.objects.count() == 1


def test_redirected_payout_does_not_count_as_paid_over_mpesa(db: None, at: datetime) -> None:
    redirected = payout(400, at=at)
    console_scenes.send_and_refuse(redirected, at)
    actions.redirect_to_wallet(transaction_id=redirected.pk, by=console_scenes.ACTOR, at=at)
    overview.measure(at=at)
    figures = overview.figures()
    assert figures is not None
    assert figures.value["quality_day"] == {"paid": 0, "final": 1, "median": None, "p95": None}


def test_invariants_are_checked_in_parts_and_in_order(db: None, at: datetime) -> None:
    turns = iter([True, True, False])
    assert overview.check_books(at=at, keep_going=lambda: next(turns)) == 2
    assert overview.now(at=at).books_checked_at is None
    later = at + timedelta(seconds=30)
    assert overview.check_books(at=later, keep_going=lambda: True) == len(invariants.INVARIANTS) - 2
    assert overview.now(at=later).books_checked_at == at
    assert overview.check_books(at=later, keep_going=lambda: True) == 0
    again = at + overview.BOOKS_EVERY
    assert overview.check_books(at=again, keep_going=lambda: True) == 2


@pytest.mark.broken_books
def test_broken_invariant_shows_until_it_holds_again(db: None, at: datetime) -> None:
    payout(100)
    person = CustomUser.objects.order_by("pk")[0]
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE users_customuser DISABLE TRIGGER USER")
        cursor.execute("UPDATE users_customuser SET balance = 5 WHERE id = %s", [person.pk])
        cursor.execute("ALTER TABLE users_customuser ENABLE TRIGGER USER")
    overview.check_books(at=at, keep_going=lambda: True)
    (broken,) = overview.now(at=at).broken
    assert broken.broken_count == 1
    assert broken.broken_by == [f"member {person.pk} has 5.00, transfers say 0"]
    InvariantCheck.objects.create(invariant="A rule of long ago", checked_at=at, seconds=0)
    overview.check_books(at=at, keep_going=lambda: True)
    assert not InvariantCheck.objects.filter(invariant="A rule of long ago").exists()


def test_heartbeat_names_beat_and_worker_and_deletes_old_heartbeats(db: None, at: datetime) -> None:
    overview.beat(worker="celery@old", at=at - timedelta(days=2))
    overview.beat(worker="celery@here", at=at)
    assert list(Heartbeat.objects.order_by("name").values_list("name", "at")) == [
        ("beat", at),
        ("worker celery@here", at),
    ]


def test_tasks_compute_figures_check_books_and_beat(db: None) -> None:
    monitoring_tasks.heartbeat()
    monitoring_tasks.measure()
    monitoring_tasks.check_books()
    assert Heartbeat.objects.count() == 2
    assert Figures.objects.count() == 1
    assert InvariantCheck.objects.count() == len(invariants.INVARIANTS)
