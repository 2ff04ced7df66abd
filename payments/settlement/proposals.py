"""Proposals: decisions on large pools that wait for a second person.

`resolutions` and `undo` make a proposal if the pool is above the policy's limit. `approvals` carries out an approved
proposal.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import cast

from markets import parimutuel
from markets.models import Market
from payments.models import Proposal
from payments.settlement.decision import Decision, Evidence
from users import audit
from users.refusal import Refusal


class ProposalWaits(Refusal):
    """A proposal on the market already waits for approval."""


class PersonNeeded(Refusal):
    """Only a member of staff may make or approve a proposal."""


class PreviewMoved(Refusal):
    """The figures differ from those of the preview that the person saw. Nothing was decided."""


@dataclass(frozen=True)
class Proposed:
    """A proposal that waits for a second person. The approval must carry the same `preview_hash`."""

    proposal_id: int
    market_id: int
    kind: str
    preview_hash: str


def refuse_while_one_waits(market: Market) -> None:
    """Refuse a new decision while a proposal on the market is open.

    Raises: ProposalWaits.
    """
    waiting = market.proposals.filter(state=Proposal.State.OPEN).first()
    if waiting is not None:
        raise ProposalWaits(f"Proposal {waiting.pk} on market {market.pk} waits. Approve or reject it first.")


def make(
    market: Market,
    *,
    decision: Decision | None,
    reason: str,
    preview_hash: str,
    pool: Decimal,
    by: audit.Actor,
    at: datetime,
) -> Proposed:
    """Record a proposal to take `decision`, or to undo the settlement if `decision` is None.

    Runs in the caller's transaction, which has locked the market. An OPEN market is closed, so that no further bet
    changes the figures before the second person decides.
    Raises: PersonNeeded.
    """
    if by.user_id is None:
        raise PersonNeeded(
            "A pool of this size needs two members of staff. Log in as one of them and make the proposal."
        )
    was = market.status
    proposal = Proposal(
        market=market,
        kind=Proposal.Kind.UNDO,
        reason=reason,
        preview_hash=preview_hash,
        pool=pool,
        closed_market=was == Market.Status.OPEN,
        proposed_by_id=by.user_id,
        proposed_at=at,
    )
    if decision is not None:
        proposal.kind = Proposal.Kind.RESOLVE
        proposal.rule, proposal.weights = decision.rule, decision.weights_as_text()
        proposal.evidence_url, proposal.evidence_note = decision.evidence.url, decision.evidence.note
        proposal.effective_close_at = decision.closes_at(market)
    proposal.save(force_insert=True)
    if proposal.closed_market:
        market.status = Market.Status.CLOSED
        market.save(update_fields=["status"])
    audit.record(
        action="market.propose",
        by=by,
        subject=f"market:{market.pk}",
        before={"status": was},
        after={
            "status": market.status,
            "proposal": proposal.pk,
            "kind": proposal.kind,
            "rule": proposal.rule,
            "preview": preview_hash,
        },
        at=at,
        reason=reason,
    )
    return Proposed(proposal.pk, market.pk, proposal.kind, preview_hash)


def decision_of(proposal: Proposal) -> Decision:
    """Return the decision that a proposal to resolve or void a market would take."""
    return Decision(
        rule=cast(parimutuel.Rule, proposal.rule),
        weights={outcome: Decimal(weight) for outcome, weight in proposal.weights.items()},
        reason=proposal.reason,
        evidence=Evidence(url=proposal.evidence_url, note=proposal.evidence_note),
        effective_close_at=proposal.effective_close_at,
    )
