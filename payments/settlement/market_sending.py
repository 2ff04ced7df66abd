"""Sending of one market's payouts: suspend it, and resume it. Other markets go on."""

from datetime import datetime

from django.db import transaction

from markets import locks, stakeholders
from markets.models import Market
from payments.models import Settlement
from payments.settlement import status
from users import audit
from users.refusal import Refusal


class NothingToSend(Refusal):
    """The market has no settlement whose payouts could leave."""


class SendingNotSuspended(Refusal):
    """The sending of the market's payouts is not suspended."""


def suspend(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Settlement:
    """Suspend the sending of one market's payouts, until a person resumes it. Requests under way are not called back.

    Idempotent: sending that is suspended stays so.
    Locks: Market, Settlement, then the end of the audit trail.
    Raises: locks.MarketNotFound; NothingToSend; stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market, settlement = _locked(market_id, by)
        if settlement.sending_suspended_at is None:
            _write(market, settlement, at, "market.suspend_sending", by=by, at=at, reason=reason)
    return settlement


def resume(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Settlement:
    """Let the payouts of one market leave again.

    Locks: Market, Settlement, then the end of the audit trail.
    Raises: locks.MarketNotFound; NothingToSend; SendingNotSuspended; stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market, settlement = _locked(market_id, by)
        if settlement.sending_suspended_at is None:
            raise SendingNotSuspended(f"The payouts of market {market_id} are not suspended. Nothing was changed.")
        _write(market, settlement, None, "market.resume_sending", by=by, at=at, reason=reason)
    return settlement


def _locked(market_id: int, by: audit.Actor) -> tuple[Market, Settlement]:
    market = locks.locked_market(market_id)
    stakeholders.refuse_stakeholders(market, by)
    settlement = status.deciding_settlement(market.pk)
    if settlement is None or settlement.state == Settlement.State.UNDOING:
        raise NothingToSend(f"Market {market_id} is {market.status}: it has no payouts that could leave.")
    return market, settlement


def _write(
    market: Market,
    settlement: Settlement,
    suspended_at: datetime | None,
    action: str,
    *,
    by: audit.Actor,
    at: datetime,
    reason: str,
) -> None:
    before, settlement.sending_suspended_at = settlement.sending_suspended_at, suspended_at
    settlement.save(update_fields=["sending_suspended_at"])
    audit.record(
        action=action,
        by=by,
        subject=f"market:{market.pk}",
        before={"settlement": settlement.number, "suspended_at": before},
        after={"settlement": settlement.number, "suspended_at": suspended_at},
        at=at,
        reason=reason,
    )
