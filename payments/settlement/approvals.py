"""Approvals: the second person approves a proposal, or rejects it.

Lock order: Market, Proposal, Settlement, then the end of the audit trail.
"""

from datetime import datetime

from django.db import transaction

from markets import locks
from markets.models import Market
from payments import own_affairs
from payments.models import Proposal, Settlement
from payments.policy import Policy
from payments.settlement import preview, proposals, resolutions, status, undo
from users import audit
from users.refusal import Refusal


class ProposalNotFound(Refusal):
    """There is no proposal with that id."""


class ProposalDecided(Refusal):
    """The proposal was already approved or rejected, or it is stale."""


class ProposerCannotApprove(Refusal):
    """The person who made a proposal may not approve it."""


class NotYourProposal(Refusal):
    """A person who may not approve proposals may withdraw only their own."""


def approve(
    *, proposal_id: int, preview_hash: str, by: audit.Actor, at: datetime, policy: Policy
) -> resolutions.Resolved | undo.Undoing:
    """Carry out a proposal of another member of staff, if its figures have not changed.

    If a figure has changed, the proposal becomes stale, and nothing is decided.
    Locks: Market, Proposal, Settlement.
    Raises: ProposalNotFound; ProposalDecided; ProposerCannotApprove; own_affairs.StakeInMarket;
    proposals.PreviewMoved; proposals.PersonNeeded.
    """
    if by.user_id is None:
        raise proposals.PersonNeeded("Only a member of staff can approve a proposal.")
    with transaction.atomic(durable=True):
        market, proposal = _locked(proposal_id)
        if proposal.proposed_by_id == by.user_id:
            raise ProposerCannotApprove("You proposed this. Another member of staff must approve it.")
        own_affairs.refuse_stakeholders(market, by)
        if preview_hash != proposal.preview_hash:
            raise proposals.PreviewMoved(
                "That is not the hash of the proposal. Nothing was decided. Open the proposal again."
            )
        if _hash_now(market, proposal, at, policy) == proposal.preview_hash:
            return _carry_out(market, proposal, by=by, at=at, policy=policy)
        _close(market, proposal, Proposal.State.STALE, words="The figures changed after it was proposed.", by=by, at=at)
    raise proposals.PreviewMoved(
        f"The figures have changed since proposal {proposal_id} was made, so the proposal is stale."
        " Nothing was decided. Make a new proposal."
    )


def reject(*, proposal_id: int, reason: str, may_approve: bool, by: audit.Actor, at: datetime) -> Proposal:
    """Reject a proposal, and open the market again if the proposal had closed it.

    The proposer may reject the proposal too; anyone else only with `may_approve`. The market stays closed if its end
    has passed.

    Locks: Market, Proposal, Settlement.
    Raises: ProposalNotFound; ProposalDecided; NotYourProposal; own_affairs.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market, proposal = _locked(proposal_id)
        if not may_approve and proposal.proposed_by_id != by.user_id:
            raise NotYourProposal("Another person proposed this. Your roles allow you to withdraw only your own.")
        own_affairs.refuse_stakeholders(market, by)
        _close(market, proposal, Proposal.State.REJECTED, words=reason, by=by, at=at)
    return proposal


def _locked(proposal_id: int) -> tuple[Market, Proposal]:
    market_ids = Proposal.objects.filter(pk=proposal_id).values_list("market_id", flat=True)
    market_id = market_ids.first()
    if market_id is None:
        raise ProposalNotFound(f"There is no proposal {proposal_id}.")
    market = locks.locked_market(market_id)
    proposal = Proposal.objects.select_for_update(no_key=True, of=("self",)).get(pk=proposal_id)
    if proposal.state != Proposal.State.OPEN:
        raise ProposalDecided(f"Proposal {proposal_id} is {proposal.state}.")
    return market, proposal


def _hash_now(market: Market, proposal: Proposal, at: datetime, policy: Policy) -> str:
    """Compute the hash of the proposed decision from today's figures. Empty if the decision is no longer possible."""
    if proposal.kind == Proposal.Kind.UNDO:
        settlement = status.deciding_settlement(market.pk)
        return "" if settlement is None else undo.hash_of(settlement)
    decision = proposals.decision_of(proposal)
    market.effective_close_at = proposal.effective_close_at
    decided = market.status not in (Market.Status.OPEN, Market.Status.CLOSED)
    if decided or set(decision.weights) - set(market.running_outcomes):
        return ""
    return preview.figures(market, decision, at=at, policy=policy).preview_hash


def _carry_out(
    market: Market, proposal: Proposal, *, by: audit.Actor, at: datetime, policy: Policy
) -> resolutions.Resolved | undo.Undoing:
    proposal.state, proposal.decided_by_id, proposal.decided_at = Proposal.State.APPROVED, by.user_id, at
    proposal.save(update_fields=["state", "decided_by", "decided_at"])
    if proposal.kind == Proposal.Kind.UNDO:
        settlement = status.deciding_settlement(market.pk, settled_only=True)
        if settlement is None:
            raise ProposalDecided(f"Market {market.pk} is {market.status}: there is nothing to undo.")
        return undo.begin(
            market,
            settlement,
            reason=proposal.reason,
            by=by,
            at=at,
            action="market.undo",
            proposed_by=proposal.proposed_by_id,
        )
    return resolutions.declare(
        market,
        proposals.decision_of(proposal),
        by=audit.Actor(user_id=proposal.proposed_by_id, source=by.source),
        approved_by=by,
        at=at,
        policy=policy,
    )


def _close(
    market: Market, proposal: Proposal, state: Proposal.State, *, words: str, by: audit.Actor, at: datetime
) -> None:
    """Close a proposal that is not carried out. Open the market that it closed, and resume the sending it stopped."""
    proposal.state, proposal.words = state, words[:300]
    proposal.decided_by_id, proposal.decided_at = by.user_id, at
    proposal.save(update_fields=["state", "words", "decided_by", "decided_at"])
    if proposal.closed_market and market.status == Market.Status.CLOSED and market.end_date > at:
        market.status = Market.Status.OPEN
        market.save(update_fields=["status"])
    if proposal.kind == Proposal.Kind.UNDO:
        market.settlements.filter(state=Settlement.State.SETTLED).update(stopped_at=None)
    audit.record(
        action="market.reject" if state == Proposal.State.REJECTED else "market.proposal_stale",
        by=by,
        subject=f"market:{market.pk}",
        before={"proposal": proposal.pk, "state": "OPEN"},
        after={"proposal": proposal.pk, "state": state, "status": market.status},
        at=at,
        reason=words,
    )
