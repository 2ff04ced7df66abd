"""Masking of log lines: phone numbers, tokens of callback addresses, bearer tokens, keys, control characters."""

import logging
import re
from typing import Any

# A mark between the digits: one character, in brackets perhaps, or written as in a URL (%20).
_GAP = r"(?:[ .()\u00a0-]|%20|%28|%29|%2[Dd]|\\t|\\xa0){0,3}"
# In front of a phone: no digit and no letter, except the letter of an escape such as %2B or \n.
_BEFORE = r"(?:(?<![0-9A-Za-z])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrtfvb])|(?<=\\x[0-9a-f]{2})|(?<=\\u[0-9a-f]{4}))"
_AFTER = r"(?![0-9A-Za-z])"
# A Kenyan mobile number as people and programs write it: 254712345678, +254 (0)712 345 678, 0712-345-678.
_PHONE = (
    rf"{_BEFORE}(?:(?:\+|00)?254{_GAP}(?:0{_GAP})?|0{_GAP})(?P<first>[17])"
    + rf"(?:{_GAP}[0-9]){{5}}{_GAP}(?P<last>[0-9](?:{_GAP}[0-9]){{2}}){_AFTER}"
)
# The last digits of a callback token stay, so that an engineer can find the callback.
_ADDRESS = r"[0-9A-Fa-f]{56,}(?=[0-9A-Fa-f]{8})"
# Bearer tokens, API keys, and credentials as HTTP, M-Pesa and URLs write them.
_KEY = (
    r"\bksk_[0-9a-f]+|\bkak_[0-9A-Za-z_-]+|(?<=://)[^/:@\s]*:[^/@\s]+(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic ))[0-9A-Za-z._~+/=-]{16,}"
    r"""|(?i:(?<=securitycredential": ")|(?<=securitycredential":")|(?<=securitycredential': '))[^"']+"""
)
_SECRET = re.compile(f"{_PHONE}|{_ADDRESS}|{_KEY}")
# Characters that move the cursor or end a line. A tab and the line ends of a traceback stay.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _mask(secret: re.Match[str]) -> str:
    return f"254{secret['first']}****{re.sub('[^0-9]', '', secret['last'])[-3:]}" if secret["last"] else "…"


def _escape(control: re.Match[str]) -> str:
    return control[0].encode("unicode_escape").decode("ascii")


class MaskingFormatter(logging.Formatter):
    """Formatter that masks whole lines, tracebacks included.

    Phones become `2547****678`. Of a callback token the last eight characters remain. A bearer token or a key is masked
    completely. Line breaks and escape sequences in a message are written as text, so that nobody can forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(_mask, super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _CONTROL.sub(_escape, record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(_CONTROL.sub(_escape, line) for line in super().formatException(ei).split("\n"))
