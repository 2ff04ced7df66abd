"""Tests of markets/reminders.py: staff are reminded before and after the close of a market."""

from datetime import timedelta

from django.conf import Settings
from django.utils import timezone

from markets import lifecycle, reminders
from markets.models import Market
from payments import market_tasks
from testing import builders, console_scenes
from testing.builders import actor, market, operator
from users.models import Notice

NOW = timezone.now()
TIMES = {"before": timedelta(hours=1), "every": timedelta(hours=24)}


def texts() -> list[str]:
    return list(Notice.objects.order_by("pk").values_list("text", flat=True))


def remind(of: Market, hours: float) -> int:
    return reminders.remind(market_id=of.pk, at=NOW + timedelta(hours=hours), **TIMES)


def test_staff_are_reminded_before_the_close_at_it_and_each_day_after(db: None) -> None:
    # given: a market that ends in two hours, made yesterday
    operator()
    rain = market(end_date=NOW + timedelta(hours=2), created_at=NOW - timedelta(days=1))

    # when, then
    assert [remind(rain, hours) for hours in (0, 1, 1.5)] == [0, 1, 0]
    lifecycle.close_ended(market_id=rain.pk, at=NOW + timedelta(hours=2))
    assert [remind(rain, hours) for hours in (2, 3, 25.9, 26, 27)] == [1, 0, 0, 1, 0]
    assert "closes soon" in texts()[0]
    assert "It has just closed." in texts()[1]
    assert "It has waited for 24 hours." in texts()[2]


def test_only_staff_who_may_resolve_are_reminded(db: None, settings: Settings) -> None:
    settings.PROFILE = "production"
    console_scenes.staff("viewer")
    may = console_scenes.staff("operator")
    rain = market(end_date=NOW + timedelta(minutes=30), created_at=NOW - timedelta(days=1))
    assert remind(rain, 0) == 1
    assert [notice.user_id for notice in Notice.objects.all()] == [may.pk]


def test_decided_market_and_market_of_a_shell_need_no_reminder(db: None) -> None:
    operator()
    decided = market(end_date=NOW - timedelta(hours=1), created_at=NOW - timedelta(days=1))
    builders.resolve(decided, at=NOW)
    made_late = market(end_date="2026-02-17", created_at=NOW)
    market()
    assert reminders.due(at=NOW, limit=10, **TIMES) == []
    assert remind(made_late, 0) == 0


def test_task_reminds_of_a_market_that_a_person_closed(db: None) -> None:
    operator()
    rain = market()
    lifecycle.close(market_id=rain.pk, reason="Over.", by=actor(operator()), at=NOW)
    market_tasks.remind_staff_of_markets()
    market_tasks.remind_staff_of_markets()
    assert len(texts()) == 2


def test_staff_are_reminded_of_a_market_that_was_undone_before_its_end(db: None) -> None:
    # given: a market with a far end, which staff resolved by mistake and took back
    operator()
    rain = market()
    builders.bet(rain, builders.member(100), at=NOW)
    builders.resolve(rain, at=NOW)
    builders.settle(rain, at=NOW)
    builders.undo(rain, at=NOW)

    # when, then
    assert [remind(rain, hours) for hours in (0.1, 1, 24.1)] == [1, 0, 1]
    rain.refresh_from_db()
    assert rain.closed_at == NOW
