"""The second person's word on a proposal: approve it, and it is carried out; reject it, and all is as before.

Lock order: Market, Proposal, Settlement, then the end of the audit trail.
"""

from datetime import datetime
from decimal import Decimal
from typing import cast

from django.db import transaction

from markets import locks, parimutuel
from markets.models import Market
from payments import own_affairs
from payments.models import Proposal, Settlement
from payments.policy import Policy
from payments.settlement import preview, proposals, resolutions, undo
from users import audit
from users.refusal import Refusal


class ProposalNotFound(Refusal):
    """There is no proposal with that id."""


class ProposalDecided(Refusal):
    """The proposal was approved or rejected, or is stale."""


class ProposerCannotApprove(Refusal):
    """It takes a second member of staff."""


def approve(
    *, proposal_id: int, preview_hash: str, by: audit.Actor, at: datetime, policy: Policy
) -> resolutions.Resolved | undo.Undoing:
    """Carry out what another member of staff has proposed, if the figures are still those that both have seen.

    Where they are not, the proposal is stale, and nothing is decided.
    Locks: Market, Proposal, Settlement.
    Raises: ProposalNotFound; ProposalDecided; ProposerCannotApprove; proposals.StakeInMarket; proposals.PreviewMoved;
    proposals.PersonNeeded.
    """
    if by.user_id is None:
        raise proposals.PersonNeeded("A proposal is approved by a member of staff.")
    with transaction.atomic(durable=True):
        market, proposal = _locked(proposal_id)
        if proposal.proposed_by_id == by.user_id:
            raise ProposerCannotApprove("You proposed it: another member of staff must approve it.")
        own_affairs.refuse_stakeholders(market, by)
        if preview_hash != proposal.preview_hash:
            raise proposals.PreviewMoved("That is not the hash of what was proposed: look again.")
        if _hash_now(market, proposal, at, policy) == proposal.preview_hash:
            return _carry_out(market, proposal, by=by, at=at, policy=policy)
        _close(market, proposal, Proposal.State.STALE, words="The numbers moved after it was made.", by=by, at=at)
    raise proposals.PreviewMoved(f"The numbers have moved since proposal {proposal_id} was made: it is stale.")


def reject(*, proposal_id: int, reason: str, by: audit.Actor, at: datetime) -> Proposal:
    """Decide against a proposal; who made it may take it back so. A market that it had closed is open again.

    Locks: Market, Proposal, Settlement.
    Raises: ProposalNotFound; ProposalDecided; proposals.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market, proposal = _locked(proposal_id)
        own_affairs.refuse_stakeholders(market, by)
        _close(market, proposal, Proposal.State.REJECTED, words=reason, by=by, at=at)
    return proposal


def _locked(proposal_id: int) -> tuple[Market, Proposal]:
    found = Proposal.objects.filter(pk=proposal_id).first()
    if found is None:
        raise ProposalNotFound(f"There is no proposal {proposal_id}.")
    market = locks.locked_market(found.market_id)
    proposal = Proposal.objects.select_for_update(no_key=True, of=("self",)).get(pk=proposal_id)
    if proposal.state != Proposal.State.OPEN:
        raise ProposalDecided(f"Proposal {proposal_id} is {proposal.state}.")
    return market, proposal


def _hash_now(market: Market, proposal: Proposal, at: datetime, policy: Policy) -> str:
    if proposal.kind == Proposal.Kind.UNDO:
        run = undo.deciding_run(market)
        return "" if run is None else undo.hash_of(run)
    weights = {outcome: Decimal(weight) for outcome, weight in proposal.weights.items()}
    market.effective_close_at = proposal.effective_close_at
    if market.status not in (Market.Status.OPEN, Market.Status.CLOSED) or set(weights) - set(market.running_outcomes):
        return ""
    rule = cast(parimutuel.Rule, proposal.rule)
    return preview.figures(market, rule=rule, weights=weights, at=at, policy=policy).preview_hash


def _carry_out(
    market: Market, proposal: Proposal, *, by: audit.Actor, at: datetime, policy: Policy
) -> resolutions.Resolved | undo.Undoing:
    proposal.state, proposal.decided_by_id, proposal.decided_at = Proposal.State.APPROVED, by.user_id, at
    proposal.save(update_fields=["state", "decided_by", "decided_at"])
    if proposal.kind == Proposal.Kind.UNDO:
        run = undo.deciding_run(market)
        if run is None or run.state != Settlement.State.SETTLED:
            raise ProposalDecided(f"Market {market.pk} is {market.status}: there is nothing to undo.")
        return undo.begin(market, run, reason=proposal.reason, by=by, at=at, action="market.undo")
    return resolutions.declare(
        market,
        rule=cast(parimutuel.Rule, proposal.rule),
        weights={outcome: Decimal(weight) for outcome, weight in proposal.weights.items()},
        reason=proposal.reason,
        grounds=resolutions.Grounds(url=proposal.evidence_url, note=proposal.evidence_note),
        by=audit.Actor(user_id=proposal.proposed_by_id, source=by.source),
        approved_by=by,
        at=at,
        policy=policy,
    )


def _close(
    market: Market, proposal: Proposal, state: Proposal.State, *, words: str, by: audit.Actor, at: datetime
) -> None:
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
