"""Resolutions: declare a market's outcome or void it, withdraw a resolution, scratch an outcome.

`settling` divides the pool after a decision; `undo` takes a settlement back.
Lock order: Market, Proposal, Settlement, then the end of the audit trail.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction
from django.db.models import Max

from markets import locks, pools, queries, terms
from markets.models import Market
from payments import own_affairs
from payments.models import Settlement
from payments.policy import Policy
from payments.settlement import preview, proposals, status, undo
from payments.settlement.decision import Decision
from users import audit, second_person
from users.proposals import Draft, PreviewMoved, Proposed, lapse, make, refuse_while_one_waits
from users.refusal import Refusal

log = logging.getLogger(__name__)


class MarketAlreadyResolved(Refusal):
    """The market's outcome has already been declared. It can change only after a withdrawal or an undo."""


class NothingToWithdraw(Refusal):
    """The market has no resolution that could be withdrawn."""


class BeingSettled(Refusal):
    """The pool is being divided now. Try again in a moment."""


class AlreadyReleased(Refusal):
    """The payouts may have left. An undo takes back unsent payouts, and makes paid amounts member debts."""


class TooFewOutcomes(Refusal):
    """A market needs at least two outcomes to go on."""


@dataclass(frozen=True)
class Resolved:
    """A declared decision, before its settlement. `outcome` is None for several winners and for a void."""

    market_id: int
    settlement_id: int
    public_id: str
    rule: str = "WINNER"
    outcome: str | None = None


@dataclass(frozen=True)
class Withdrawn:
    """A withdrawn resolution, or a withdrawn scratch of the outcome `scratched`.

    `undoing` is true if its pool was already divided, so that an undo must run.
    """

    market_id: int
    settlement_id: int
    undoing: bool
    scratched: str = ""


def resolve(
    *,
    market_id: int,
    decision: Decision,
    by: audit.Actor,
    at: datetime,
    policy: Policy,
    preview_hash: str | None = None,
) -> Resolved | Proposed:
    """Declare a market's outcome, or propose it if the pool needs a second person (users/second_person.py).

    An OPEN market is closed. `settling.settle` then divides the pool. With `preview_hash`, the decision is taken only
    if the figures are the same as in that preview.
    Locks: Market, then the actor's acts of this kind.
    Raises: locks.MarketNotFound; MarketAlreadyResolved; decision.UnknownReason; decision.BadCloseTime;
    terms.NoticeRunning; parimutuel.UnknownOutcome; parimutuel.BadWeights; own_affairs.StakeInMarket;
    users.proposals.ProposalWaits; users.proposals.PreviewMoved; users.proposals.PersonNeeded.
    """
    decision.check(at=at)
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        if market.status not in (Market.Status.OPEN, Market.Status.CLOSED):
            raise MarketAlreadyResolved(f"Market {market_id} is {market.status}: its outcome has been declared.")
        if decision.rule != "VOID":
            terms.refuse_during_notice(market, at=at)
        decision.check_weights(market)
        own_affairs.refuse_stakeholders(market, by)
        refuse_while_one_waits(proposals.subject(market_id))
        act_name, otherwise = proposals.act_of(decision), policy.approval_above
        limit = second_person.limit(act_name, at=at, otherwise=otherwise)
        if limit is not None or preview_hash is not None or by.key_id is not None:
            figures = preview.figures(market, decision, at=at, policy=policy)
            if preview_hash not in (None, figures.preview_hash):
                raise PreviewMoved(
                    "The numbers have moved since that preview. Nothing was decided. Check the new figures first."
                )
            pool = Decimal(figures.division.pool + figures.division.late_refund) / 100
            if second_person.needed(act_name, amount=pool, by=by, at=at, otherwise=otherwise):
                return proposals.propose_decision(
                    market, decision, preview_hash=figures.preview_hash, pool=pool, by=by, at=at
                )
        return declare(market, decision, by=by, approved_by=None, at=at, policy=policy)


def declare(
    market: Market,
    decision: Decision,
    *,
    by: audit.Actor,
    approved_by: audit.Actor | None,
    at: datetime,
    policy: Policy,
) -> Resolved:
    """Record a decision and open its settlement. `approved_by` is the second person, if the pool needed one.

    Runs in the caller's transaction, which has locked and checked the market. Call it last: its audit entry locks the
    end of the audit trail, which comes last in the lock order.
    """
    if market.settlements.filter(state=Settlement.State.UNDOING).exists():
        raise BeingSettled(
            f"A scratch of market {market.pk} is being taken back. Nothing was decided. Try again in a moment."
        )
    was = market.status
    lapse(proposals.subject(market.pk), words="People decided the market otherwise.", by=approved_by or by, at=at)
    market.effective_close_at = decision.closes_at(market)
    settlement = Settlement.objects.create(
        market=market,
        number=_next_number(market),
        rule=decision.rule,
        weights=decision.weights_as_text(),
        reason=decision.reason,
        effective_close_at=market.effective_close_at,
        evidence_url=decision.evidence.url,
        evidence_note=decision.evidence.note,
        resolved_by_id=by.user_id,
        approved_by_id=approved_by.user_id if approved_by else None,
        resolved_at=at,
        fee_pct=queries.fee_pct_at(market, market.effective_close_at),
        protect_stake=policy.protect_stake,
    )
    if market.status == Market.Status.OPEN:
        market.status = Market.Status.CLOSED
        market.save(update_fields=["status"])
    market.status = Market.Status.RESOLVED
    market.resolved_at = at
    market.resolved_outcome = next(iter(decision.weights)) if decision.rule == "WINNER" else None
    market.save(update_fields=["status", "resolved_at", "resolved_outcome", "effective_close_at"])
    audit.record(
        action="market.void" if decision.rule == "VOID" else "market.resolve",
        by=approved_by or by,
        subject=f"market:{market.pk}",
        before={"status": was},
        after={
            "status": market.status,
            "settlement": settlement.number,
            "rule": decision.rule,
            "weights": settlement.weights,
            "proposed_by": by.user_id if approved_by else None,
            "evidence": [decision.evidence.url, decision.evidence.note],
            "effective_close_at": market.effective_close_at,
        },
        at=at,
        reason=decision.reason,
    )
    log.info("Resolved market %s: settlement %s, rule %s", market.pk, settlement.number, decision.rule)
    return Resolved(market.pk, settlement.pk, str(settlement.public_id), decision.rule, market.resolved_outcome)


def withdraw(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Withdrawn:
    """Withdraw a resolution before its pool is divided, or while its payouts are held. The market is CLOSED again.

    A division that has found its books wrong can be withdrawn too. None of its payouts could leave. So can a scratch
    whose refunds found the books wrong, if the market has no resolution. Its outcome may then win again.
    One person may withdraw a resolution of any pool, because no money leaves.
    Locks: Market, Settlement.
    Raises: locks.MarketNotFound; NothingToWithdraw; BeingSettled; AlreadyReleased; own_affairs.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        settlement = status.deciding_settlement(market.pk)
        if settlement is None and (failed := status.failed_scratch(market.pk)) is not None:
            return _withdraw_scratch(market, failed, reason=reason, by=by, at=at)
        if settlement is None or settlement.state == Settlement.State.UNDOING:
            raise NothingToWithdraw(f"Market {market_id} is {market.status}: it has no resolution to withdraw.")
        own_affairs.refuse_stakeholders(market, by)
        if settlement.state == Settlement.State.DIVIDING and settlement.failure:
            undo.begin(market, settlement, reason=reason, by=by, at=at, action="market.withdraw")
            return Withdrawn(market.pk, settlement.pk, undoing=True)
        if settlement.state == Settlement.State.DIVIDING:
            raise BeingSettled(f"Market {market_id} is being settled. Nothing was withdrawn. Try again in a moment.")
        if settlement.state == Settlement.State.SETTLED:
            if settlement.rule == Settlement.Rule.VOID:
                raise AlreadyReleased(f"Market {market_id} is void: its stakes are back in the members' wallets.")
            if settlement.release_at is None or settlement.release_at <= at:
                raise AlreadyReleased(f"The payouts of market {market_id} are released. Undo the settlement instead.")
            undo.begin(market, settlement, reason=reason, by=by, at=at, action="market.withdraw")
            return Withdrawn(market.pk, settlement.pk, undoing=True)
        _mark_withdrawn(settlement, reason=reason, by=by, at=at)
        undo.close_again(market)
        audit.record(
            action="market.withdraw",
            by=by,
            subject=f"market:{market.pk}",
            before={"status": Market.Status.RESOLVED, "settlement": settlement.number},
            after={"status": market.status},
            at=at,
            reason=reason,
        )
    return Withdrawn(market.pk, settlement.pk, undoing=False)


def _withdraw_scratch(market: Market, scratch: Settlement, *, reason: str, by: audit.Actor, at: datetime) -> Withdrawn:
    """Take back a scratch whose refunds found the books wrong. Its outcome takes bets again if the market is open."""
    own_affairs.refuse_stakeholders(market, by)
    undoing = scratch.state == Settlement.State.DIVIDING
    if undoing:
        undo.begin(market, scratch, reason=reason, by=by, at=at, action="market.withdraw_scratch")
    else:
        _mark_withdrawn(scratch, reason=reason, by=by, at=at)
        undo.put_back(scratch)
        audit.record(
            action="market.withdraw_scratch",
            by=by,
            subject=f"market:{market.pk}",
            before={"settlement": scratch.number, "scratched": scratch.scratched},
            after={"outcomes": list(market.running_outcomes)},
            at=at,
            reason=reason,
        )
    return Withdrawn(market.pk, scratch.pk, undoing=undoing, scratched=scratch.scratched)


def _mark_withdrawn(settlement: Settlement, *, reason: str, by: audit.Actor, at: datetime) -> None:
    settlement.state = Settlement.State.WITHDRAWN
    settlement.undone_by_id, settlement.undone_at, settlement.undone_reason = by.user_id, at, reason
    settlement.save(update_fields=["state", "undone_by", "undone_at", "undone_reason"])


def scratch(
    *, market_id: int, outcome: str, reason: str, by: audit.Actor, at: datetime, policy: Policy
) -> Resolved | Proposed:
    """Take one outcome out of an open market and give its stakes back, or propose it if it needs a second person.

    The market stays open with the other outcomes. The amount of the act is the whole pool: the scratched outcome cannot
    win any more, so the act decides about the stakes on the others too.
    Locks: Market, then the actor's acts of this kind.
    Raises: locks.MarketNotFound; locks.MarketNotOpen; locks.OutcomeNotInMarket; TooFewOutcomes;
    own_affairs.StakeInMarket; users.proposals.ProposalWaits; users.proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        _check_scratch(market, outcome, at)
        own_affairs.refuse_stakeholders(market, by)
        refuse_while_one_waits(proposals.subject(market_id))
        pool = _running_pool(market)
        act_name, otherwise = proposals.SCRATCH, policy.approval_above
        if second_person.needed(act_name, amount=pool, by=by, at=at, otherwise=otherwise):
            payload = {"outcome": outcome}
            preview_hash = hash_of_scratch(market, outcome)
            draft = Draft(act_name, proposals.subject(market_id), preview_hash, reason, pool, payload)
            return make(draft, by=by, at=at)
        return take_out(market, outcome, reason=reason, by=by, at=at, policy=policy)


def take_out(
    market: Market,
    outcome: str,
    *,
    reason: str,
    by: audit.Actor,
    at: datetime,
    policy: Policy,
    proposed_by: int | None = None,
) -> Resolved:
    """Do the work of `scratch` in the caller's transaction, which has locked and checked the market.

    `proposed_by` is the id of the first person, if `by` approved a proposal.
    """
    running = market.running_outcomes
    market.outcomes.filter(name=outcome).update(scratched_at=at)
    settlement = Settlement.objects.create(
        market=market,
        number=_next_number(market),
        rule=Settlement.Rule.SCRATCH,
        scratched=outcome,
        evidence_note=reason,
        resolved_by_id=proposed_by or by.user_id,
        approved_by_id=by.user_id if proposed_by is not None else None,
        resolved_at=at,
        fee_pct=market.platform_fee_pct,
        protect_stake=policy.protect_stake,
    )
    audit.record(
        action="market.scratch",
        by=by,
        subject=f"market:{market.pk}",
        before={"outcomes": list(running)},
        after={"outcomes": [name for name in running if name != outcome], "settlement": settlement.number}
        | ({"proposed_by": proposed_by} if proposed_by is not None else {}),
        at=at,
        reason=reason,
    )
    log.info("Scratched outcome %s of market %s", outcome, market.pk)
    return Resolved(market.pk, settlement.pk, str(settlement.public_id), settlement.rule, outcome)


def hash_of_scratch(market: Market, outcome: str) -> str:
    """Hash the outcomes that a scratch leaves. Stakes are no part: bets on the other outcomes go on."""
    return proposals.hash_of(market=market.pk, scratch=outcome, running=list(market.running_outcomes))


def may_take_out(market: Market, outcome: str, at: datetime) -> bool:
    """Return True if the outcome may be scratched now."""
    try:
        _check_scratch(market, outcome, at)
    except Refusal:
        return False
    return True


def _running_pool(market: Market) -> Decimal:
    """Return the stakes on all outcomes that can win now, in shillings."""
    staked = pools.pools([market.pk]).get(market.pk, {})
    return sum((staked[name][0] for name in market.running_outcomes if name in staked), Decimal("0.00"))


def _check_scratch(market: Market, outcome: str, at: datetime) -> None:
    if market.status != Market.Status.OPEN or market.end_date <= at:
        raise locks.MarketNotOpen(f"Market {market.pk} takes no more bets: void it or resolve it.")
    running = market.running_outcomes
    if outcome not in running:
        raise locks.OutcomeNotInMarket(f"outcome must be one of {', '.join(running)}.")
    if len(running) <= 2:
        raise TooFewOutcomes(f"Market {market.pk} has only two outcomes left. Void it instead.")


def _next_number(market: Market) -> int:
    return (market.settlements.aggregate(last=Max("number"))["last"] or 0) + 1
