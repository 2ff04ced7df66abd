"""Changes of terms that members have bet on: proposals that a second person approves.

While a proposal waits, betting is suspended. The approval opens the notice, in which betting stays suspended.
"""

import hashlib
import json
from dataclasses import asdict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction

from markets import locks, stakeholders, terms
from markets.models import Market
from users import audit, proposals
from users.models import Proposal
from users.refusal import Refusal

ACT = "market.change"


def change(
    *,
    market_id: int,
    draft: terms.Draft,
    seen_version: int,
    reason: str,
    by: audit.Actor,
    at: datetime,
    notice: timedelta,
) -> terms.Changed | proposals.Proposed:
    """Change the terms of an open market, or propose the change if members have bet. See `terms.change`.

    Locks: Market, then the end of the audit trail.
    Raises: as `terms.change`; users.proposals.ProposalWaits; users.proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        draft = terms.tidy(draft)
        has_bets = terms.bets_exist(market)
        if not has_bets or draft == terms.of(market):
            return terms.apply(
                market,
                draft,
                seen_version=seen_version,
                reason=reason,
                by=by,
                approved_by=None,
                at=at,
                notice=notice,
            )
        stakeholders.refuse_stakeholders(market, by)
        terms.check_change(market, draft, seen_version=seen_version, has_bets=True, at=at, notice=notice)
        suspends = market.betting_suspended_at is None
        if suspends:
            market.betting_suspended_at = at
            market.save(update_fields=["betting_suspended_at"])
        payload = {**_written(draft), "terms_version": seen_version, "suspended_betting": suspends}
        proposed = proposals.Draft(
            act=ACT,
            subject=f"market:{market.pk}",
            hash=_hash(market, draft),
            reason=reason,
            payload=payload,
        )
        return proposals.make(proposed, by=by, at=at)


def acts(notice: timedelta) -> dict[str, proposals.Procedure]:
    """Return the procedure of a change of terms, for `users.proposals`. `notice` is the time for taking stakes back."""

    def hash_now(market: Market, proposal: Proposal, at: datetime) -> str:
        draft, version = _draft(proposal), proposal.payload["terms_version"]
        try:
            terms.check_change(market, draft, seen_version=version, has_bets=True, at=at, notice=notice)
        except Refusal:
            return ""
        return _hash(market, draft)

    def carry_out(market: Market, proposal: Proposal, by: audit.Actor, at: datetime) -> terms.Changed:
        _let_go(market, proposal, at)
        return terms.apply(
            market,
            _draft(proposal),
            seen_version=proposal.payload["terms_version"],
            reason=proposal.reason,
            by=audit.Actor(user_id=proposal.proposed_by_id, source=by.source),
            approved_by=by,
            at=at,
            notice=notice,
        )

    return {
        ACT: proposals.Procedure(
            lock=lambda proposal: locks.locked_market(proposal.subject_id),
            hash_now=hash_now,
            carry_out=carry_out,
            words=lambda proposal: words(proposal, notice),
            let_go=_let_go,
            refuse_own=stakeholders.refuse_stakeholders,
        )
    }


def words(proposal: Proposal, notice: timedelta) -> list[str]:
    """Return the effects of a proposed change in sentences: each difference, and the notice."""
    version = proposal.payload["terms_version"]
    market = Market.objects.get(pk=proposal.subject_id)
    before = terms.of(market)
    if market.terms_version != version:
        before = next((terms.draft_of(row) for row in market.terms.filter(version=version)), before)
    hours = int(notice.total_seconds() // 3600)
    changes = [
        f"{each.label}: {each.before or 'none'} → {each.after or 'none'}"
        for each in terms.differences(before, _draft(proposal))
    ]
    return [
        *changes,
        f"Betting stays suspended for {hours} hours. Members are told, and may take back the stakes made before.",
    ]


def suspends_betting(market: Market) -> bool:
    """Return True if betting is suspended only by a proposed change of terms, and by no person."""
    waiting = proposals.open_about(f"market:{market.pk}").filter(act=ACT)
    return any(_is_its_suspension(market, proposal) for proposal in waiting)


def _is_its_suspension(market: Market, proposal: Proposal) -> bool:
    """Return True if the present suspension of betting began with the proposal. A person's own has a later time."""
    began = proposal.proposed_at if proposal.payload["suspended_betting"] else None
    return began is not None and market.betting_suspended_at == began


def _let_go(market: Market, proposal: Proposal, at: datetime) -> None:
    """End the suspension of betting that the proposal itself has begun. A person's own suspension stays."""
    if _is_its_suspension(market, proposal):
        market.betting_suspended_at = None
        market.save(update_fields=["betting_suspended_at"])


def _hash(market: Market, draft: terms.Draft) -> str:
    """Hash the version that is in force and the draft. Pools are left out, so bets do not matter."""
    fields = {"market": market.pk, "terms_version": market.terms_version, **_written(draft)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _written(draft: terms.Draft) -> dict[str, Any]:
    written = asdict(draft)
    return {
        **written,
        "outcomes": list(draft.outcomes),
        "platform_fee_pct": f"{draft.platform_fee_pct:.2f}",
        "end_date": draft.end_date.isoformat(),
    }


def _draft(proposal: Proposal) -> terms.Draft:
    payload = proposal.payload
    return terms.Draft(
        question=payload["question"],
        outcomes=tuple(payload["outcomes"]),
        platform_fee_pct=Decimal(payload["platform_fee_pct"]),
        end_date=datetime.fromisoformat(payload["end_date"]),
        description=payload["description"],
        source=payload["source"],
    )
