"""Life of a market before its decision: create it, suspend and resume betting, close it."""

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import F

from markets import locks, lookalikes, stakeholders, terms, terms_proposals
from markets.models import Market
from users import audit
from users.refusal import Refusal

LONGEST_CATEGORY = 80


class MarketNotSuspended(Refusal):
    """Betting on the market is not suspended."""


@dataclass(frozen=True)
class Closed:
    """A market that was closed for good. `bets` is false if nobody had bet on it."""

    market_id: int
    closed_at: datetime


def create(*, draft: terms.Draft, category: str, by: audit.Actor, at: datetime) -> Market:
    """Create an OPEN market with version 1 of its terms.

    Locks: the end of the audit trail.
    Raises: terms.BadTerms.
    """
    draft, category = terms.tidy(draft), category.strip()
    if len(category) > LONGEST_CATEGORY or lookalikes.hidden_character(category):
        raise terms.BadTerms({"category": f"at most {LONGEST_CATEGORY} characters, all of them visible."})
    terms.check(draft, at=at)
    with transaction.atomic(durable=True):
        market = Market(
            question=draft.question,
            description=draft.description,
            source=draft.source,
            category=category,
            platform_fee_pct=draft.platform_fee_pct,
            end_date=draft.end_date,
            created_at=at,
        )
        market.outcome_names = draft.outcomes
        market.save()
        terms.record(market, made_by=by.user_id, at=at)
        values = {name: terms.in_words(name, getattr(draft, name)) for name in terms.LABELS}
        audit.record(
            action="market.create",
            by=by,
            subject=f"market:{market.pk}",
            before={},
            after={**values, "category": category},
            at=at,
        )
    return market


def suspend_betting(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Market:
    """Suspend betting on an open market, until a person resumes it. Bets that were placed stand.

    A suspension that a proposed change of terms began becomes this person's. The end of the proposal then leaves it.
    Idempotent: betting that a person suspended stays so.
    Locks: Market, then the end of the audit trail.
    Raises: locks.MarketNotFound; locks.MarketNotOpen; stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = _open_market(market_id, by, at)
        by_proposal = terms_proposals.suspends_betting(market)
        if market.betting_suspended_at is None or by_proposal:
            was = "suspended by a proposal" if by_proposal else "open"
            market.betting_suspended_at = at
            market.save(update_fields=["betting_suspended_at"])
            _record(market, "market.suspend_betting", {"betting": was}, {"betting": "suspended"}, by, at, reason)
    return market


def resume_betting(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Market:
    """Take bets on an open market again after a suspension.

    Locks: Market, then the end of the audit trail.
    Raises: locks.MarketNotFound; locks.MarketNotOpen; MarketNotSuspended; terms.NoticeRunning;
    stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = _open_market(market_id, by, at)
        terms.refuse_during_notice(market, at=at)
        if market.betting_suspended_at is None:
            raise MarketNotSuspended(f"Betting on market {market_id} is not suspended.")
        market.betting_suspended_at = None
        market.save(update_fields=["betting_suspended_at"])
        _record(market, "market.resume_betting", {"betting": "suspended"}, {"betting": "open"}, by, at, reason)
    return market


def close(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Closed:
    """Close an open market now, before its end. It never opens again, and then waits for its decision.

    Locks: Market, then the end of the audit trail.
    Raises: locks.MarketNotFound; locks.MarketNotOpen; terms.NoticeRunning; stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market = _open_market(market_id, by, at)
        terms.refuse_during_notice(market, at=at)
        _close(market, closed_at=at, by=by, at=at, reason=reason)
    return Closed(market.pk, at)


def ended(*, at: datetime, limit: int) -> list[int]:
    """Return the ids of open markets that the clock must close, the earliest end first.

    The clock closes only markets whose end was ahead when they were made. A market that was made with a past end stays
    open until a person decides it.
    """
    rows = Market.objects.filter(status=Market.Status.OPEN, end_date__lte=at, end_date__gt=F("created_at"))
    return list(rows.order_by("end_date", "pk").values_list("pk", flat=True)[:limit])


def close_ended(*, market_id: int, at: datetime) -> bool:
    """Close a market whose end has come, as the clock. Return False if it need not be closed.

    Idempotent. Locks: Market, then the end of the audit trail.
    Raises: locks.MarketNotFound.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        if market.status != Market.Status.OPEN or not market.created_at < market.end_date <= at:
            return False
        _close(market, closed_at=market.end_date, by=audit.MACHINE, at=at, reason="The end of the market has come.")
    return True


def _open_market(market_id: int, by: audit.Actor, at: datetime) -> Market:
    market = locks.locked_market(market_id)
    if market.status != Market.Status.OPEN or market.end_date <= at:
        raise locks.MarketNotOpen(f"Market {market_id} takes no more bets: resolve it or void it.")
    stakeholders.refuse_stakeholders(market, by)
    return market


def _close(market: Market, *, closed_at: datetime, by: audit.Actor, at: datetime, reason: str) -> None:
    market.status, market.closed_at = Market.Status.CLOSED, closed_at
    market.save(update_fields=["status", "closed_at"])
    _record(market, "market.close", {"status": "OPEN"}, {"status": "CLOSED", "closed_at": closed_at}, by, at, reason)


def _record(
    market: Market,
    action: str,
    before: dict[str, object],
    after: dict[str, object],
    by: audit.Actor,
    at: datetime,
    reason: str,
) -> None:
    audit.record(action=action, by=by, subject=f"market:{market.pk}", before=before, after=after, at=at, reason=reason)
