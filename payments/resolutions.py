"""Declaring a market's outcome, or that it is void; what follows, dividing its pool, is settlement.py's."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction
from django.db.models import Max

from markets import parimutuel
from markets.models import Market
from payments import stakes
from payments.models import Settlement
from payments.policy import Policy

log = logging.getLogger(__name__)

VOID_REASONS = ("cancelled", "postponed", "ambiguous", "no_result", "error")


class MarketAlreadyResolved(Exception):
    """The market's outcome has been declared; only undoing it opens it again."""


class UnknownReason(ValueError):
    """A market is void for one of VOID_REASONS, and nothing but a void market has a reason."""


@dataclass(frozen=True)
class Resolved:
    market_id: int
    settlement_id: int
    public_id: str


def resolve(
    *,
    market_id: int,
    rule: parimutuel.Rule,
    weights: Mapping[str, Decimal],
    by_user_id: int | None,
    at: datetime,
    policy: Policy,
    reason: str = "",
) -> Resolved:
    """Declare a market's outcome; an OPEN market is closed by it. `settle` then divides the pool.

    Units: weights are percentages that sum to 100, empty for VOID.
    Locks: Market.
    Raises: stakes.MarketNotFound; MarketAlreadyResolved; UnknownReason; parimutuel.UnknownOutcome;
    parimutuel.BadWeights.
    """
    if (rule == "VOID") != (reason in VOID_REASONS):
        raise UnknownReason(f"reason must be one of {', '.join(VOID_REASONS)}, for a void market only.")
    with transaction.atomic(durable=True):
        market = stakes.locked_market(market_id)
        if market.status not in (Market.Status.OPEN, Market.Status.CLOSED):
            raise MarketAlreadyResolved(f"Market {market_id} is {market.status}: its outcome has been declared.")
        parimutuel.check_weights(rule, weights, market.outcome_names)
        number = (market.settlements.aggregate(last=Max("number"))["last"] or 0) + 1
        settlement = Settlement.objects.create(
            market=market,
            number=number,
            rule=rule,
            weights={outcome: str(weight) for outcome, weight in weights.items()},
            reason=reason,
            resolved_by_id=by_user_id,
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
        market.save(update_fields=["status", "resolved_at", "resolved_outcome"])
    log.info("Resolved market %s: settlement %s, rule %s", market_id, number, rule)
    return Resolved(market_id=market_id, settlement_id=settlement.pk, public_id=str(settlement.public_id))
