"""Pacing: bulk work rests between its chunks while others are at work."""

from collections.abc import Callable

import psycopg2
import pytest
from django.conf import Settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from markets.models import Market
from payments import settlement_tasks, wiring
from payments.settlement import undo
from payments.settlement.certificates import issuing
from payments.settlement.pacing import LONGEST_REST_SECONDS, others_at_work, paced
from testing import builders, database


class Hours:
    """A clock that tests advance, and a list of the rests."""

    def __init__(self) -> None:
        self.now, self.rests = 0.0, list[float]()

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(("busy", "rests"), [(True, [0.15, 0.075]), (False, [])])
def test_rest_is_proportional_to_the_work_if_others_are_at_work(busy: bool, rests: list[float]) -> None:
    # given
    hours = Hours()
    go_on = paced(lambda: True, others_busy=lambda: busy, clock=lambda: hours.now, rest=hours.rest)

    # when
    for took in (0.2, 0.1):
        hours.now += took
        assert go_on()

    # then
    assert hours.rests == pytest.approx(rests)


def test_rest_is_bounded_and_none_follows_the_end() -> None:
    # given
    hours, more = Hours(), [True, False]
    go_on = paced(lambda: more.pop(0), others_busy=lambda: True, clock=lambda: hours.now, rest=hours.rest)

    # when
    hours.now += 60
    first, second = go_on(), go_on()

    # then
    assert (first, second) == (True, False)
    assert hours.rests == [LONGEST_REST_SECONDS]


@pytest.mark.django_db(transaction=True)
def test_open_transaction_of_another_session_counts_as_work() -> None:
    # given
    other = psycopg2.connect(database.application_url())
    try:
        idle = others_at_work()

        # when
        other.cursor().execute("SELECT 1")

        # then
        assert not idle
        assert others_at_work()
    finally:
        other.close()


def _resolved(bets: int = 3) -> Market:
    made = builders.market()
    for _ in range(bets):
        builders.orm_bet(made, builders.member(), "Yes", 100)
    builders.resolve(made, "Yes", at=timezone.now())
    return made


def _to_settle() -> Callable[[], None]:
    made = _resolved()
    return lambda: settlement_tasks.settle_market(made.pk)


def _to_undo() -> Callable[[], None]:
    made = _resolved()
    settlement_tasks.settle_market(made.pk)
    undo.undo(market_id=made.pk, reason="Wrong.", by=builders.actor(), at=timezone.now(), policy=wiring.policy())
    return lambda: settlement_tasks.undo_market(made.pk)


def _to_certify() -> Callable[[], None]:
    settlement_tasks.settle_market(_resolved().pk)
    assert issuing.to_issue(limit=1)
    return settlement_tasks.issue_certificates


@pytest.mark.parametrize("prepare", [_to_settle, _to_undo, _to_certify])
def test_each_bulk_task_checks_whether_others_are_at_work(
    db: None, settings: Settings, prepare: Callable[[], Callable[[], None]]
) -> None:
    # given: work of more than one chunk
    settings.SETTLEMENT_CHUNK = 1
    work = prepare()

    # when
    with CaptureQueriesContext(connection) as asked:
        work()

    # then
    assert any("pg_stat_activity" in query["sql"] for query in asked.captured_queries)
