"""Removal of secrets and phone numbers from texts for logs. Pure."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_NAMED_SECRET = re.compile(
    r"(?i)(\"?(?:SecurityCredential|Password|access_token|Authorization)\"?\s*[:=]\s*\"?)(?:Bearer |Basic )?[^\"\s,}&]+"
)
_TOKEN_AFTER_WORDS = re.compile(r"(?i)(access token\W{1,4})[A-Za-z0-9_.-]{12,}")
_LONG_SECRET = re.compile(r"[A-Za-z0-9+/_-]{60,}={0,2}")
_PHONE_IN_TEXT = re.compile(r"(?<![0-9])(?:\+?254|0)([17])[0-9]{5}([0-9]{3})(?![0-9])")


def redact(text: str, *secrets: str) -> str:
    """Remove `secrets`, tokens, credentials and control characters, and mask phones as `2547****678`."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    text = _NAMED_SECRET.sub(r"\1[redacted]", _CONTROL.sub(" ", text))
    text = _LONG_SECRET.sub("[redacted]", _TOKEN_AFTER_WORDS.sub(r"\1[redacted]", text))
    return _PHONE_IN_TEXT.sub(r"254\1****\2", text)
