"""A look at what a decision would do, kept for as long as the numbers stand: a preview over many bets takes seconds.

A kept preview has the mark of all it was computed from: the market, the stakes, the last bet, debts that are kept
back, the rules. While the mark is that of now, it is what `preview` would say; when it is not, the look says so, and a
resolve that carries its hash is refused. What is small is computed at once, what is large by a worker.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import redis
from django.core.cache import cache
from django.db.models import Count, F, Max, Sum

from markets import parimutuel
from markets import pools as markets_pools
from markets.models import NAIROBI, Bet, Market
from payments.models import Recovery
from payments.mpesa import tariff
from payments.payouts import float_balance
from payments.policy import Policy
from payments.settlement import division, preview

log = logging.getLogger(__name__)

KEPT_SECONDS = 3_600
ASKED_SECONDS = 60
# What another version of the code kept is not read: it may have other fields, or other rules.
_CODE = (preview, division, parimutuel, tariff)
_VERSION = hashlib.sha256(b"".join(Path(str(part.__file__)).read_bytes() for part in _CODE)).hexdigest()
# What is computed while somebody waits, in bets: a preview asks some questions however few there are.
AT_ONCE, ONE_PREVIEW = 40_000, 2_000


@dataclass(frozen=True)
class Decision:
    """What could be decided about a market; weights are percentages that sum to 100, empty for VOID."""

    rule: parimutuel.Rule
    weights: Mapping[str, Decimal]


@dataclass(frozen=True)
class Look:
    """What a decision would do, as it was at `at`. `current`: nothing has moved since. No `seen`: not known yet."""

    decision: Decision
    seen: preview.Preview | None
    at: datetime | None
    current: bool


def looks(
    market: Market, decisions: Sequence[Decision], *, at: datetime, policy: Policy, patient: bool = False
) -> list[Look]:
    """What each decision would do: kept and current, or computed now, where that is quick (or the caller `patient`).

    Late bets are those after `market.effective_close_at`. Where Redis is not reached, everything is computed now.
    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; preview.FiguresDisagree.
    """
    pools = markets_pools.pools([market.pk]).get(market.pk, {})
    mark = _mark(market, pools, at, policy)
    bets = sum(number for _, number in pools.values())
    keys = [_key(market, decision) for decision in decisions]
    try:
        kept = cache.get_many(keys)
    except redis.RedisError as error:
        log.warning("Redis not reached, previews are computed while somebody waits: %s", error)
        kept, patient = {}, True
    missing = sum(key not in kept or kept[key][0] != mark for key in keys)
    now = patient or missing * (bets + ONE_PREVIEW) <= AT_ONCE
    reading = float_balance.latest() if kept else None
    found = []
    for key, decision in zip(keys, decisions, strict=True):
        old_mark, old_at, seen = kept.get(key, ("", None, None))
        if old_mark != mark and now:
            seen, old_mark, old_at = _computed(market, decision, key, mark, at, policy), mark, at
        elif seen is not None and reading is not None:
            # The float is not the market's: it is shown as it is last known.
            seen = replace(seen, float_available=reading.amount, float_at=reading.read_at)
        found.append(Look(decision, seen, old_at, old_mark == mark))
    return found


def compute(market: Market, decision: Decision, *, at: datetime, policy: Policy) -> None:
    """Compute what a decision would do and keep it, unless what is kept is current. Idempotent.

    Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights; preview.FiguresDisagree.
    """
    looks(market, [decision], at=at, policy=policy, patient=True)


def is_news(market: Market, decision: Decision) -> bool:
    """Whether nobody has asked for this look within the last minute, so that a worker is asked once."""
    try:
        return bool(cache.add(_key(market, decision) + ":asked", 1, ASKED_SECONDS))
    except redis.RedisError:
        return False


def _computed(market: Market, decision: Decision, key: str, mark: str, at: datetime, policy: Policy) -> preview.Preview:
    seen = preview.preview(market, rule=decision.rule, weights=decision.weights, at=at, policy=policy)
    try:
        cache.set(key, (mark, at, seen), KEPT_SECONDS)
        cache.delete(key + ":asked")
    except redis.RedisError as error:
        log.warning("Redis not reached, a preview is not kept: %s", error)
    return seen


def _key(market: Market, decision: Decision) -> str:
    weights = sorted((outcome, str(weight)) for outcome, weight in decision.weights.items())
    about = (_VERSION, market.pk, decision.rule, weights, market.effective_close_at)
    return f"console:look:{hashlib.sha256(repr(about).encode()).hexdigest()}"


def _mark(market: Market, pools: Mapping[str, tuple[Decimal, int]], at: datetime, policy: Policy) -> str:
    last = Bet.objects.filter(market=market).aggregate(last=Max("pk"))["last"]
    # Whoever owes, and how much of it is kept, moves what members get.
    debts = Recovery.objects.filter(decision=Recovery.Decision.SET_OFF).aggregate(
        count=Count("pk"), last=Max("decided_at"), left=Sum(F("amount") - F("recovered") - F("written_off"))
    )
    on = at.astimezone(NAIROBI).date()  # The tariff is the day's, and so is M-Pesa's limit.
    about = (
        sorted(pools.items()),
        last,
        market.running_outcomes,
        market.platform_fee_pct,
        sorted(debts.items(), key=str),
        on,
        policy,
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()
