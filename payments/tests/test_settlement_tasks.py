"""Celery tasks: their names, their messages on a real Redis, and sweeps that work without messages."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from api.celery import SWEEPS, app
from markets.models import Market
from payments import settlement_tasks, wiring
from payments.models import Callback, Transaction
from payments.mpesa.simulator.server import Options, Simulator
from payments.mpesa.simulator.terms import Terms
from payments.payouts.sending import claims
from testing import builders, payout_steps

NAMES = "payments.settlement_tasks."
Queued = Callable[[], list[tuple[str, str, list[Any]]]]


@pytest.fixture
def provider(settings: Any) -> Any:
    """A simulator that receives the tasks' requests. It sends its results only long after the test."""
    with Simulator(Options(latency=0, terms=Terms(callback_delay=600))) as simulator:
        settings.MPESA_BASE_URL = simulator.base_url
        settings.MPESA_CALLBACK_URL = "http://127.0.0.1:9/api/payments/b2c-callback/"
        yield simulator
        wiring.gateway().close()


def resolved(winners: int) -> Market:
    market = builders.market()
    for _ in range(winners):
        builders.orm_bet(market, builders.member(), "Yes", 100)
    builders.orm_bet(market, builders.member(), "No", 100)
    builders.resolve(market)
    return market


# --- registration ----------------------------------------------------------------------------------------------------


def test_worker_registers_the_guides_tasks_and_the_sweeps() -> None:
    # when
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if not name.startswith("celery.")}

    # then
    assert ours == {
        "payments.settlement_tasks.settle_market",
        "payments.settlement_tasks.send_b2c_payout",
        "payments.settlement_tasks.settle_resolved_markets",
        "payments.settlement_tasks.send_due_payouts",
        "payments.settlement_tasks.apply_stored_callbacks",
        "payments.settlement_tasks.ask_about_doubts",
        "payments.overview_tasks.heartbeat",
        "payments.overview_tasks.measure",
        "payments.overview_tasks.check_books",
        "payments.overview_tasks.sum_up",
        "payments.overview_tasks.look",
        "payments.overview_tasks.keep_audit_head",
        "users.audit_tasks.send_audit_head",
        "payments.settlement_tasks.expire_proposals",
        "payments.market_tasks.tell_members_of_new_terms",
        "payments.market_tasks.close_ended_markets",
        "payments.market_tasks.remind_staff_of_markets",
        "payments.market_tasks.propose_to_void_markets",
        "payments.settlement_tasks.issue_certificates",
        "payments.settlement_tasks.close_remedied_disputes",
        "payments.settlement_tasks.undo_market",
        "payments.settlement_tasks.ask_for_the_float",
        "payments.settlement_tasks.continue_bulk_retries",
    }


def test_beat_schedules_each_sweep_with_expiry() -> None:
    # given
    schedule = dict(app.conf.beat_schedule)
    assert (
        schedule.pop("ask for the float balance")["schedule"] == 900
    )  # This task and the next two are no sweeps, because they do not look for unfinished work.
    for name in ("keep the head of the audit trail", "send the head of the audit trail"):
        assert schedule.pop(name)["schedule"] == 3_600

    # then
    assert {entry["task"] for entry in schedule.values()} == SWEEPS
    assert len(schedule) == len(SWEEPS) == 16
    for entry in schedule.values():
        assert entry["schedule"] <= 60
        assert entry["options"]["expires"] <= 60
    # This task runs for seconds. If its messages did not expire, a queue of them would delay other tasks.
    assert schedule["send due payouts"]["options"]["expires"] <= schedule["send due payouts"]["schedule"]


def test_queue_accepts_only_json() -> None:
    assert (app.conf.accept_content, app.conf.task_serializer) == (["json"], "json")


# --- settling --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_settling_few_winners_publishes_each_payout(queued: Queued) -> None:
    # given
    market = resolved(winners=3)

    # when
    settlement_tasks.settle_market(market.pk)

    # then
    market.refresh_from_db()
    payouts_by_mpesa = Transaction.objects.filter(destination="mpesa").order_by("pk").values_list("pk", flat=True)
    assert market.status == "SETTLED"
    assert [(name, arguments) for name, _, arguments in queued()] == [
        (f"{NAMES}send_b2c_payout", [pk]) for pk in payouts_by_mpesa
    ]


@pytest.mark.django_db
def test_settling_many_winners_publishes_one_bulk_send(queued: Queued) -> None:
    # given
    market = resolved(winners=21)

    # when
    settlement_tasks.settle_market(market.pk)

    # then
    assert [(name, arguments) for name, _, arguments in queued()] == [(f"{NAMES}send_due_payouts", [])]


@pytest.mark.django_db
def test_repeated_message_settles_once(queued: Queued) -> None:
    # given
    market = resolved(winners=3)
    settlement_tasks.settle_market(market.pk)

    # when
    with builders.nothing_moved():
        settlement_tasks.settle_market(market.pk)

    # then
    assert len(queued()) == 3


@pytest.mark.django_db
def test_message_about_unresolved_market_does_nothing(queued: Queued) -> None:
    # given
    market = builders.market()

    # then
    with builders.nothing_moved():
        settlement_tasks.settle_market(market.pk)
    assert queued() == []


@pytest.mark.django_db
def test_sweep_settles_markets_whose_message_was_lost() -> None:
    # given
    markets = [resolved(winners=1), resolved(winners=1)]

    # when
    settlement_tasks.settle_resolved_markets()

    # then
    assert list(Market.objects.filter(pk__in=[market.pk for market in markets]).values_list("status", flat=True)) == [
        "SETTLED",
        "SETTLED",
    ]


@pytest.mark.django_db
@pytest.mark.broken_books
def test_market_with_wrong_books_does_not_stop_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    # given
    from django.db import transaction

    from payments.ledger import journal

    broken, fine = resolved(winners=1), resolved(winners=1)
    with transaction.atomic():
        journal.post([journal.Entry("topup:x", journal.OPENING, journal.pool(broken.pk), 1)], at=builders.AT)

    # when
    settlement_tasks.settle_resolved_markets()

    # then
    broken.refresh_from_db()
    fine.refresh_from_db()
    assert (broken.status, fine.status) == ("RESOLVED", "SETTLED")
    assert any(record.name == "kasoko.alarm" for record in caplog.records)


# --- sending, applying, asking ---------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_repeated_send_message_sends_a_payout_once(provider: Simulator) -> None:
    # given
    payout = builders.payout(285)

    # when
    for _ in range(3):
        settlement_tasks.send_b2c_payout(payout.pk)

    # then
    attempt = payout.attempts.get()
    assert payout_steps.states(payout, attempt) == ("PROCESSING", "ACCEPTED")
    assert provider.book.requests_of(attempt.originator_conversation_id) == 1


@pytest.mark.django_db(transaction=True)
def test_sweep_sends_payouts_whose_message_was_lost(provider: Simulator, settings: Any) -> None:
    # given
    settings.PAYOUT_TPS = 1_000
    market = resolved(winners=5)
    builders.settle(market)

    # when
    settlement_tasks.send_due_payouts()
    idle = wiring.dispatcher_thread().wait_until_idle(60)

    # then
    assert idle
    assert Transaction.objects.filter(status="PROCESSING", attempts__state="ACCEPTED").count() == 5
    assert not claims.any_due(at=timezone.now(), policy=payout_steps.POLICY)


@pytest.mark.django_db
def test_sweep_asks_about_requests_without_an_answer(provider: Simulator) -> None:
    # given
    long_ago = timezone.now() - timedelta(minutes=1)
    payout = builders.payout(285, at=long_ago)
    (claim,) = claims.claim(at=long_ago, policy=wiring.policy(), addresses=wiring.addresses(), limit=1)

    # when
    settlement_tasks.ask_about_doubts()

    # then
    attempt = payout.attempts.get()
    assert payout_steps.states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert attempt.queries.get().conversation_id != ""
    assert provider.book.queries_of(claim.originator_conversation_id) == 1


@pytest.mark.django_db
def test_repeated_sweeps_apply_every_stored_callback() -> None:
    # given
    attempt = payout_steps.sent(builders.payout(285))
    Callback.objects.bulk_create(
        Callback(
            kind="result",
            attempt=attempt,
            body=b"%d" % number,
            digest=str(number),
            received_at=datetime(2026, 2, 16, tzinfo=UTC),
            trusted=True,
        )
        for number in range(230)
    )

    # when
    for _ in range(20):
        settlement_tasks.apply_stored_callbacks()

    # then
    assert Callback.objects.filter(applied_at=None).count() == 0
