"""Proposals about markets: the drafts that `resolutions` and `undo` store if an act takes a second person.

`approvals` carries an approved proposal out.
"""

import hashlib
import json
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from django.utils.dateparse import parse_datetime

from markets import parimutuel
from markets.models import Market
from payments.settlement.decision import Decision, Evidence
from users import audit, proposals
from users.models import Proposal

RESOLVE, VOID, UNDO, SCRATCH = "market.resolve", "market.void", "market.undo", "market.scratch"


def subject(market_id: int) -> str:
    """Return the subject of the proposals about a market."""
    return f"market:{market_id}"


def act_of(decision: Decision) -> str:
    """Return the name of the act that a decision about a market is."""
    return VOID if decision.rule == "VOID" else RESOLVE


def propose_decision(
    market: Market, decision: Decision, *, preview_hash: str, pool: Decimal, by: audit.Actor, at: datetime
) -> proposals.Proposed:
    """Store a proposal to resolve or void a market, and close the market.

    Without bets the figures stay as they are until the second person decides.
    Runs in the caller's transaction, which has locked the market.
    Raises: users.proposals.PersonNeeded; ProposalWaits.
    """
    closes_at = decision.closes_at(market)
    payload = {
        "rule": decision.rule,
        "weights": decision.weights_as_text(),
        "evidence_url": decision.evidence.url,
        "evidence_note": decision.evidence.note,
        "effective_close_at": closes_at.isoformat() if closes_at else None,
        "closed_market": market.status == Market.Status.OPEN and by.user_id is not None,
    }
    if payload["closed_market"]:
        market.status = Market.Status.CLOSED
        market.save(update_fields=["status"])
    draft = proposals.Draft(act_of(decision), subject(market.pk), preview_hash, decision.reason, pool, payload)
    return proposals.make(draft, by=by, at=at)


def decision_of(proposal: Proposal) -> Decision:
    """Return the decision that a proposal to resolve or void a market would take."""
    payload = proposal.payload
    return Decision(
        rule=cast(parimutuel.Rule, payload["rule"]),
        weights={outcome: Decimal(weight) for outcome, weight in payload["weights"].items()},
        reason=proposal.reason,
        evidence=Evidence(url=payload["evidence_url"], note=payload["evidence_note"]),
        effective_close_at=closes_at(proposal),
    )


def closes_at(proposal: Proposal) -> datetime | None:
    """Return the moment after which bets are late under the proposed decision, if the proposal has one."""
    written = proposal.payload.get("effective_close_at")
    return parse_datetime(written) if written else None


def hash_of(**fields: Any) -> str:
    """Hash the fields that an approval holds for."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
