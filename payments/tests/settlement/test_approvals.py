"""Approvals: a second person approves exactly the proposed figures, or rejects them."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from markets.models import Market
from payments.ledger import journal
from payments.models import Settlement, Transaction
from payments.payouts.sending import claims
from payments.settlement import resolutions, undo
from payments.settlement.decision import Decision, Evidence
from payments.wallet import take_backs
from testing import builders
from testing.builders import AT, actor, bet, member, nothing_moved, operator, resolve, settle
from testing.payout_steps import after
from testing.settlement_steps import (
    NOBODY,
    TWO_PERSON_ACTS,
    TWO_PERSON_POLICY,
    anything,
    approve,
    bet_again,
    hash_now,
    reject,
    staked,
)
from users import audit, proposals
from users.models import AuditEntry, CustomUser, Proposal


def test_resolve_above_the_threshold_needs_a_second_person(db: None) -> None:
    # given
    market, first, second = staked(), operator(), operator()

    # when
    proposed = resolve(market, by=first, policy=TWO_PERSON_POLICY, evidence=Evidence(note="2 : 1"))

    # then: nothing is decided, and no bet can change the figures
    market.refresh_from_db()
    assert isinstance(proposed, proposals.Proposed)
    assert proposed.preview_hash == hash_now(market)
    assert market.status == "CLOSED"
    assert not Settlement.objects.exists()

    # when
    resolved = approve(proposed, second)

    # then
    market.refresh_from_db()
    settlement = Settlement.objects.get()
    assert isinstance(resolved, resolutions.Resolved)
    assert market.status == "RESOLVED"
    assert (settlement.resolved_by, settlement.approved_by, settlement.evidence_note) == (first, second, "2 : 1")
    assert Proposal.objects.get().state == "APPROVED"
    assert list(AuditEntry.objects.order_by("pk").values_list("action", "actor_id")) == [
        ("proposal.make", first.pk),
        ("market.resolve", second.pk),
    ]
    assert f'"proposed_by":{first.pk},' in AuditEntry.objects.get(action="market.resolve").after
    third = operator()
    with nothing_moved(), pytest.raises(proposals.ProposalDecided):
        approve(proposed, third)


def test_proposer_may_reject_but_not_approve(db: None) -> None:
    # given
    market, first = staked(), operator()
    proposed = resolve(market, by=first, policy=TWO_PERSON_POLICY)

    # then
    with nothing_moved(), pytest.raises(proposals.ProposerCannotApprove):
        approve(proposed, first)

    # when
    reject(proposed, first)

    # then: members may bet again
    market.refresh_from_db()
    assert market.status == "OPEN"
    assert Proposal.objects.get().state == "WITHDRAWN"
    bet(market, member(5), "Yes", 5)


@pytest.mark.parametrize("was", ["closed before", "past its end"])
def test_rejection_opens_no_market_that_was_closed_or_has_ended(db: None, was: str) -> None:
    market = staked()
    if was == "closed before":
        Market.objects.filter(pk=market.pk).update(status="CLOSED")
    else:
        Market.objects.filter(pk=market.pk).update(end_date=AT)

    reject(resolve(market, by=operator(), policy=TWO_PERSON_POLICY), operator())

    market.refresh_from_db()
    assert market.status == "CLOSED"


def test_approval_with_another_hash_is_refused(db: None) -> None:
    proposed, second = resolve(staked(), by=operator(), policy=TWO_PERSON_POLICY), operator()

    with nothing_moved(), pytest.raises(proposals.PreviewMoved):
        approve(proposed, second, "0" * 64)


def test_bet_after_a_proposal_makes_it_stale(db: None) -> None:
    # given
    market = staked()
    proposed = resolve(market, by=operator(), policy=TWO_PERSON_POLICY)
    bet_again(market)

    # when
    with pytest.raises(proposals.PreviewMoved, match="stale"):
        approve(proposed, operator())

    # then
    market.refresh_from_db()
    assert market.status == "OPEN"
    assert not Settlement.objects.exists()
    assert Proposal.objects.get().state == "STALE"
    third = operator()
    with nothing_moved(), pytest.raises(proposals.ProposalDecided):
        approve(proposed, third)
    assert isinstance(resolve(market, by=operator(), policy=TWO_PERSON_POLICY), proposals.Proposed)


def test_void_is_approved_although_members_take_stakes_back_meanwhile(db: None) -> None:
    """A member with many small bets could otherwise delay a void for the whole notice of a change of terms."""
    # given: a notice of a change of terms runs, and a void waits for a second person
    rain, player, now = builders.market(), member(400), timezone.now()
    small = bet(rain, player, amount=100, at=now)
    bet(rain, player, amount=300, at=now)
    builders.changed_terms(rain, at=now, notice=timedelta(hours=24), source="kmd.go.ke")
    proposed = resolve(rain, rule="VOID", by=operator(), policy=TWO_PERSON_POLICY, at=now)
    assert isinstance(proposed, proposals.Proposed)

    # when
    take_backs.take_back(user_id=player.pk, market_id=rain.pk, bet_id=small.public_id, at=now)
    approve_at(proposed, now)
    settle(rain, at=now)

    # then
    player.refresh_from_db()
    assert (rain.status, player.balance) == ("VOID", 400)


def test_winner_proposed_by_a_machine_is_stale_after_a_change_of_terms(db: None) -> None:
    # given: a key's proposal leaves the market open, so two people may change its terms
    rain, now = builders.market(), timezone.now()
    bet(rain, member(400), amount=400, at=now)
    proposed = resolve_by_key(rain, at=now)
    builders.changed_terms(rain, at=now, notice=timedelta(hours=24), source="kmd.go.ke")

    # when, then
    with pytest.raises(proposals.PreviewMoved):
        approve_at(proposed, now)
    assert not Settlement.objects.exists()
    assert Proposal.objects.get().state == "STALE"


def test_winner_proposed_by_a_machine_is_not_approved_after_the_notice_either(db: None) -> None:
    rain, now = builders.market(), timezone.now()
    bet(rain, member(400), amount=400, at=now)
    proposed = resolve_by_key(rain, at=now)
    builders.changed_terms(rain, at=now, notice=timedelta(hours=24), source="kmd.go.ke")
    with pytest.raises(proposals.PreviewMoved):
        approve_at(proposed, now + timedelta(hours=25))


def test_proposal_of_a_person_who_was_suspended_is_stale(db: None) -> None:
    market, first, second = staked(), operator(), operator()
    proposed = resolve(market, by=first, policy=TWO_PERSON_POLICY)
    assert isinstance(proposed, proposals.Proposed)
    CustomUser.objects.filter(pk=first.pk).update(is_active=False)
    with pytest.raises(proposals.ProposalDecided, match="suspended"):
        approve(proposed, second)
    assert not Settlement.objects.exists()
    market.refresh_from_db()
    assert (market.status, Proposal.objects.get().state) == ("OPEN", "STALE")


def resolve_by_key(of: Market, *, at: datetime) -> proposals.Proposed:
    proposed = resolutions.resolve(
        market_id=of.pk,
        decision=Decision("WINNER", {"Yes": Decimal(100)}),
        by=audit.Actor(user_id=None, source="key", key_id=1),
        at=at,
        policy=TWO_PERSON_POLICY,
    )
    assert isinstance(proposed, proposals.Proposed)
    return proposed


def approve_at(proposed: proposals.Proposed, at: datetime) -> object:
    return proposals.approve(
        proposal_id=proposed.proposal_id,
        preview_hash=proposed.preview_hash,
        holds=anything,
        by=actor(operator()),
        at=at,
        acts=TWO_PERSON_ACTS,
    )


def test_approved_void_gives_every_stake_back(db: None) -> None:
    market = staked()
    proposed = resolve(market, rule="VOID", by=operator(), policy=TWO_PERSON_POLICY)
    assert isinstance(proposed, proposals.Proposed)

    approve(proposed, operator())
    settle(market)

    assert market.status == "VOID"
    assert set(Transaction.objects.values_list("type", "status")) == {("REFUND", "COMPLETED")}


def test_proposed_undo_stops_sending_until_it_is_decided(db: None) -> None:
    # given
    market = staked()
    resolve(market)
    settle(market)

    # when
    proposed = undo.undo(market_id=market.pk, reason="Wrong.", by=actor(operator()), at=AT, policy=TWO_PERSON_POLICY)

    # then
    assert isinstance(proposed, proposals.Proposed)
    assert Settlement.objects.get().state == "SETTLED"
    assert not claims.any_due(at=after(1), policy=TWO_PERSON_POLICY)

    # when: the proposal is rejected, sending goes on
    reject(proposed, operator())
    assert claims.any_due(at=after(1), policy=TWO_PERSON_POLICY)

    # when: the undo is proposed again and approved
    proposed = undo.undo(market_id=market.pk, reason="Wrong.", by=actor(operator()), at=AT, policy=TWO_PERSON_POLICY)
    assert isinstance(proposed, proposals.Proposed)
    begun = approve(proposed, operator())

    # then
    assert isinstance(begun, undo.Undoing)
    assert undo.carry_out(market_id=market.pk, at=AT, policy=TWO_PERSON_POLICY, keep_going=lambda: True)
    market.refresh_from_db()
    assert market.status == "CLOSED"
    assert journal.balance(journal.pool(market.pk)) == 300


def test_unknown_proposal_is_refused(db: None) -> None:
    with pytest.raises(proposals.ProposalNotFound):
        proposals.approve(
            proposal_id=1, preview_hash="", holds=anything, by=actor(operator()), at=AT, acts=TWO_PERSON_ACTS
        )
    with pytest.raises(proposals.ProposalNotFound):
        proposals.reject(proposal_id=1, reason="", holds=anything, acts=TWO_PERSON_ACTS, by=NOBODY, at=AT)
