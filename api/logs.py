"""What the log must not show: whole phone numbers and the tokens of callback addresses."""

import logging
import re

_SECRET = re.compile(r"\b(2547|2541)\d{5}(\d{3})\b|\b[0-9a-f]{56}(?=[0-9a-f]{8}\b)|\bksk_[0-9a-f]+")


def _mask(found: re.Match[str]) -> str:
    return f"{found[1]}****{found[2]}" if found[1] else "…"


class MaskingFormatter(logging.Formatter):
    """Formats lines, tracebacks included, with phones as `2547****678` and tokens as their last eight characters."""

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(_mask, super().format(record))
