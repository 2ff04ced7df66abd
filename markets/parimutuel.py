"""The rule that divides a pool among winning bets: pure functions on exact integers.

`funds` divides the pool among the winning outcomes. Each outcome's fund is then shared pro rata among
the stakes on that outcome, and each share is floored to the cent. The leftover cents go one by one to the largest
remainders; ties go to the lowest bet id.

`divide_pool` does both steps in memory. Settlement does the second step in SQL, and tests compare the two.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from users.refusal import Refusal

Rule = Literal["WINNER", "JOINT", "SPLIT", "VOID"]


class UnknownOutcome(Refusal, ValueError):
    """The decision gives a weight to an outcome that the market does not have."""


class BadWeights(Refusal, ValueError):
    """The weights are not positive numbers that sum to 100."""


@dataclass(frozen=True)
class Stake:
    """The parts of a bet that the rule needs; `cents` > 0."""

    bet_id: int
    outcome: str
    cents: int


@dataclass(frozen=True)
class Funds:
    """Division of a pool among outcomes, in cents: pool = fee + net.

    The values of `by_outcome` sum to net. If `refund` is True, nobody won: every stake is returned in full, net = pool,
    and `by_outcome` is empty. `winning_pool` is the sum of the stakes on the outcomes that share net.
    """

    pool: int
    winning_pool: int
    fee: int
    net: int
    by_outcome: Mapping[str, int]
    refund: bool


def share_cents(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` cents by weight, and return the parts in the order of the weights.

    Each part is floored. Leftover cents go to the largest remainders; of equal remainders the earlier one comes first.
    The parts sum to `total` exactly. The weights are not negative and at least one is positive.
    """
    weight_sum = sum(weights)
    parts = [total * weight // weight_sum for weight in weights]
    by_remainder = sorted(range(len(parts)), key=lambda index: (-(total * weights[index] % weight_sum), index))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _as_integers(weights: Sequence[Decimal]) -> list[int]:
    """Return the same proportions as integers: 33.3 and 66.7 become 333 and 667."""
    places = max(-min(int(weight.as_tuple().exponent), 0) for weight in weights)
    return [int(weight.scaleb(places)) for weight in weights]


def check_weights(rule: Rule, weights: Mapping[str, Decimal], outcomes: Iterable[str]) -> None:
    """Refuse weights that cannot resolve a market with these outcomes.

    Raises: UnknownOutcome; BadWeights.
    """
    unknown = sorted(set(weights) - set(outcomes))
    if unknown:
        raise UnknownOutcome(f"The market has no outcome {unknown[0]!r}.")
    if rule == "VOID":
        if weights:
            raise BadWeights("A void has no winning outcome. Leave the weights out.")
    elif any(not weight.is_finite() or weight <= 0 for weight in weights.values()) or sum(weights.values()) != 100:
        raise BadWeights("The weights must be positive numbers that sum to 100.")
    elif rule == "WINNER" and len(weights) != 1:
        raise BadWeights("Rule WINNER needs exactly one outcome with weight 100.")


def funds(
    *,
    rule: Rule,
    stakes_by_outcome: Mapping[str, int],
    weights: Mapping[str, Decimal],
    fee_pct: Decimal,
    protect_stake: bool,
) -> Funds:
    """Divide a market's pool among its winning outcomes.

    fee = floor(pool × fee_pct / 100). If stakes are protected, the fee is at most the sum of the losing stakes.
    With one winner or joint winners, the winning stakes are returned first and the rest is split by weight. If the net
    is less than the winning stakes, it is shared in proportion to these stakes. A SPLIT divides the whole net by weight
    and protects no stake. If nobody bet on one of the winning outcomes, the other winning outcomes share its part.
    Units: integer cents, by outcome in the market's order; weights sum to 100 (empty for VOID); fee_pct from 0 to 100.
    Source: docs/decisions/0003-rounding.md.
    """
    pool = sum(stakes_by_outcome.values())
    backed = [outcome for outcome, cents in stakes_by_outcome.items() if outcome in weights and cents > 0]
    stakes = [stakes_by_outcome[outcome] for outcome in backed]
    winning_pool = sum(stakes)
    if rule == "VOID" or winning_pool == 0:
        return Funds(pool=pool, winning_pool=0, fee=0, net=pool, by_outcome={}, refund=True)

    fee = int(pool * fee_pct // 100)
    if protect_stake and rule != "SPLIT":
        fee = min(fee, pool - winning_pool)
    net = pool - fee
    by_weight = _as_integers([weights[outcome] for outcome in backed])
    if rule == "SPLIT":
        parts = share_cents(net, by_weight)
    elif net >= winning_pool:
        parts = [stake + part for stake, part in zip(stakes, share_cents(net - winning_pool, by_weight), strict=True)]
    else:
        parts = share_cents(net, stakes)
    return Funds(
        pool=pool,
        winning_pool=winning_pool,
        fee=fee,
        net=net,
        by_outcome=dict(zip(backed, parts, strict=True)),
        refund=False,
    )


def divide_pool(
    stakes: Iterable[Stake],
    *,
    rule: Rule,
    outcomes: Sequence[str],
    weights: Mapping[str, Decimal],
    fee_pct: Decimal,
    protect_stake: bool = True,
) -> tuple[Funds, dict[int, int]]:
    """Divide a market's pool among its winning stakes.

    Each winner gets stake × fund ÷ stakes on the outcome, floored to the cent. Leftover cents go to the largest
    remainders. If nobody won, each stake is returned in full.
    Units: integer KES cents. Returns the funds and the dividend of every bet by its id (0 for a losing bet).
    Raises: UnknownOutcome; BadWeights.
    Source: docs/decisions/0003-rounding.md.
    """
    check_weights(rule, weights, outcomes)
    bets = sorted(stakes, key=lambda bet: bet.bet_id)
    totals = {outcome: 0 for outcome in outcomes}
    for bet in bets:
        if bet.outcome not in totals:
            raise UnknownOutcome(f"The market has no outcome {bet.outcome!r}.")
        totals[bet.outcome] += bet.cents
    divided = funds(rule=rule, stakes_by_outcome=totals, weights=weights, fee_pct=fee_pct, protect_stake=protect_stake)
    if divided.refund:
        return divided, {bet.bet_id: bet.cents for bet in bets}
    dividends = {bet.bet_id: 0 for bet in bets}
    for outcome, fund in divided.by_outcome.items():
        winners = [bet for bet in bets if bet.outcome == outcome]
        parts = share_cents(fund, [bet.cents for bet in winners])
        dividends.update(zip((bet.bet_id for bet in winners), parts, strict=True))
    return divided, dividends
