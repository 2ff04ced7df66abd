"""Procedures of the acts on markets: how a second person's approval carries each of them out.

`users.proposals` calls them. Lock order: Market, Proposal, Settlement, then the end of the audit trail.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from markets import locks, terms
from markets.models import Market
from payments import own_affairs
from payments.models import Settlement
from payments.policy import Policy
from payments.settlement import preview, proposals, resolutions, status, undo
from payments.settlement.decision import VOID_REASONS
from users import audit
from users.models import Proposal
from users.proposals import Procedure, ProposalDecided


def procedures(policy: Policy) -> Mapping[str, Procedure]:
    """Return the procedures of resolve, void, undo and scratch, by the name of the act."""
    market_acts = _MarketActs(policy)
    decision = Procedure(
        lock=_locked_market,
        hash_now=market_acts.hash_of_decision,
        carry_out=market_acts.declare,
        words=decision_in_words,
        let_go=_open_again,
        refuse_own=own_affairs.refuse_stakeholders,
    )
    return {
        proposals.RESOLVE: decision,
        proposals.VOID: decision,
        proposals.UNDO: Procedure(
            lock=_locked_market,
            hash_now=_hash_of_undo,
            carry_out=_undo,
            words=lambda proposal: [
                f"Undo the settlement of market {proposal.subject_id}. Reason: {proposal.reason}",
                "Payouts that are not sent are cancelled. Money that M-Pesa has paid becomes the members' debt.",
            ],
            let_go=_resume_sending,
            refuse_own=own_affairs.refuse_stakeholders,
        ),
        proposals.SCRATCH: Procedure(
            lock=_locked_market,
            hash_now=_hash_of_scratch,
            carry_out=market_acts.scratch,
            words=lambda proposal: [
                f"Take {proposal.payload['outcome']} out of market {proposal.subject_id}, and refund its stakes."
                f" Reason: {proposal.reason}"
            ],
            refuse_own=own_affairs.refuse_stakeholders,
        ),
    }


def decision_in_words(proposal: Proposal) -> list[str]:
    """Return a proposal to resolve or void a market in sentences."""
    payload = proposal.payload
    if payload["rule"] == "VOID":
        because = VOID_REASONS.get(proposal.reason, proposal.reason)
        sentence = f"Void market {proposal.subject_id}, because {because}. All stakes are refunded."
    else:
        shares = ", ".join(f"{outcome} {weight} %" for outcome, weight in payload["weights"].items())
        sentence = f"Resolve market {proposal.subject_id}: {shares}."
    evidence = " ".join(filter(None, (payload["evidence_note"], payload["evidence_url"])))
    return [sentence, *([f"Evidence: {evidence}"] if evidence else [])]


@dataclass(frozen=True)
class _MarketActs:
    policy: Policy

    def hash_of_decision(self, market: Market, proposal: Proposal, at: datetime) -> str:
        """Compute the hash of the proposed decision from today's figures. Empty if it is no longer possible."""
        decision = proposals.decision_of(proposal)
        market.effective_close_at = decision.effective_close_at
        decided = market.status not in (Market.Status.OPEN, Market.Status.CLOSED)
        if decided or set(decision.weights) - set(market.running_outcomes):
            return ""
        if decision.rule != "VOID" and terms.notice_runs(market, at=at):
            return ""
        return preview.figures(market, decision, at=at, policy=self.policy).preview_hash

    def declare(self, market: Market, proposal: Proposal, by: audit.Actor, at: datetime) -> resolutions.Resolved:
        return resolutions.declare(
            market,
            proposals.decision_of(proposal),
            by=audit.Actor(user_id=proposal.proposed_by_id or proposal.first_approved_by_id, source=by.source),
            approved_by=by,
            at=at,
            policy=self.policy,
        )

    def scratch(self, market: Market, proposal: Proposal, by: audit.Actor, at: datetime) -> resolutions.Resolved:
        return resolutions.take_out(
            market,
            proposal.payload["outcome"],
            reason=proposal.reason,
            by=by,
            at=at,
            policy=self.policy,
            proposed_by=proposal.proposed_by_id,
        )


def _locked_market(proposal: Proposal) -> Market:
    return locks.locked_market(proposal.subject_id)


def _open_again(market: Market, proposal: Proposal, at: datetime) -> None:
    """Open the market that the proposal had closed, unless its end has passed."""
    if proposal.payload["closed_market"] and market.status == Market.Status.CLOSED and market.end_date > at:
        market.status = Market.Status.OPEN
        market.save(update_fields=["status"])


def _hash_of_undo(market: Market, proposal: Proposal, at: datetime) -> str:
    settlement = status.deciding_settlement(market.pk)
    return "" if settlement is None else undo.hash_of(settlement)


def _undo(market: Market, proposal: Proposal, by: audit.Actor, at: datetime) -> undo.Undoing:
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
        proposed_by=proposal.proposed_by_id or proposal.first_approved_by_id,
    )


def _resume_sending(market: Market, proposal: Proposal, at: datetime) -> None:
    market.settlements.filter(state=Settlement.State.SETTLED).update(stopped_at=None)


def _hash_of_scratch(market: Market, proposal: Proposal, at: datetime) -> str:
    outcome = proposal.payload["outcome"]
    return resolutions.hash_of_scratch(market, outcome) if resolutions.may_take_out(market, outcome, at) else ""
