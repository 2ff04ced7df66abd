"""Tests of markets/lifecycle.py: betting is suspended and resumed, and markets close by a person or the clock."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from markets import lifecycle, locks, stakeholders, terms
from markets.models import Market
from payments import market_tasks
from testing.builders import FAR, actor, bet, market, member, nothing_moved, operator, orm_bet
from users.models import AuditEntry

NOW = timezone.now()


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("number").values_list("action", flat=True))


def test_suspended_market_takes_no_bets_until_betting_is_resumed(db: None) -> None:
    # given
    rain, user, staff = market(), member(100), actor(operator())

    # when
    lifecycle.suspend_betting(market_id=rain.pk, reason="News.", by=staff, at=NOW)
    lifecycle.suspend_betting(market_id=rain.pk, reason="News.", by=staff, at=NOW)

    # then
    with nothing_moved():
        with pytest.raises(locks.MarketNotOpen, match="suspended"):
            bet(rain, user, at=NOW)
        with pytest.raises(IntegrityError, match="suspended"), transaction.atomic():
            orm_bet(rain, user)
    lifecycle.resume_betting(market_id=rain.pk, reason="Checked.", by=staff, at=NOW)
    assert bet(rain, user, at=NOW).result == "PENDING"
    assert actions() == ["market.suspend_betting", "market.resume_betting"]
    with pytest.raises(lifecycle.MarketNotSuspended):
        lifecycle.resume_betting(market_id=rain.pk, reason="Again.", by=staff, at=NOW)


def test_market_closed_by_a_person_waits_for_its_decision_for_good(db: None) -> None:
    rain, staff = market(), actor(operator())
    lifecycle.close(market_id=rain.pk, reason="It rains.", by=staff, at=NOW)
    rain.refresh_from_db()
    assert (rain.status, rain.closed_at) == ("CLOSED", NOW)
    for act in (lifecycle.close, lifecycle.suspend_betting, lifecycle.resume_betting):
        with nothing_moved(), pytest.raises(locks.MarketNotOpen):
            act(market_id=rain.pk, reason="Again.", by=staff, at=NOW)
    assert actions() == ["market.close"]


def test_staff_with_a_stake_neither_suspend_nor_close_the_market(db: None) -> None:
    rain, staff = market(), operator(balance=100)
    bet(rain, staff, at=NOW)
    for act in (lifecycle.close, lifecycle.suspend_betting):
        with nothing_moved(), pytest.raises(stakeholders.StakeInMarket):
            act(market_id=rain.pk, reason="Mine.", by=actor(staff), at=NOW)


# --- the clock -------------------------------------------------------------------------------------------------------


def test_clock_closes_markets_at_their_end_as_the_machine(db: None) -> None:
    # given: one market ends now, one later, and one was made by the shell with a past end
    ends_now = market(end_date=NOW, created_at=NOW - timedelta(days=1))
    market(created_at=NOW - timedelta(days=1))
    market(end_date="2026-02-17", created_at=NOW)

    # when
    market_tasks.close_ended_markets()
    market_tasks.close_ended_markets()

    # then
    ends_now.refresh_from_db()
    assert (ends_now.status, ends_now.closed_at) == ("CLOSED", NOW)
    assert Market.objects.filter(status="OPEN").count() == 2
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor_id, entry.source) == ("market.close", None, "machine")


def test_market_closed_before_the_clock_comes_is_left_alone(db: None) -> None:
    ended = market(end_date=NOW, created_at=NOW - timedelta(days=1))
    assert lifecycle.ended(at=NOW, limit=10) == [ended.pk]
    Market.objects.filter(pk=ended.pk).update(status="CLOSED")
    assert lifecycle.close_ended(market_id=ended.pk, at=NOW) is False
    assert lifecycle.ended(at=NOW, limit=10) == []


def test_category_with_hidden_characters_is_refused(db: None) -> None:
    draft = terms.Draft(question="Rain?", outcomes=("Yes", "No"), platform_fee_pct=Decimal(5), end_date=FAR)
    with pytest.raises(terms.BadTerms) as refusal:
        lifecycle.create(draft=draft, category="Sport\u200b", by=actor(operator()), at=NOW)
    assert list(refusal.value.details) == ["category"]
