"""Tests of users/phone.py: one stored form for every typed form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from users import phone

NUMBERS = st.from_regex(r"[17][0-9]{8}", fullmatch=True).filter(str.isascii)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("254712345678", "254712345678"),
        ("+254712345678", "254712345678"),
        ("0712345678", "254712345678"),
        ("712345678", "254712345678"),
        ("0712 345 678", "254712345678"),
        (" 254-712-345-678 ", "254712345678"),
        ("(0712) 345.678", "254712345678"),
        ("0112345678", "254112345678"),
        ("+254 110 000 000", "254110000000"),
    ],
)
def test_number_in_any_form_becomes_twelve_digits(typed: str, stored: str) -> None:
    assert phone.normalise(typed) == stored


@pytest.mark.parametrize(
    "typed",
    [
        "",
        " ",
        "admin",
        "2540712345678",
        "+2540712345678",
        "25471234567",
        "2547123456789",
        "254212345678",
        "0812345678",
        "255712345678",
        "++254712345678",
        "00254712345678",
        "0712345678\n",
        "0712\t345678",
        "0712345678x",
        "٠٧١٢٣٤٥٦٧٨",
        "07123٤5678",
        "\uff10712345678",
        "0712345678\x00",
        None,
        712345678,
        712345678.0,
        b"0712345678",
    ],
)
def test_text_that_is_not_a_kenyan_mobile_number_is_refused(typed: object) -> None:
    with pytest.raises(phone.NotAPhoneNumber):
        phone.normalise(typed)  # type: ignore[arg-type]


@given(number=NUMBERS, prefix=st.sampled_from(["", "0", "254", "+254"]), data=st.data())
def test_blanks_and_prefixes_do_not_change_the_stored_number(number: str, prefix: str, data: st.DataObject) -> None:
    # given: blanks, dashes, dots and brackets anywhere
    blanks = data.draw(st.lists(st.sampled_from(" -().") | st.just(""), min_size=14, max_size=14))
    typed = "".join(blank + digit for blank, digit in zip(blanks, prefix + number, strict=False))

    # when, then
    assert phone.normalise(typed) == "254" + number


@given(st.text(max_size=20))
def test_any_text_becomes_twelve_ascii_digits_or_is_refused(typed: str) -> None:
    try:
        stored = phone.normalise(typed)
    except phone.NotAPhoneNumber:
        return
    assert stored.isascii()
    assert stored.isdigit()
    assert len(stored) == 12
    assert stored[:4] in ("2547", "2541")
    assert phone.normalise(stored) == stored


def test_masked_number_shows_only_its_ends() -> None:
    assert phone.masked("254712345678") == "2547****678"
