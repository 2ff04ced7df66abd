"""Strict reader of JSON objects from untrusted callers, with a second entrance for M-Pesa's own spellings. Pure."""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_BYTES = 16 * 1024
MAX_DEPTH = 16
MAX_DIGITS = 30

# A string literal includes its brackets. An unterminated literal includes the rest of the text, so the scan is linear.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Unreadable(Exception):
    """A body that cannot be read as one of Daraja's messages.

    `reason` says why not. It never quotes the body, because the body holds personal details.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_object(body: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read one JSON object within limits of size, depth and digits. Read floats as Decimal.

    Raises: Unreadable for a body that
    - exceeds a limit, is not UTF-8, is not an object, or holds NaN or Infinity;
    - holds a key twice in one object, because two readers could then see two amounts;
    - holds text that PostgreSQL cannot store (NUL, lone surrogates).
    """
    _refuse_length(body, max_bytes)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8") from None
    return _object(text, raw_controls=False)


def read_message(body: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read one JSON object that M-Pesa sent, as `read_object`, but accept three faults of its servers.

    The faults were seen in production: a byte order mark before the object, names in Windows-1252, and unescaped
    control characters inside texts. None of them can change an id, an amount or a code.
    Raises: Unreadable.
    """
    _refuse_length(body, max_bytes)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = body.decode("cp1252")
        except UnicodeDecodeError:
            raise Unreadable("neither UTF-8 nor Windows-1252") from None
    return _object(text, raw_controls=True)


def _refuse_length(body: bytes, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise Unreadable(f"longer than {max_bytes} bytes")
    if not body.strip():
        raise Unreadable("empty")


def _object(text: str, *, raw_controls: bool) -> dict[str, Any]:
    _refuse_depth(text)
    try:
        root = json.loads(
            text,
            strict=not raw_controls,
            parse_float=_bounded_decimal,
            parse_int=_bounded_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=object_without_duplicates,
        )
    except (ValueError, InvalidOperation):
        raise Unreadable("not JSON") from None
    if not isinstance(root, dict):
        raise Unreadable("not an object")
    _refuse_unstorable(root)
    return root


def _refuse_depth(text: str) -> None:
    depth = 0
    for token in _BRACKETS.finditer(text):
        opening = token.group()[0]
        depth += (opening in "[{") - (opening in "]}")
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")


def _refuse_constant(name: str) -> None:
    raise Unreadable(f"holds {name}")


def _bounded_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Unreadable("number too long")
    return int(text)


def _bounded_decimal(text: str) -> Decimal:
    number = Decimal(text) if len(text) <= 2 * MAX_DIGITS else None
    # A short text can mean a number of a billion digits, so the exponent has a limit too.
    if number is None or not -MAX_DIGITS <= number.adjusted() <= MAX_DIGITS:
        raise Unreadable("number too long")
    return number


def object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its pairs. Raises: Unreadable if a key appears twice."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Unreadable("a key appears twice in one object")
    return fields


def _refuse_unstorable(value: Any) -> None:
    if isinstance(value, str) and _UNSTORABLE.search(value):
        raise Unreadable("holds NUL or a lone surrogate")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unstorable(key)
            _refuse_unstorable(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_unstorable(inner)
