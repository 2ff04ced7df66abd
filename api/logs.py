"""Masking of log lines: phone numbers, tokens of callback addresses, bearer tokens, control characters."""

import logging
import re
from typing import Any

# A Kenyan mobile number as people and programs write it: 254712345678, +254 712 345 678, 0712-345-678.
_PHONE = r"(?<![0-9A-Za-z])(?:\+?254|0)[ .-]?(?P<first>[17])\d{2}[ .-]?\d{3}[ .-]?(?P<last>\d{3})(?![0-9A-Za-z])"
_SECRET = re.compile(rf"{_PHONE}|\b[0-9a-f]{{56}}(?=[0-9a-f]{{8}}\b)|\bksk_[0-9a-f]+")
# Characters that move the cursor or end a line. A tab and the line ends of a traceback stay.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _mask(secret: re.Match[str]) -> str:
    return f"254{secret['first']}****{secret['last']}" if secret["last"] else "…"


def _escape(control: re.Match[str]) -> str:
    return control[0].encode("unicode_escape").decode("ascii")


class MaskingFormatter(logging.Formatter):
    """Formatter that masks whole lines, tracebacks included.

    Phones become `2547****678`. Of a callback token the last eight characters remain. A bearer token is masked
    completely. Line breaks and escape sequences in a message are written as text, so that nobody can forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(_mask, super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _CONTROL.sub(_escape, record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(_CONTROL.sub(_escape, line) for line in super().formatException(ei).split("\n"))
