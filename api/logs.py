"""Masking of log lines: whole phone numbers, tokens of callback addresses, bearer tokens."""

import logging
import re

_SECRET = re.compile(r"\b(2547|2541)\d{5}(\d{3})\b|\b[0-9a-f]{56}(?=[0-9a-f]{8}\b)|\bksk_[0-9a-f]+")


def _mask(secret: re.Match[str]) -> str:
    return f"{secret[1]}****{secret[2]}" if secret[1] else "…"


class MaskingFormatter(logging.Formatter):
    """Formatter that masks whole lines, tracebacks included.

    Phones become `2547****678`. Of a callback token the last eight characters remain. A bearer token is
    masked completely.
    """

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(_mask, super().format(record))
