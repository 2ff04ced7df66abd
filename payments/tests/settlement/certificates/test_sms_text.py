"""SMS texts: every sentence fits into one SMS."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.settlement.certificates import sms_text
from testing import certificates

LARGEST = Decimal("999999999999.99")
AMOUNTS = st.decimals(Decimal("0.01"), LARGEST, places=2)
TEXTS = st.text(max_size=500)


def test_sentence_of_a_winner_has_the_whole_equation() -> None:
    assert sms_text.won(
        outcome="Yes", stake=Decimal(100), fund=Decimal(285), stakes=Decimal(100), dividend=Decimal(285),
        pool=Decimal(300), fee=Decimal(15), tax=Decimal(0), paid="M-Pesa SKG7ABCDEF: KES 285.00.",
        question="Will it rain tomorrow?",
    ) == (
        'You won KES 285.00 on "Yes": 100.00 x 285.00 / 100.00. "Will it rain tomorrow?"'
        " M-Pesa SKG7ABCDEF: KES 285.00. Pool 300.00, fee 15.00, tax 0.00."
    )  # fmt: skip


def test_longest_question_outcome_and_amounts_fit() -> None:
    outcome, question, late = "W" * 120, "Will " * 100, "it came too late or its outcome was withdrawn"
    for sentence in (
        sms_text.won(
            outcome=outcome, stake=LARGEST, fund=LARGEST, stakes=LARGEST, dividend=LARGEST, pool=LARGEST, fee=LARGEST,
            tax=LARGEST, paid=f"M-Pesa SKG7ABCDEF: KES {LARGEST}.", question=question,
        ),
        sms_text.lost(outcome=outcome, stake=LARGEST, winners=[outcome] * 9, pool=LARGEST, question=question),
        sms_text.refunded(outcome=outcome, stake=LARGEST, why=late, question=question),
        sms_text.pending(outcome=outcome, stake=LARGEST, state="closed and waits for its result", question=question),
    ):  # fmt: skip
        certificates.assert_fits(sentence)


@given(outcome=TEXTS, question=TEXTS, paid=TEXTS, winners=st.lists(TEXTS, min_size=1, max_size=4),
       amounts=st.lists(AMOUNTS, min_size=7, max_size=7))  # fmt: skip
def test_any_text_fits(outcome: str, question: str, paid: str, winners: list[str], amounts: list[Decimal]) -> None:
    names = ("stake", "fund", "stakes", "dividend", "pool", "fee", "tax")
    certificates.assert_fits(
        sms_text.won(outcome=outcome, question=question, paid=paid, **dict(zip(names, amounts, strict=True)))
    )
    stake, pool = amounts[0], amounts[4]
    certificates.assert_fits(sms_text.lost(outcome=outcome, stake=stake, winners=winners, pool=pool, question=question))
    certificates.assert_fits(
        sms_text.refunded(outcome=outcome, stake=stake, why="nobody backed the winner", question=question)
    )


@pytest.mark.parametrize(
    ("text", "plain"),
    [("Mbappé – „ndiyo“ 3 × 2", 'Mbappe - "ndiyo" 3 x 2'), ("a\n\tb  c", "a b c"), ("{x}^~|€", "?x?????"), ("😀", "?")],
)
def test_characters_outside_the_alphabet_are_replaced(text: str, plain: str) -> None:
    assert sms_text.plain(text) == plain


def test_head_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="161 characters"):
        sms_text.sms("x" * 161, "")
