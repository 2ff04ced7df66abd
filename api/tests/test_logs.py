"""Tests of api/logs.py: log lines show no phones and tokens, and callers cannot forge lines."""

import logging
import sys

import pytest

from api.logs import MaskingFormatter

TOKEN = "0123456789abcdef" * 4


def line(message: str, *, error: BaseException | None = None) -> str:
    """Return the line that the formatter writes for a message, with the traceback of an error."""
    record = logging.LogRecord("kasoko", logging.INFO, "file.py", 1, message, None, None)
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return MaskingFormatter("{levelname}: {message}", style="{").format(record)


@pytest.mark.parametrize(
    ("written", "masked"),
    [
        ("254712345678", "2547****678"),
        ("+254712345678", "2547****678"),
        ("+254 712 345 678", "2547****678"),
        ("0712345678", "2547****678"),
        ("0712-345-678", "2547****678"),
        ("0110 345 678", "2541****678"),
    ],
)
def test_phone_in_any_spelling_is_masked(written: str, masked: str) -> None:
    assert line(f"Login of {written}: refused") == f"INFO: Login of {masked}: refused"
    assert written not in line("It failed.", error=ValueError(written))


@pytest.mark.parametrize("text", ["SGL0712345678X", "amount=1071234567.80", "20712345678901", "market 712345678"])
def test_other_numbers_are_not_masked(text: str) -> None:
    assert line(text) == f"INFO: {text}"


def test_tokens_are_masked() -> None:
    assert line(f"POST /api/payments/b2c-callback/{TOKEN}/") == "INFO: POST /api/payments/b2c-callback/…89abcdef/"
    assert "ksk_" not in line("Authorization: Bearer ksk_0123abcd")


@pytest.mark.parametrize("typed", ["a\nCRITICAL: forged", "a\r\x1b[2K", "a\u2028b", "a\u202eb", "a\x00b", "a\x85b"])
def test_caller_cannot_forge_a_line_or_move_the_cursor(typed: str) -> None:
    for written in (line(f"Question: {typed}"), line("It failed.", error=ValueError(typed)).splitlines()[-1]):
        assert not set(written) & set("\n\r\x1b\u2028\u202e\x00\x85")
    assert line(f"Question: {typed}").startswith("INFO: Question: a\\")


def test_lines_of_a_traceback_stay() -> None:
    assert len(line("It failed.", error=ValueError("why")).splitlines()) > 3
