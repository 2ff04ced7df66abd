"""Previews kept in Redis while their figures stand, because a preview of many bets takes seconds.

A kept preview has a mark of everything it was computed from: market, stakes, last bet, debts to set off, rules. If the
mark of now is the same, the preview is current. If not, the preview says so, and a resolve with its hash is refused.
Small markets are computed at once, large ones by a worker.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

import redis
from django.core.cache import cache
from django.db.models import Count, F, Max, Sum

from markets import pools as markets_pools
from markets.models import NAIROBI, Bet, Market
from payments.models import Recovery
from payments.payouts import float_balance
from payments.policy import Policy
from payments.settlement import preview
from payments.settlement.decision import Decision

log = logging.getLogger(__name__)

# Raise it when Preview or a dataclass inside it changes its fields, or when the same bets come to other figures (a
# change of division, parimutuel or tariff code). Previews of another version are never read.
VERSION = 1
KEPT_SECONDS = 3_600
ASKED_SECONDS = 60
# Bets that may be computed while a person waits. A preview costs as much as ONE_PREVIEW bets, however few it has.
AT_ONCE, ONE_PREVIEW = 40_000, 2_000


@dataclass(frozen=True)
class KeptPreview:
    """The preview of a decision as it was at `at`. `preview` is None until a worker has computed it.

    `current` says that nothing has moved since.
    """

    decision: Decision
    preview: preview.Preview | None
    at: datetime | None
    current: bool


def previews(
    market: Market, decisions: Sequence[Decision], *, at: datetime, policy: Policy, patient: bool = False
) -> list[KeptPreview]:
    """Return the preview of each decision: the kept one if it is current, or a new one if that is quick.

    A `patient` caller waits for every preview. If Redis cannot be reached, every preview is computed now.
    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; preview.FiguresDisagree.
    """
    pools = markets_pools.pools([market.pk]).get(market.pk, {})
    mark = _mark(market, pools, at, policy)
    bets = sum(count for _, count in pools.values())
    keys = [_key(market, decision) for decision in decisions]
    try:
        stored = cache.get_many(keys)
    except redis.RedisError as error:
        log.warning("Redis not reached, previews are computed while somebody waits: %s", error)
        stored, patient = {}, True
    missing = sum(key not in stored or stored[key][0] != mark for key in keys)
    compute_now = patient or missing * (bets + ONE_PREVIEW) <= AT_ONCE
    reading = float_balance.latest() if stored else None
    results = []
    for key, decision in zip(keys, decisions, strict=True):
        kept_mark, computed_at, figures = stored.get(key, ("", None, None))
        if kept_mark != mark and compute_now:
            figures, kept_mark, computed_at = _computed(market, decision, key, mark, at, policy), mark, at
        elif figures is not None and reading is not None:
            # The float does not belong to the market, so the mark leaves it out: show the latest reading.
            figures = replace(figures, float_available=reading.amount, float_at=reading.read_at)
        results.append(KeptPreview(decision, figures, computed_at, kept_mark == mark))
    return results


def compute(market: Market, decision: Decision, *, at: datetime, policy: Policy) -> None:
    """Compute and keep the preview of a decision.

    Idempotent: a kept preview that is current stays.
    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; preview.FiguresDisagree.
    """
    previews(market, [decision], at=at, policy=policy, patient=True)


def first_request(market: Market, decision: Decision) -> bool:
    """Record that a preview is requested; return whether this is the first request in the last minute.

    So a page that asks again every two seconds asks a worker once.
    """
    try:
        return bool(cache.add(_key(market, decision) + ":asked", 1, ASKED_SECONDS))
    except redis.RedisError:
        return False


def _computed(market: Market, decision: Decision, key: str, mark: str, at: datetime, policy: Policy) -> preview.Preview:
    computed = preview.preview(market, decision, at=at, policy=policy)
    try:
        cache.set(key, (mark, at, computed), KEPT_SECONDS)
        cache.delete(key + ":asked")
    except redis.RedisError as error:
        log.warning("Redis not reached, a preview is not kept: %s", error)
    return computed


def _key(market: Market, decision: Decision) -> str:
    """Return the cache key of a preview. Reason and evidence move no money, so they are not in it."""
    weights = sorted(decision.weights_as_text().items())
    about = (VERSION, market.pk, decision.rule, weights, decision.closes_at(market))
    return f"console:preview:{hashlib.sha256(repr(about).encode()).hexdigest()}"


def _mark(market: Market, pools: Mapping[str, tuple[Decimal, int]], at: datetime, policy: Policy) -> str:
    last = Bet.objects.filter(market=market).aggregate(last=Max("pk"))["last"]
    # A debt that is set off changes the amount that a member gets.
    debts = Recovery.objects.filter(decision=Recovery.Decision.SET_OFF).aggregate(
        count=Count("pk"), last=Max("decided_at"), left=Sum(F("amount") - F("recovered") - F("written_off"))
    )
    day = at.astimezone(NAIROBI).date()  # The tariff and M-Pesa's limit are those of a day.
    about = (
        sorted(pools.items()),
        last,
        market.running_outcomes,
        market.platform_fee_pct,
        sorted(debts.items(), key=str),
        day,
        policy,
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()
