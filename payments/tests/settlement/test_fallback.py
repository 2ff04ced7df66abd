"""Tests of payments/settlement/fallback.py: the machine proposes to void markets that nobody resolves."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from markets import lifecycle
from markets.models import Market
from payments import market_tasks, wiring
from payments.settlement import fallback
from testing import builders
from testing.builders import actor, bet, market, member, nothing_moved, operator, policy
from users import proposals
from users.models import CustomUser, Proposal

NOW = timezone.now()
AFTER = timedelta(days=7)
LATER = NOW + AFTER


def closed_market() -> tuple[object, CustomUser]:
    rain, user = market(), member(100)
    bet(rain, user, at=NOW)
    lifecycle.close(market_id=rain.pk, reason="Over.", by=actor(operator()), at=NOW)
    rain.refresh_from_db()
    return rain, user


def approve(made: Proposal, by: CustomUser) -> object:
    return proposals.approve(
        proposal_id=made.pk,
        preview_hash=made.hash,
        holds=lambda _: True,
        by=actor(by),
        at=LATER,
        acts=wiring.acts(),
    )


def test_market_that_nobody_resolves_is_proposed_to_be_voided_once(db: None) -> None:
    rain, _ = closed_market()
    assert fallback.due(at=LATER - timedelta(seconds=1), after=AFTER, limit=10) == []
    assert fallback.due(at=LATER, after=AFTER, limit=10) == [rain.pk]
    made = fallback.propose_void(market_id=rain.pk, at=LATER, after=AFTER, policy=policy())
    assert made is not None
    assert made.act == "market.void"
    assert fallback.due(at=LATER, after=AFTER, limit=10) == []
    assert fallback.propose_void(market_id=rain.pk, at=LATER, after=AFTER, policy=policy()) is None


def test_two_people_approve_the_machines_proposal(db: None) -> None:
    # given
    rain, user = closed_market()
    fallback.propose_void(market_id=rain.pk, at=LATER, after=AFTER, policy=policy())
    made, first, second = Proposal.objects.get(), operator(), operator()
    assert made.proposed_by_id is None

    # when, then
    assert isinstance(approve(made, first), proposals.ApprovedOnce)
    with nothing_moved(), pytest.raises(proposals.ProposerCannotApprove):
        approve(made, first)
    approve(made, second)
    builders.settle(rain, at=LATER)
    assert rain.status == "VOID"
    assert CustomUser.objects.get(pk=user.pk).balance == Decimal(100)


def test_machines_proposal_blocks_nothing_and_lapses_when_people_decide(db: None) -> None:
    rain, _ = closed_market()
    fallback.propose_void(market_id=rain.pk, at=LATER, after=AFTER, policy=policy())
    builders.resolve(rain, at=LATER, by=operator())
    assert Proposal.objects.get().state == "STALE"
    assert fallback.due(at=LATER, after=AFTER, limit=10) == []


def test_rejected_proposal_is_made_again_only_after_the_same_time(db: None) -> None:
    rain, _ = closed_market()
    fallback.propose_void(market_id=rain.pk, at=LATER, after=AFTER, policy=policy())
    proposals.reject(
        proposal_id=Proposal.objects.get().pk,
        reason="We wait for the court.",
        holds=lambda _: True,
        by=actor(operator()),
        at=LATER,
        acts=wiring.acts(),
    )
    assert fallback.due(at=LATER + timedelta(minutes=1), after=AFTER, limit=10) == []
    assert fallback.propose_void(market_id=rain.pk, at=LATER, after=AFTER, policy=policy()) is None
    assert fallback.due(at=LATER + AFTER, after=AFTER, limit=10) == [rain.pk]


@pytest.mark.parametrize("closed_first", [True, False], ids=["closed by a person", "resolved before its end"])
def test_time_begins_again_when_a_settlement_is_undone(db: None, closed_first: bool) -> None:
    # given
    rain = market()
    bet(rain, member(100), at=NOW)
    if closed_first:
        lifecycle.close(market_id=rain.pk, reason="Over.", by=actor(operator()), at=NOW)
    builders.resolve(rain, at=LATER)
    builders.settle(rain, at=LATER)
    builders.undo(rain, at=LATER)
    assert Market.objects.get(pk=rain.pk).status == "CLOSED"

    # when, then
    assert fallback.due(at=LATER + timedelta(minutes=1), after=AFTER, limit=10) == []
    assert fallback.due(at=LATER + AFTER, after=AFTER, limit=10) == [rain.pk]
    made = fallback.propose_void(market_id=rain.pk, at=LATER + AFTER, after=AFTER, policy=policy())
    assert made is not None


def test_task_proposes_after_the_time_of_the_setting(db: None) -> None:
    rain = market(end_date=NOW - timedelta(days=8), created_at=NOW - timedelta(days=9))
    market(end_date="2026-02-17", created_at=NOW)
    market_tasks.propose_to_void_markets()
    market_tasks.propose_to_void_markets()
    assert [made.subject for made in Proposal.objects.all()] == [f"market:{rain.pk}"]
