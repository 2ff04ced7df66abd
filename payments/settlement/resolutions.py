"""Declaring a market's outcome, or that it is void; taking a declaration back; scratching one outcome.

What follows a declaration, dividing the pool, is settlement.py's; taking back what was divided is undo.py's.
Lock order: Market, Proposal, Settlement, then the end of the audit trail.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction
from django.db.models import Max

from markets import locks, parimutuel
from markets.models import Market
from payments import own_affairs
from payments.models import Proposal, Settlement
from payments.policy import Policy
from payments.settlement import preview, proposals, undo
from users import audit
from users.refusal import Refusal

log = logging.getLogger(__name__)

VOID_REASONS = ("cancelled", "postponed", "ambiguous", "no_result", "error")


class MarketAlreadyResolved(Refusal):
    """The market's outcome has been declared; only undoing it opens it again."""


class UnknownReason(Refusal):
    """A market is void for one of VOID_REASONS, and nothing but a void market has a reason."""


class BadCloseTime(Refusal):
    """An event that is decided has ended: its end does not lie ahead."""


class NothingToWithdraw(Refusal):
    """The market has no resolution that could be withdrawn."""


class BeingSettled(Refusal):
    """The pool is being divided at this moment; try again in a moment."""


class AlreadyReleased(Refusal):
    """The payouts may have left: an undo takes back what has not, and makes the rest a debt."""


class TooFewOutcomes(Refusal):
    """A market goes on with two outcomes at least."""


@dataclass(frozen=True)
class Resolved:
    """A decision that settlement now carries out; `outcome` where there is one."""

    market_id: int
    settlement_id: int
    public_id: str
    rule: str = "WINNER"
    outcome: str | None = None


@dataclass(frozen=True)
class Grounds:
    """What a resolution rests on, for everyone to read: a page (never fetched by us), and words."""

    url: str = ""
    note: str = ""


@dataclass(frozen=True)
class Withdrawn:
    """A resolution that was taken back: at once, or by undoing what was divided already (`undoing`)."""

    market_id: int
    settlement_id: int
    undoing: bool


NO_GROUNDS = Grounds()


def resolve(
    *,
    market_id: int,
    rule: parimutuel.Rule,
    weights: Mapping[str, Decimal],
    by: audit.Actor,
    at: datetime,
    policy: Policy,
    reason: str = "",
    grounds: Grounds = NO_GROUNDS,
    effective_close_at: datetime | None = None,
    preview_hash: str | None = None,
) -> Resolved | proposals.Proposed:
    """Declare a market's outcome; an OPEN market is closed by it. `settle` then divides the pool.

    A pool above `policy.approval_above` makes it a proposal. With `preview_hash` it is done only if the figures are
    still those of that preview. Bets placed after `effective_close_at` (or what the market says) get their stakes back.
    Units: weights are percentages that sum to 100, empty for VOID.
    Locks: Market.
    Raises: stakes.MarketNotFound; MarketAlreadyResolved; UnknownReason; BadCloseTime; parimutuel.UnknownOutcome;
    parimutuel.BadWeights; proposals.StakeInMarket; proposals.ProposalWaits; proposals.PreviewMoved;
    proposals.PersonNeeded.
    """
    if (rule == "VOID") != (reason in VOID_REASONS):
        raise UnknownReason(f"reason must be one of {', '.join(VOID_REASONS)}, for a void market only.")
    if effective_close_at is not None and effective_close_at > at:
        raise BadCloseTime("effective_close_at must not lie ahead: the event has ended.")
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        if market.status not in (Market.Status.OPEN, Market.Status.CLOSED):
            raise MarketAlreadyResolved(f"Market {market_id} is {market.status}: its outcome has been declared.")
        parimutuel.check_weights(rule, weights, market.running_outcomes)
        own_affairs.refuse_stakeholders(market, by)
        proposals.refuse_while_one_waits(market)
        if effective_close_at is not None:
            market.effective_close_at = effective_close_at
        if policy.approval_above is not None or preview_hash is not None:
            seen = preview.figures(market, rule=rule, weights=weights, at=at, policy=policy)
            if preview_hash not in (None, seen.preview_hash):
                raise proposals.PreviewMoved("The numbers have moved since that preview: look again.")
            pool = Decimal(seen.division.pool + seen.division.late_refund) / 100
            if policy.needs_approval(pool):
                return proposals.make(
                    market,
                    kind=Proposal.Kind.RESOLVE,
                    preview_hash=seen.preview_hash,
                    pool=pool,
                    by=by,
                    at=at,
                    rule=rule,
                    weights=weights,
                    reason=reason,
                    evidence_url=grounds.url,
                    evidence_note=grounds.note,
                    effective_close_at=market.effective_close_at,
                )
        return declare(
            market, rule=rule, weights=weights, reason=reason, grounds=grounds, by=by, approved_by=None, at=at,
            policy=policy,
        )  # fmt: skip


def declare(
    market: Market,
    *,
    rule: parimutuel.Rule,
    weights: Mapping[str, Decimal],
    reason: str,
    grounds: Grounds,
    by: audit.Actor,
    approved_by: audit.Actor | None,
    at: datetime,
    policy: Policy,
) -> Resolved:
    """Open the settlement of a declared outcome, in the caller's transaction, which has the market locked and checked.

    It records the decision, so it comes last. `by` decided; `approved_by` is the second person, if it took one.
    """
    was = market.status
    settlement = Settlement.objects.create(
        market=market,
        number=_next_number(market),
        rule=rule,
        weights={outcome: str(weight) for outcome, weight in weights.items()},
        reason=reason,
        effective_close_at=market.effective_close_at,
        evidence_url=grounds.url,
        evidence_note=grounds.note,
        resolved_by_id=by.user_id,
        approved_by_id=approved_by.user_id if approved_by else None,
        resolved_at=at,
        fee_pct=market.platform_fee_pct,
        protect_stake=policy.protect_stake,
    )
    if market.status == Market.Status.OPEN:
        market.status = Market.Status.CLOSED
        market.save(update_fields=["status"])
    market.status = Market.Status.RESOLVED
    market.resolved_at = at
    market.resolved_outcome = next(iter(weights)) if rule == "WINNER" else None
    market.save(update_fields=["status", "resolved_at", "resolved_outcome", "effective_close_at"])
    audit.record(
        action="market.void" if rule == "VOID" else "market.resolve",
        by=approved_by or by,
        subject=f"market:{market.pk}",
        before={"status": was},
        after={
            "status": market.status,
            "settlement": settlement.number,
            "rule": rule,
            "weights": settlement.weights,
            "proposed_by": by.user_id if approved_by else None,
            "evidence": [grounds.url, grounds.note],
            "effective_close_at": market.effective_close_at,
        },
        at=at,
        reason=reason,
    )
    log.info("Resolved market %s: settlement %s, rule %s", market.pk, settlement.number, rule)
    return Resolved(market.pk, settlement.pk, str(settlement.public_id), rule, market.resolved_outcome)


def withdraw(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Withdrawn:
    """Take a resolution back before its payouts may leave: one that is not divided yet, or is held.

    It takes one person, whatever the pool: nothing leaves by it. The market is CLOSED again.
    Locks: Market, Settlement.
    Raises: stakes.MarketNotFound; NothingToWithdraw; BeingSettled; AlreadyReleased; proposals.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        run = undo.deciding_run(market)
        if run is None or run.state == Settlement.State.UNDOING:
            raise NothingToWithdraw(f"Market {market_id} is {market.status}: it has no resolution to withdraw.")
        own_affairs.refuse_stakeholders(market, by)
        if run.state == Settlement.State.DIVIDING:
            raise BeingSettled(f"Market {market_id} is being settled: try again in a moment.")
        if run.state == Settlement.State.SETTLED:
            if run.rule == Settlement.Rule.VOID:
                raise AlreadyReleased(f"Market {market_id} is void: its stakes are back in their wallets.")
            if run.release_at is None or run.release_at <= at:
                raise AlreadyReleased(f"The payouts of market {market_id} are released: undo it instead.")
            undo.begin(market, run, reason=reason, by=by, at=at, action="market.withdraw")
            return Withdrawn(market.pk, run.pk, undoing=True)
        run.state = Settlement.State.WITHDRAWN
        run.undone_by_id, run.undone_at, run.undone_reason = by.user_id, at, reason
        run.save(update_fields=["state", "undone_by", "undone_at", "undone_reason"])
        undo.close_again(market)
        audit.record(
            action="market.withdraw",
            by=by,
            subject=f"market:{market.pk}",
            before={"status": Market.Status.RESOLVED, "settlement": run.number},
            after={"status": market.status},
            at=at,
            reason=reason,
        )
    return Withdrawn(market.pk, run.pk, undoing=False)


def scratch(*, market_id: int, outcome: str, reason: str, by: audit.Actor, at: datetime, policy: Policy) -> Resolved:
    """Take one outcome out of an open market: it takes no bets any more, its stakes go back, the market goes on.

    Locks: Market.
    Raises: stakes.MarketNotFound; stakes.MarketNotOpen; stakes.OutcomeNotInMarket; TooFewOutcomes;
    proposals.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        if market.status != Market.Status.OPEN or market.end_date <= at:
            raise locks.MarketNotOpen(f"Market {market_id} takes no bets any more: void it, or resolve it.")
        running = market.running_outcomes
        if outcome not in running:
            raise locks.OutcomeNotInMarket(f"outcome must be one of {', '.join(running)}.")
        if len(running) <= 2:
            raise TooFewOutcomes(f"Market {market_id} has two outcomes left: void it instead.")
        own_affairs.refuse_stakeholders(market, by)
        market.outcomes.filter(name=outcome).update(scratched_at=at)
        run = Settlement.objects.create(
            market=market,
            number=_next_number(market),
            rule=Settlement.Rule.SCRATCH,
            scratched=outcome,
            evidence_note=reason,
            resolved_by_id=by.user_id,
            resolved_at=at,
            fee_pct=market.platform_fee_pct,
            protect_stake=policy.protect_stake,
        )
        audit.record(
            action="market.scratch",
            by=by,
            subject=f"market:{market.pk}",
            before={"outcomes": list(running)},
            after={"outcomes": [name for name in running if name != outcome], "settlement": run.number},
            at=at,
            reason=reason,
        )
    log.info("Scratched outcome %s of market %s", outcome, market_id)
    return Resolved(market.pk, run.pk, str(run.public_id), run.rule, outcome)


def _next_number(market: Market) -> int:
    return (market.settlements.aggregate(last=Max("number"))["last"] or 0) + 1
