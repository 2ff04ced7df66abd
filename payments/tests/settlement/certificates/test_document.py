"""Checks of a certificate: the project and the stand-alone script agree."""

import copy
from collections.abc import Callable
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.settlement.certificates import document
from testing.certificates import BEGAN, certified, changes, script, sealed
from testing.strategies import OUTCOMES, resolutions

STANDALONE: ModuleType = script()
STAKES = st.lists(
    st.tuples(st.sampled_from(OUTCOMES), st.one_of(st.integers(1, 1_000), st.integers(1, 10**9))), max_size=10
)
JOINT = {"rule": "JOINT", "outcomes": OUTCOMES, "weights": {"A": Decimal("33.3"), "B": Decimal("66.7")}}


def holds(body: Any) -> str:
    """Return the first difference by the project's own check, or "" if the certificate is correct."""
    try:
        document.check(body)
    except document.Differs as difference:
        return str(difference)
    return ""


def holds_by_script(body: Any) -> str:
    """Return the first difference by the stand-alone script, or "" if the certificate is correct."""
    try:
        STANDALONE.verify(body, ())
    except STANDALONE.Differs as difference:
        return str(difference)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        return f"it cannot be read: {error!r}"
    return ""


EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "one winner": lambda: certified([("Yes", 100_00), ("No", 200_00), ("Yes", 33_33), ("Yes", 1)]),
    "nobody backed the winner": lambda: certified([("No", 33_33), ("No", 1)]),
    "void": lambda: certified([("Yes", 100_00), ("No", 7)], rule="VOID", weights={}),
    "no bets": lambda: certified([]),
    "joint": lambda: certified([("A", 90_01), ("B", 10_00), ("C", 20_00), ("B", 3)], **JOINT),
    "split": lambda: certified([("A", 90_01), ("B", 10_00), ("C", 20_00)], **JOINT | {"rule": "SPLIT"}),
    "unprotected": lambda: certified([("Yes", 100_00), ("No", 1_00)], protect_stake=False),
    "late bets and a scratched outcome": lambda: certified(
        [("A", 90_01), ("B", 10_00), ("C", 20_00), ("A", 5_00), ("C", 70_00)],
        outcomes=OUTCOMES,
        weights={"A": Decimal(100)},
        effective_close_at=BEGAN.replace(second=2),
        scratched=["B"],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_certificate_holds_and_each_change_is_found(name: str) -> None:
    body = EXAMPLES[name]()
    assert (holds(body), holds_by_script(body)) == ("", "")
    for what, changed in changes(body):
        assert holds(changed), what
        assert holds_by_script(changed), what


@pytest.mark.parametrize("name", EXAMPLES)
def test_forgery_with_new_hashes_is_found(name: str) -> None:
    # given: a change of each figure and of each bet's result
    figures = (
        "staked",
        "pool",
        "winning_pool",
        "fee",
        "net",
        "refunds",
        "bets",
        "equation",
        "stakes",
        "refunded",
        "fund",
    )
    of_bets = ("stake", "dividend", "result", "number")
    body = EXAMPLES[name]()
    forged = 0
    for what, changed in changes(body):
        field = what.split(" ")[0]
        of_bet = field.startswith("bets.") and field.endswith(of_bets)
        if (of_bet or (field.startswith("settlement.") and field.split(".")[-1] in figures)) and "removed" not in what:
            # when
            sealed(changed)
            # then
            assert holds(changed), what
            assert holds_by_script(changed), what
            forged += 1
    assert forged >= 10


@given(stakes=STAKES, resolution=resolutions())
def test_division_by_the_rule_holds_and_a_moved_cent_is_found(
    stakes: list[tuple[str, int]], resolution: dict[str, Any]
) -> None:
    # given
    body = certified(stakes, outcomes=OUTCOMES, **resolution)

    # then
    assert (holds(body), holds_by_script(body)) == ("", "")
    if len(stakes) > 1:
        # One cent is moved from one bet to the next, so no sum changes.
        for giver, taker in zip(range(len(stakes)), range(1, len(stakes)), strict=False):
            moved = copy.deepcopy(body)
            cents = [document.cents(moved["bets"][place]["dividend"]) for place in (giver, taker)]
            if cents[0]:
                moved["bets"][giver]["dividend"] = document.money(cents[0] - 1)
                moved["bets"][taker]["dividend"] = document.money(cents[1] + 1)
                sealed(moved)
                assert holds(moved)
                assert holds_by_script(moved)


def test_first_line_that_differs_is_named() -> None:
    body = EXAMPLES["one winner"]()
    body["bets"][2]["dividend"] = "71.25"
    assert holds(body) == "bet 3: dividend: the certificate says 71.25, it must be 79.16"
    assert holds_by_script(body) == 'line 3: dividend: the file says "71.25", the computation gives "79.16"'


def test_bets_may_be_in_a_separate_file() -> None:
    # given
    body = EXAMPLES["one winner"]()
    lines = [document.canonical(bet) + "\n" for bet in body["bets"]]
    beside = body | {"bets": None, "bets_file": "bets.jsonl"}

    # then
    document.check(beside, lines)
    STANDALONE.verify(beside, lines)
    with pytest.raises(document.Differs, match=r"bets.jsonl, which was not given"):
        document.check(beside)
    for wrong in (lines[:-1], [*lines, lines[0]], lines[::-1], [line.replace(",", ", ") for line in lines], ["{"]):
        with pytest.raises(document.Differs):
            document.check(beside, wrong)


@pytest.mark.parametrize("body", [None, [], {}, 7, "x", {"settlement": None}])
def test_other_content_is_not_accepted_as_a_certificate(body: Any) -> None:
    assert holds(body)
    assert holds_by_script(body)


def test_canonical_text_has_one_form() -> None:
    assert (
        document.canonical({"b": 'ä\n"\\/\u2028', "a": [None, True, 10]})
        == '{"a":[null,true,10],"b":"ä\\n\\"\\\\/\u2028"}'
    )
    assert document.moment(BEGAN) == "2026-02-16T07:30:00.000000Z"
