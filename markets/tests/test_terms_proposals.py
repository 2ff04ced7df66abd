"""Tests of markets/terms_proposals.py: a change that members have bet on waits for a second person."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from markets import lifecycle, locks, stakeholders, terms, terms_proposals
from markets.models import Market
from payments import wiring
from testing import builders
from testing.builders import actor, bet, market, member, nothing_moved, operator
from users import audit, proposals
from users.models import AuditEntry, CustomUser, Proposal

NOW = timezone.now()
NOTICE = timedelta(hours=24)


def change(of: Market, by: CustomUser | None = None, **changes: Any) -> Any:
    of.refresh_from_db()
    return terms_proposals.change(
        market_id=of.pk,
        draft=replace(terms.of(of), **changes),
        seen_version=of.terms_version,
        reason="The fee was mistyped.",
        by=actor(by or operator()),
        at=NOW,
        notice=NOTICE,
    )


def decide(call: Any, by: CustomUser, **more: Any) -> Any:
    made = Proposal.objects.order_by("-pk")[0]
    return call(proposal_id=made.pk, holds=lambda _: True, by=actor(by), at=NOW, acts=wiring.acts(), **more)


def approve(by: CustomUser) -> Any:
    return decide(proposals.approve, by, preview_hash=Proposal.objects.order_by("-pk")[0].hash)


def audit_actions() -> list[str]:
    return list(AuditEntry.objects.values_list("action", flat=True))


def staked() -> Market:
    rain = market()
    bet(rain, member(100), at=NOW)
    return rain


def test_change_waits_with_betting_suspended_and_then_holds_with_a_notice(db: None) -> None:
    # given
    rain, first, second, other = staked(), operator(), operator(), member(100)

    # when
    made = change(rain, by=first, platform_fee_pct=Decimal(4))

    # then
    assert isinstance(made, proposals.Proposed)
    rain.refresh_from_db()
    assert (rain.terms_version, rain.betting_suspended_at) == (1, NOW)
    words = wiring.acts()["market.change"].words(Proposal.objects.get())
    assert words[0] == "Platform fee: 5.00 % → 4.00 %"
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        bet(rain, other, at=NOW)
    with pytest.raises(proposals.ProposerCannotApprove):
        approve(first)

    # when
    changed = approve(second)

    # then
    rain.refresh_from_db()
    assert isinstance(changed, terms.Changed)
    assert (rain.terms_version, rain.platform_fee_pct, rain.betting_suspended_at) == (2, Decimal(4), None)
    assert rain.take_back_until == NOW + NOTICE
    version = rain.terms.get(version=2)
    assert (version.made_by, version.approved_by) == (first, second)


@pytest.mark.parametrize("suspended_before", [False, True])
def test_rejection_resumes_only_betting_that_the_proposal_suspended(db: None, suspended_before: bool) -> None:
    rain = staked()
    if suspended_before:
        Market.objects.filter(pk=rain.pk).update(betting_suspended_at=NOW - timedelta(hours=1))
    change(rain, source="meteo.go.ke")
    decide(proposals.reject, operator(), reason="No.")
    rain.refresh_from_db()
    assert (rain.betting_suspended_at is not None) == suspended_before
    assert rain.terms_version == 1


@pytest.mark.parametrize("end", ["rejected", "approved", "expired"])
def test_suspension_of_a_person_outlives_the_proposal(db: None, end: str) -> None:
    # given: the result is known early, so an operator suspends betting while a change of terms waits
    rain, other, staff, late = staked(), member(100), operator(), NOW + timedelta(days=4)
    change(rain, source="meteo.go.ke")
    lifecycle.suspend_betting(market_id=rain.pk, reason="It rains.", by=actor(staff), at=NOW + timedelta(seconds=1))

    # when
    if end == "rejected":
        decide(proposals.reject, operator(), reason="No.")
    elif end == "approved":
        approve(operator())
    else:
        proposals.expire(proposal_id=Proposal.objects.get().pk, at=late, acts=wiring.acts())

    # then
    rain.refresh_from_db()
    assert rain.betting_suspended_at == NOW + timedelta(seconds=1)
    with nothing_moved(), pytest.raises(locks.MarketNotOpen, match="suspended"):
        bet(rain, other, at=late)
    assert audit_actions().count("market.suspend_betting") == 1


def test_suspension_after_a_resumption_is_not_the_proposals(db: None) -> None:
    rain, staff = staked(), actor(operator())
    change(rain, source="meteo.go.ke")
    lifecycle.resume_betting(market_id=rain.pk, reason="Go on.", by=staff, at=NOW + timedelta(seconds=1))
    lifecycle.suspend_betting(market_id=rain.pk, reason="Rain.", by=staff, at=NOW + timedelta(seconds=2))
    decide(proposals.reject, operator(), reason="No.")
    rain.refresh_from_db()
    assert rain.betting_suspended_at is not None


def test_change_without_bets_needs_nobody_else(db: None) -> None:
    rain = market()
    assert isinstance(change(rain, source="meteo.go.ke"), terms.Changed)
    assert Proposal.objects.count() == 0


def test_change_that_is_no_longer_possible_becomes_stale(db: None) -> None:
    rain = staked()
    change(rain, end_date=NOW + NOTICE + timedelta(minutes=1))
    made = Proposal.objects.get()
    later = NOW + timedelta(minutes=2)  # The close would now come within the notice.
    with pytest.raises(proposals.PreviewMoved):
        proposals.approve(
            proposal_id=made.pk,
            preview_hash=made.hash,
            holds=lambda _: True,
            by=actor(operator()),
            at=later,
            acts=wiring.acts(),
        )
    rain.refresh_from_db()
    assert (rain.betting_suspended_at, rain.terms_version) == (None, 1)


def test_staff_with_a_stake_neither_propose_nor_approve(db: None) -> None:
    rain, staff = staked(), operator(balance=100)
    bet(rain, staff, at=NOW)
    with pytest.raises(stakeholders.StakeInMarket):
        change(rain, by=staff, source="meteo.go.ke")
    change(rain, source="meteo.go.ke")
    with pytest.raises(stakeholders.StakeInMarket):
        approve(staff)


def test_nobody_without_a_name_proposes_a_change(db: None) -> None:
    rain = staked()
    with pytest.raises(proposals.PersonNeeded):
        terms_proposals.change(
            market_id=rain.pk,
            draft=replace(terms.of(rain), source="x"),
            seen_version=1,
            reason="",
            by=audit.Actor(user_id=None, source="command"),
            at=NOW,
            notice=NOTICE,
        )
    rain.refresh_from_db()
    assert rain.betting_suspended_at is None


def test_waiting_change_keeps_other_decisions_out(db: None) -> None:
    rain = staked()
    change(rain, source="meteo.go.ke")
    with pytest.raises(proposals.ProposalWaits):
        change(rain, source="kmd.go.ke")
    with pytest.raises(proposals.ProposalWaits):
        builders.resolve(rain, at=NOW, by=operator())
