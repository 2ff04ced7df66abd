"""Decisions that take two people: what the first one proposes waits, unchanged, for the second one's approval.

approvals.py carries an approved one out; resolutions.py and undo.py make a proposal where the pool demands it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from markets.models import Market
from payments.models import Proposal
from users import audit
from users.refusal import Refusal


class ProposalWaits(Refusal):
    """A decision on the market is proposed, and waits for its approval."""


class PersonNeeded(Refusal):
    """A proposal is made by a member of staff; a second one approves it."""


class PreviewMoved(Refusal):
    """The numbers are not those that were seen: nothing was decided."""


@dataclass(frozen=True)
class Proposed:
    """A decision that waits for a second person, who approves it by the same hash."""

    proposal_id: int
    market_id: int
    kind: str
    preview_hash: str


def refuse_while_one_waits(market: Market) -> None:
    """Raises: ProposalWaits."""
    waiting = market.proposals.filter(state=Proposal.State.OPEN).first()
    if waiting is not None:
        raise ProposalWaits(f"Proposal {waiting.pk} on market {market.pk} waits: approve or reject it first.")


def make(
    market: Market,
    *,
    kind: Proposal.Kind,
    preview_hash: str,
    pool: Decimal,
    by: audit.Actor,
    at: datetime,
    rule: str = "",
    weights: Mapping[str, Decimal] | None = None,
    reason: str = "",
    evidence_url: str = "",
    evidence_note: str = "",
    effective_close_at: datetime | None = None,
) -> Proposed:
    """Write a proposal down, in the caller's transaction, which has the market locked. An OPEN market is closed by it.

    So the numbers stand until it is decided.
    Raises: PersonNeeded.
    """
    if by.user_id is None:
        raise PersonNeeded("With a pool of this size it takes two members of staff: propose it as one of them.")
    was = market.status
    proposal = Proposal.objects.create(
        market=market,
        kind=kind,
        rule=rule,
        weights={outcome: str(weight) for outcome, weight in (weights or {}).items()},
        reason=reason,
        evidence_url=evidence_url,
        evidence_note=evidence_note,
        effective_close_at=effective_close_at,
        preview_hash=preview_hash,
        pool=pool,
        closed_market=was == Market.Status.OPEN,
        proposed_by_id=by.user_id,
        proposed_at=at,
    )
    if proposal.closed_market:
        market.status = Market.Status.CLOSED
        market.save(update_fields=["status"])
    audit.record(
        action="market.propose",
        by=by,
        subject=f"market:{market.pk}",
        before={"status": was},
        after={"status": market.status, "proposal": proposal.pk, "kind": kind, "rule": rule, "preview": preview_hash},
        at=at,
        reason=reason,
    )
    return Proposed(proposal.pk, market.pk, kind, preview_hash)
