"""Cache of previews in Redis, because computing a preview of many bets takes seconds.

A cached preview has a fingerprint of everything that it was computed from: stakes, last bet, outcomes, fee, debts to
set off, day and policy. If a fingerprint computed now is the same, the preview is current. If not, `current` is false,
and the page says so. A resolve with the preview's hash is refused if a figure has changed. Previews of small markets
are computed in the request, those of large markets by a worker.
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
from payments.settlement import preview, preview_json
from payments.settlement.decision import Decision
from users import figures as dated_figures

log = logging.getLogger(__name__)

# Increase VERSION when the fields of Preview or of a dataclass in it change. Increase it also when division, parimutuel
# or tariff code changes the figures for the same bets. Previews of another version are never read.
VERSION = 2
KEPT_SECONDS = 3_600
ASKED_SECONDS = 60
# The most bets that are computed while a person waits for the page.
BETS_COMPUTED_IN_REQUEST = 40_000
# Every preview takes as long as this many bets, in addition to its own bets.
FIXED_COST_IN_BETS = 2_000


@dataclass(frozen=True)
class KeptPreview:
    """The preview of a decision, computed at the time `at`. `preview` is None until a worker has computed it.

    `current` is true if nothing that the preview was computed from has changed since.
    """

    decision: Decision
    preview: preview.Preview | None
    at: datetime | None
    current: bool


def previews(
    market: Market, decisions: Sequence[Decision], *, at: datetime, policy: Policy, compute_all: bool = False
) -> list[KeptPreview]:
    """Return the preview of each decision: the cached one if it is current, or a new one if that is quick.

    With `compute_all`, every preview that is not current is computed now. The same happens if Redis cannot be reached.
    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; preview.FiguresDisagree.
    """
    pools = markets_pools.pools([market.pk]).get(market.pk, {})
    fingerprint = _fingerprint(market, pools, at, policy)
    bets = sum(count for _, count in pools.values())
    keys = [_key(market, decision) for decision in decisions]
    try:
        stored = _stored(keys)
    except redis.RedisError as error:
        log.warning("Redis cannot be reached, so previews are computed in the request: %s", error)
        stored, compute_all = {}, True
    missing = sum(key not in stored or stored[key][0] != fingerprint for key in keys)
    compute_now = compute_all or missing * (bets + FIXED_COST_IN_BETS) <= BETS_COMPUTED_IN_REQUEST
    reading = float_balance.latest() if stored else None
    results = []
    for key, decision in zip(keys, decisions, strict=True):
        stored_fingerprint, computed_at, figures = stored.get(key) or ("", None, None)
        if stored_fingerprint != fingerprint and compute_now:
            figures = _computed(market, decision, key, fingerprint, at, policy)
            stored_fingerprint, computed_at = fingerprint, at
        elif figures is not None and reading is not None:
            # The fingerprint leaves out the float, which belongs to no market. So show its latest reading.
            figures = replace(figures, float_available=reading.amount, float_at=reading.read_at)
        results.append(KeptPreview(decision, figures, computed_at, stored_fingerprint == fingerprint))
    return results


def compute(market: Market, decision: Decision, *, at: datetime, policy: Policy) -> None:
    """Compute the preview of a decision and store it in the cache.

    Idempotent: keeps a cached preview that is current.
    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; preview.FiguresDisagree.
    """
    previews(market, [decision], at=at, policy=policy, compute_all=True)


def claim_computation(market: Market, decision: Decision) -> bool:
    """Return True if nobody asked a worker for this preview in the last minute, and record the request.

    A page that polls every two seconds thus starts a worker only once a minute. Returns False if Redis cannot be
    reached.
    """
    try:
        return bool(cache.add(_key(market, decision) + ":asked", 1, ASKED_SECONDS))
    except redis.RedisError:
        return False


def _computed(
    market: Market, decision: Decision, key: str, fingerprint: str, at: datetime, policy: Policy
) -> preview.Preview:
    computed = preview.preview(market, decision, at=at, policy=policy)
    try:
        cache.set(key, preview_json.write((key, fingerprint, at, computed)), KEPT_SECONDS)
        cache.delete(key + ":asked")
    except redis.RedisError as error:
        log.warning("Redis cannot be reached, so a preview was not cached: %s", error)
    return computed


def _stored(keys: Sequence[str]) -> dict[str, tuple[str, datetime, preview.Preview]]:
    """Return fingerprint, time and preview by key. A damaged or moved value counts as missing. Raises: RedisError."""
    found = {}
    for key, stored in cache.get_many(keys).items():
        try:
            place, fingerprint, computed_at, figures = preview_json.read(stored)
        except (preview_json.NotAPreview, TypeError, ValueError):
            continue
        if place == key and isinstance(computed_at, datetime) and isinstance(figures, preview.Preview):
            found[key] = (fingerprint, computed_at, figures)
    return found


def _key(market: Market, decision: Decision) -> str:
    """Return the cache key of a preview. It leaves out reason and evidence, because they move no money."""
    weights = sorted(decision.weights_as_text().items())
    about = (VERSION, market.pk, decision.rule, weights, decision.closes_at(market))
    return f"console:preview:{hashlib.sha256(repr(about).encode()).hexdigest()}"


def _fingerprint(market: Market, pools: Mapping[str, tuple[Decimal, int]], at: datetime, policy: Policy) -> str:
    last = Bet.objects.filter(market=market).aggregate(last=Max("pk"))["last"]
    # A debt that is set off reduces the amount that a member gets.
    debts = Recovery.objects.filter(decision=Recovery.Decision.SET_OFF).aggregate(
        count=Count("pk"), last=Max("decided_at"), left=Sum(F("amount") - F("recovered") - F("written_off"))
    )
    day = at.astimezone(NAIROBI).date()  # M-Pesa's daily limit depends on the date.
    about = (
        sorted(pools.items()),
        last,
        market.running_outcomes,
        market.terms_version,
        market.platform_fee_pct,
        sorted(debts.items(), key=str),
        day,
        dated_figures.bands(at),
        policy,
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()
