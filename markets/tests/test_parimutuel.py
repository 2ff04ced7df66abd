"""Tests of markets/parimutuel.py: a pool is divided exactly to the cent, for any stakes."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markets.parimutuel import (
    BadWeights,
    Funds,
    Stake,
    UnknownOutcome,
    check_weights,
    divide_pool,
    funds,
    share_cents,
)
from testing import strategies

TEN_MILLION = 10_000_000_00
CENTS = st.one_of(st.integers(1, 1_000), st.integers(1, TEN_MILLION))


@st.composite
def entries(draw: st.DrawFn, max_size: int = 12) -> list[Stake]:
    bets = draw(st.lists(st.tuples(st.sampled_from(strategies.OUTCOMES), CENTS), max_size=max_size))
    ids = draw(st.lists(st.integers(1, 10**6), min_size=len(bets), max_size=len(bets), unique=True))
    return [Stake(bet_id, outcome, cents) for bet_id, (outcome, cents) in zip(ids, bets, strict=True)]


def divide(
    stakes: Sequence[tuple[str, int]],
    weights: Mapping[str, str | int] | None = None,
    *,
    rule: Any = "WINNER",
    fee_pct: str = "5",
    protect_stake: bool = True,
    outcomes: Sequence[str] = ("Yes", "No"),
) -> tuple[Funds, list[int]]:
    """Divide stakes of (outcome, cents) with ids 1, 2, 3…, and return the funds and the dividends in the same order."""
    divided, dividends = divide_pool(
        [Stake(number, outcome, cents) for number, (outcome, cents) in enumerate(stakes, start=1)],
        rule=rule,
        outcomes=outcomes,
        weights={name: Decimal(weight) for name, weight in (weights or {}).items()},
        fee_pct=Decimal(fee_pct),
        protect_stake=protect_stake,
    )
    return divided, [dividends[number] for number in range(1, len(stakes) + 1)]


# --- examples from the documents -------------------------------------------------------------------------------------


def test_example_of_the_guide_pays_285_and_takes_15() -> None:
    divided, dividends = divide([("Yes", 100_00), ("No", 200_00)], {"Yes": 100})
    assert (divided.pool, divided.winning_pool, divided.fee, divided.net) == (300_00, 100_00, 15_00, 285_00)
    assert dividends == [285_00, 0]


def test_joint_winners_get_stakes_back_and_share_the_rest_by_weight() -> None:
    divided, dividends = divide(
        [("A", 90_00), ("B", 10_00), ("C", 20_00)], {"A": 50, "B": 50}, rule="JOINT", outcomes=strategies.OUTCOMES
    )
    assert (divided.fee, divided.net, divided.by_outcome) == (6_00, 114_00, {"A": 97_00, "B": 17_00})
    assert dividends == [97_00, 17_00, 0]


def test_fee_is_limited_to_the_losing_stakes() -> None:
    # given: a losing pool of 1.00, a fee of 5 % of 101.00
    divided, dividends = divide([("Yes", 100_00), ("No", 1_00)], {"Yes": 100})
    assert (divided.fee, dividends) == (1_00, [100_00, 0])


def test_fee_without_stake_protection_is_taken_from_the_whole_pool() -> None:
    divided, dividends = divide([("Yes", 100_00), ("No", 1_00)], {"Yes": 100}, protect_stake=False)
    assert (divided.fee, dividends) == (5_05, [95_95, 0])


def test_only_bettor_gets_the_stake_back() -> None:
    assert divide([("Yes", 100_00)], {"Yes": 100}) == (
        Funds(100_00, 100_00, 0, 100_00, {"Yes": 100_00}, False),
        [100_00],
    )


def test_winner_without_bets_returns_every_stake_in_full() -> None:
    divided, dividends = divide([("No", 33_33), ("No", 1)], {"Yes": 100})
    assert divided == Funds(pool=33_34, winning_pool=0, fee=0, net=33_34, by_outcome={}, refund=True)
    assert dividends == [33_33, 1]


def test_void_market_returns_every_stake_in_full() -> None:
    divided, dividends = divide([("Yes", 100_00), ("No", 7)], rule="VOID")
    assert (divided.fee, divided.net, divided.refund) == (0, 100_07, True)
    assert dividends == [100_00, 7]


def test_market_without_bets_divides_nothing() -> None:
    assert divide([], {"Yes": 100}) == (Funds(0, 0, 0, 0, {}, True), [])


def test_split_divides_the_net_by_weight_and_protects_no_stake() -> None:
    divided, dividends = divide([("Yes", 100_00), ("No", 200_00)], {"Yes": "70", "No": "30"}, rule="SPLIT")
    assert (divided.fee, divided.by_outcome) == (15_00, {"Yes": 199_50, "No": 85_50})
    assert dividends == [199_50, 85_50]


def test_split_weight_of_an_outcome_without_bets_goes_to_the_others() -> None:
    divided, dividends = divide(
        [("A", 100_00), ("B", 100_00)], {"A": 25, "B": 25, "C": 50}, rule="SPLIT", outcomes=strategies.OUTCOMES
    )
    assert divided.by_outcome == {"A": 95_00, "B": 95_00}
    assert dividends == [95_00, 95_00]


def test_part_of_a_joint_winner_without_bets_goes_to_the_others() -> None:
    divided, dividends = divide(
        [("A", 50_00), ("C", 50_00)], {"A": 50, "B": 50}, rule="JOINT", outcomes=strategies.OUTCOMES
    )
    assert (divided.by_outcome, dividends) == ({"A": 95_00}, [95_00, 0])


def test_weights_with_decimals_divide_exactly() -> None:
    divided, _ = divide(
        [("A", 1), ("B", 1), ("C", 1)],
        {"A": "33.3", "B": "33.35", "C": "33.35"},
        rule="SPLIT",
        fee_pct="0",
        outcomes=strategies.OUTCOMES,
    )
    assert divided.by_outcome == {"A": 1, "B": 1, "C": 1}
    divided, _ = divide(
        [("A", 400_00), ("B", 300_00), ("C", 300_00)],
        {"A": "33.3", "B": "33.35", "C": "33.35"},
        rule="SPLIT",
        fee_pct="0",
        outcomes=strategies.OUTCOMES,
    )
    assert divided.by_outcome == {"A": 333_00, "B": 333_50, "C": 333_50}


def test_leftover_cents_go_to_largest_remainders_then_lowest_bet_ids() -> None:
    # given: three equal stakes share 100 cents, and 1, 1 and 2 cents share 103
    assert divide([("Yes", 1), ("Yes", 1), ("Yes", 1), ("No", 97)], {"Yes": 100}, fee_pct="0")[1] == [34, 33, 33, 0]
    assert divide([("Yes", 1), ("Yes", 1), ("Yes", 2), ("No", 99)], {"Yes": 100}, fee_pct="0")[1] == [26, 26, 51, 0]
    # 103 × (1, 1, 2) ÷ 4 leaves two cents and the remainders 3, 3 and 2. The first two bets get a cent each.


def test_ten_million_shillings_beside_one_cent_lose_no_cent() -> None:
    divided, dividends = divide(
        [("Yes", TEN_MILLION), ("Yes", 1), ("No", TEN_MILLION), ("No", 1)], {"Yes": 100}, fee_pct="5"
    )
    # 5 % of 2,000,000,002 cents is 100,000,000.1: floored. 1,900,000,002 over 1,000,000,001: twice 0.95 each.
    assert (divided.fee, divided.net) == (100_000_000, 1_900_000_002)
    assert dividends == [1_900_000_000, 2, 0, 0]


def test_fee_is_floored_to_the_cent() -> None:
    assert divide([("Yes", 1), ("No", 1_98)], {"Yes": 100}, fee_pct="5")[0].fee == 9
    assert divide([("Yes", 1), ("No", 1_99)], {"Yes": 100}, fee_pct="5")[0].fee == 10
    assert divide([("Yes", 1_00), ("No", 100_00)], {"Yes": 100}, fee_pct="0.01")[0].fee == 1


def test_fee_of_100_percent_leaves_protected_stakes_or_nothing() -> None:
    assert divide([("Yes", 5_00), ("No", 7_00)], {"Yes": 100}, fee_pct="100")[1] == [5_00, 0]
    assert divide([("Yes", 5_00), ("No", 7_00)], {"Yes": 100}, fee_pct="100", protect_stake=False)[1] == [0, 0]


def test_unprotected_fee_above_losing_stakes_is_taken_from_winners_pro_rata() -> None:
    divided, dividends = divide(
        [("A", 90_00), ("B", 10_00)],
        {"A": 50, "B": 50},
        rule="JOINT",
        outcomes=strategies.OUTCOMES,
        protect_stake=False,
    )
    assert (divided.fee, dividends) == (5_00, [85_50, 9_50])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "weights", "refusal"),
    [
        ("WINNER", {"Maybe": 100}, UnknownOutcome),
        ("WINNER", {"yes": 100}, UnknownOutcome),
        ("WINNER", {"Yes ": 100}, UnknownOutcome),
        ("WINNER", {}, BadWeights),
        ("WINNER", {"Yes": 99}, BadWeights),
        ("WINNER", {"Yes": 50, "No": 50}, BadWeights),
        ("JOINT", {}, BadWeights),
        ("JOINT", {"Yes": "50", "No": "50.01"}, BadWeights),
        ("SPLIT", {"Yes": "150", "No": "-50"}, BadWeights),
        ("SPLIT", {"Yes": "100", "No": "0"}, BadWeights),
        ("SPLIT", {"Yes": "NaN", "No": "50"}, BadWeights),
        ("SPLIT", {"Yes": "Infinity"}, BadWeights),
        ("SPLIT", {"Yes": "50", "Draw": "50"}, UnknownOutcome),
        ("VOID", {"Yes": 100}, BadWeights),
    ],
)
def test_weights_that_cannot_resolve_the_market_are_refused(
    rule: Any, weights: dict[str, str | int], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        check_weights(rule, {name: Decimal(weight) for name, weight in weights.items()}, ("Yes", "No"))
    with pytest.raises(refusal):
        divide([("Yes", 1)], weights, rule=rule)


def test_stake_on_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(UnknownOutcome, match="'Maybe'"):
        divide([("Yes", 1), ("Maybe", 1)], {"Yes": 100})


# --- properties of every pool ----------------------------------------------------------------------------------------


@given(total=st.integers(0, 10**15), weights=st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
def test_shares_sum_to_the_total_and_are_within_a_cent_of_exact(total: int, weights: list[int]) -> None:
    if not sum(weights):
        weights[0] = 1
    parts = share_cents(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part * sum(weights) - total * weight) < sum(weights) for part, weight in zip(parts, weights, strict=True)
    )


@given(stakes=entries(), resolution=strategies.resolutions())
def test_stakes_equal_dividends_and_fee_to_the_cent(stakes: list[Stake], resolution: dict[str, Any]) -> None:
    divided, dividends = divide_pool(stakes, outcomes=strategies.OUTCOMES, **resolution)

    assert divided.pool == sum(stake.cents for stake in stakes)
    assert sum(dividends.values()) + divided.fee == divided.pool
    assert divided.net == sum(dividends.values())
    assert set(dividends) == {stake.bet_id for stake in stakes}
    assert all(dividend >= 0 for dividend in dividends.values())
    assert 0 <= divided.fee <= divided.pool * resolution["fee_pct"] / 100
    if not divided.refund:
        assert sum(divided.by_outcome.values()) == divided.net
        assert all(dividends[s.bet_id] == 0 for s in stakes if s.outcome not in resolution["weights"])


@given(stakes=entries(), resolution=strategies.resolutions())
def test_protected_winner_gets_at_least_the_stake(stakes: list[Stake], resolution: dict[str, Any]) -> None:
    resolution["protect_stake"] = True
    divided, dividends = divide_pool(stakes, outcomes=strategies.OUTCOMES, **resolution)
    if divided.refund:
        assert all(dividends[stake.bet_id] == stake.cents for stake in stakes)
        assert divided.fee == 0
    elif resolution["rule"] != "SPLIT":
        assert all(dividends[s.bet_id] >= s.cents for s in stakes if s.outcome in resolution["weights"])


@given(stakes=entries(), resolution=strategies.resolutions(), data=st.data())
def test_order_of_bets_does_not_change_the_division(
    stakes: list[Stake], resolution: dict[str, Any], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(stakes))
    assert divide_pool(shuffled, outcomes=strategies.OUTCOMES, **resolution) == divide_pool(
        stakes, outcomes=strategies.OUTCOMES, **resolution
    )


@given(stakes=entries(), resolution=strategies.resolutions())
def test_larger_stake_on_an_outcome_never_gets_less(stakes: list[Stake], resolution: dict[str, Any]) -> None:
    _, dividends = divide_pool(stakes, outcomes=strategies.OUTCOMES, **resolution)
    for outcome in strategies.OUTCOMES:
        ranked = sorted((s for s in stakes if s.outcome == outcome), key=lambda s: (s.cents, -s.bet_id))
        paid = [dividends[stake.bet_id] for stake in ranked]
        assert paid == sorted(paid)


@given(stakes=entries(), fee_pct=strategies.FEES, winner=st.sampled_from(strategies.OUTCOMES))
def test_one_winner_equals_a_joint_win_of_one(stakes: list[Stake], fee_pct: Decimal, winner: str) -> None:
    rule = {"outcomes": strategies.OUTCOMES, "weights": {winner: Decimal(100)}, "fee_pct": fee_pct}
    assert divide_pool(stakes, rule="WINNER", **rule) == divide_pool(stakes, rule="JOINT", **rule)


@given(stakes=entries(), fee_pct=strategies.FEES, winner=st.sampled_from(strategies.OUTCOMES))
def test_unprotected_dividend_is_stake_times_net_over_winning_pool(
    stakes: list[Stake], fee_pct: Decimal, winner: str
) -> None:
    divided, dividends = divide_pool(
        stakes,
        rule="WINNER",
        outcomes=strategies.OUTCOMES,
        weights={winner: Decimal(100)},
        fee_pct=fee_pct,
        protect_stake=False,
    )
    if divided.refund:
        return
    assert divided.fee == divided.pool * int(fee_pct * 100) // 10_000
    for stake in stakes:
        if stake.outcome == winner:
            exact_floor = stake.cents * divided.net // divided.winning_pool
            assert dividends[stake.bet_id] in (exact_floor, exact_floor + 1)


@given(
    totals=st.fixed_dictionaries({name: st.integers(0, 10**14) for name in strategies.OUTCOMES}),
    resolution=strategies.resolutions(),
)
def test_funds_of_unrealistically_large_pools_sum_to_the_net(
    totals: dict[str, int], resolution: dict[str, Any]
) -> None:
    divided = funds(stakes_by_outcome=totals, **resolution)
    assert divided.fee + divided.net == divided.pool == sum(totals.values())
    if not divided.refund:
        assert sum(divided.by_outcome.values()) == divided.net
        assert set(divided.by_outcome) == {name for name in resolution["weights"] if totals[name]}
