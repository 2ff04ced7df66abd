"""Hypothesis strategies that several tests share."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

OUTCOMES = ("A", "B", "C")
FEES = st.decimals("0", "100", places=2)


@st.composite
def weights_of(draw: st.DrawFn, outcomes: Sequence[str] = OUTCOMES) -> dict[str, Decimal]:
    """Draw percentages with up to two decimals that sum to 100, for one outcome or more."""
    named = draw(st.permutations(outcomes))[: draw(st.integers(1, len(outcomes)))]
    cuts = sorted(draw(st.sets(st.integers(1, 9_999), min_size=len(named) - 1, max_size=len(named) - 1)))
    parts = [high - low for low, high in zip([0, *cuts], [*cuts, 10_000], strict=True)]
    return {name: Decimal(part) / 100 for name, part in zip(named, parts, strict=True)}


@st.composite
def resolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a rule with its weights, a fee, and `protect_stake`.

    With `protect_stake` the fee is at most the sum of the losing stakes (not for SPLIT).
    """
    rule = draw(st.sampled_from(["WINNER", "JOINT", "SPLIT", "VOID"]))
    if rule == "VOID":
        weights = {}
    elif rule == "WINNER":
        weights = {draw(st.sampled_from(OUTCOMES)): Decimal(100)}
    else:
        weights = draw(weights_of())
    return {"rule": rule, "weights": weights, "fee_pct": draw(FEES), "protect_stake": draw(st.booleans())}
