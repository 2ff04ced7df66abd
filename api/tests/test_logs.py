"""Tests of api/logs.py: log lines show no phones and tokens, and callers cannot forge lines."""

import logging
import sys
from datetime import datetime
from pathlib import Path

import pytest

from api.logs import MaskingFormatter
from testing import builders
from users import audit, audit_heads

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
        ("07 12 34 56 78", "2547****678"),
        ("00254712345678", "2547****678"),
        ("+254 (0)712 345678", "2547****678"),
        ("0712\u00a0345\u00a0678", "2547****678"),
    ],
)
def test_phone_in_any_spelling_is_masked(written: str, masked: str) -> None:
    assert line(f"Login of {written}: refused") == f"INFO: Login of {masked}: refused"
    assert written not in line("It failed.", error=ValueError(written))


@pytest.mark.parametrize(
    "written",
    [
        "/me?phone=%2B254712345678",
        "q=%200712345678",
        "q=%2B254%20712%20345%20678",
        "\n0712345678",
        "\x1b0712345678",
        "(0712) 345678",
    ],
)
def test_phone_in_a_url_or_after_an_escape_is_masked(written: str) -> None:
    for text in (written, repr(written), written.replace("q=%200712345678", "%200712345678")):
        shown = line(f"GET {text} 404")
        assert "345678" not in shown
        assert "345%20678" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "SGL0712345678X",
        "amount=1071234567.80",
        "20712345678901",
        "market 712345678",
        "0a1b2c3d-0712-4345-8678-0123456789ab",
        "2026-01-10 12:34:56 GET https://kasoko.app/a:b@c",
    ],
)
def test_other_numbers_are_not_masked(text: str) -> None:
    assert line(text) == f"INFO: {text}"


def test_tokens_are_masked() -> None:
    assert line(f"POST /api/payments/b2c-callback/{TOKEN}/") == "INFO: POST /api/payments/b2c-callback/…89abcdef/"
    assert TOKEN.upper()[:56] not in line(f"GET /?next=%2F{TOKEN.upper()}")
    assert "ksk_" not in line("Authorization: Bearer ksk_0123abcd")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer kak_S3cret-S3cret_S3cret",
        "key kak_S3cret",
        "Authorization: Bearer S3cretS3cretS3cret",
        "Authorization: Basic S3cretS3cretS3cret==",
        '{"SecurityCredential": "S3cret"}',
        "{'SecurityCredential': 'S3cret'}",
        "Cannot connect to rediss://:S3cret@redis:6379/0",
        "postgresql://kasoko_app:S3cret:S3cret@postgres/kasoko",
    ],
)
def test_keys_and_passwords_are_masked(text: str) -> None:
    assert "S3cret" not in line(text)
    assert "S3cret" not in line("It failed.", error=ValueError(text))


def test_long_line_is_masked_in_time_in_proportion_to_its_length() -> None:
    """A pattern that backtracks would need minutes, and a caller could stop a process."""
    for text in ("://" + "a:" * 50_000, "07" + " 1" * 50_000, "0" * 100_000, "254 " * 25_000, TOKEN * 2_000):
        assert len(line(text)) < 110_000


@pytest.mark.parametrize("typed", ["a\nCRITICAL: forged", "a\r\x1b[2K", "a\u2028b", "a\u202eb", "a\x00b", "a\x85b"])
def test_caller_cannot_forge_a_line_or_move_the_cursor(typed: str) -> None:
    for written in (line(f"Question: {typed}"), line("It failed.", error=ValueError(typed)).splitlines()[-1]):
        assert not set(written) & set("\n\r\x1b\u2028\u202e\x00\x85")
    assert line(f"Question: {typed}").startswith("INFO: Question: a\\")


def test_lines_of_a_traceback_stay() -> None:
    assert len(line("It failed.", error=ValueError("why")).splitlines()) > 3


def test_head_of_the_audit_trail_is_not_masked(
    db: None, tmp_path: Path, at: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    audit.record(action="test", by=builders.actor(), subject="member:1", before={}, after={}, at=at)
    with caplog.at_level(logging.INFO, logger="kasoko.audit"):
        head = audit_heads.keep(tmp_path / "heads", at=at)
    assert head is not None
    assert f"{head.hash[:32]} {head.hash[32:]}" in line(caplog.messages[-1])


def test_log_of_the_web_server_is_masked() -> None:
    """gunicorn has its own handlers, and writes the address of a request that it cannot read."""
    for name in ("gunicorn.error", "gunicorn.access"):
        formatters = [handler.formatter for handler in logging.getLogger(name).handlers]
        assert any(isinstance(formatter, MaskingFormatter) for formatter in formatters), name
        assert not logging.getLogger(name).propagate, name
