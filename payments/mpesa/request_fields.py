"""Checks of the fields that we send to Daraja. Pure."""

import re
from functools import lru_cache
from urllib.parse import urlsplit

from payments.mpesa.redaction import redact

# Daraja silently refuses a callback URL that contains one of these words anywhere, in any case.
FORBIDDEN_WORDS = ("m-pesa", "mpesa", "safaricom", "exec", "exe", "cmd", "sql", "query")

_OCID = re.compile(r"[A-Za-z0-9_-]{1,36}")
_PHONE = re.compile(r"254[17][0-9]{8}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]+")
_FORBIDDEN = re.compile("|".join(FORBIDDEN_WORDS), re.IGNORECASE)


def checked_amount(amount_shillings: int) -> int:
    """Return the amount if it is a positive int of whole shillings. Raises: TypeError; ValueError."""
    # A boolean is an int in Python, so it is excluded. A Decimal or a float may hold cents, which M-Pesa does not move.
    if type(amount_shillings) is not int:
        raise TypeError(f"An amount must be an int of whole shillings, not {type(amount_shillings).__name__}.")
    if amount_shillings <= 0:
        raise ValueError("An amount must be above zero.")
    return amount_shillings


def checked_phone(phone_number: str) -> str:
    """Return the phone number if it has the form that Daraja takes. Raises: ValueError."""
    if not _PHONE.fullmatch(phone_number):
        raise ValueError(f"{redact(phone_number)!r} does not have the form 2547XXXXXXXX or 2541XXXXXXXX.")
    return phone_number


def checked_ocid(originator_conversation_id: str) -> str:
    """Return the id if Daraja takes it. Raises: ValueError."""
    if not _OCID.fullmatch(originator_conversation_id):
        raise ValueError("An originator conversation id must have 1 to 36 letters, digits, dashes or underscores.")
    return originator_conversation_id


def checked_url(url: str) -> str:
    """Return the callback URL if Daraja takes it. Raises: ValueError."""
    scheme, separator, rest = url.partition("://")
    if not _names_host(scheme + separator + rest.partition("/")[0]):
        raise ValueError("A callback URL must be http(s)://host/path.")
    if word := _FORBIDDEN.search(url):
        raise ValueError(f"Daraja refuses callback URLs that contain {word[0].lower()!r}.")
    return url


@lru_cache(maxsize=32)
def _names_host(address: str) -> bool:
    """Return True if the first part of a URL, before its path, is http(s) with a host. The hosts are few: a cache."""
    parts = urlsplit(address)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def plain_text(text: str, name: str) -> str:
    """Reduce a text to at most 100 letters, digits and blanks. Raises: ValueError if fewer than two are left."""
    plain = _NOT_PLAIN.sub(" ", text).strip()[:100].strip()
    if len(plain) < 2:
        raise ValueError(f"{name} must have at least two letters or digits.")
    return plain


def short_text(text: str, longest: int, name: str) -> str:
    """Return the text if it has 1 to `longest` permitted characters. Raises: ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9 -]+", text) or len(text) > longest:
        raise ValueError(f"{name} must have 1 to {longest} letters, digits, blanks or dashes.")
    return text
