"""Fields of Daraja's messages: texts, amounts, times, phones and parameter lists. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from payments.mpesa.strict_json import Unreadable

NAIROBI = ZoneInfo("Africa/Nairobi")

Value: TypeAlias = str | Decimal | None
_AMOUNT = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")
_DOTTED_TIME = re.compile(r"([0-3][0-9])\.([01][0-9])\.(20[0-9]{2}) ([0-2][0-9]):([0-5][0-9]):([0-5][0-9])")
_DIGIT_TIME = re.compile(r"(20[0-9]{2})([01][0-9])([0-3][0-9])([0-2][0-9])([0-5][0-9])([0-5][0-9])")
_FULL_PHONE = re.compile(r"\+?(?:254|0)([17][0-9]{8})(?![0-9*xX])")
_VISIBLE_PHONE = re.compile(r"\+?[0-9*xX]{4,13}(?![0-9A-Za-z*])")
# M-Pesa also writes blanks around its mask: "2547 ***** 123".
_SPACED_MASK = re.compile(r"(\+?[0-9]{1,9})\s{0,2}(\*{2,9})\s{0,2}([0-9]{0,9})(?![0-9A-Za-z*])")
_MASK = re.compile(r"[*xX]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def read_text(value: Any) -> str | None:
    """Read an id, which Daraja sends as text, as a number or as null. A blank counts as absent. Raises: Unreadable."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unreadable("an id or text of another type")
    return _plain(str(value))


def read_code(fields: Mapping[str, Any]) -> str:
    """Read the ResultCode as text. Raises: Unreadable if it is absent or of another type."""
    if "ResultCode" not in fields:
        raise Unreadable("no ResultCode")
    # Test for None, because the code of a payment is the integer 0 or the text "0", and 0 is false in Python.
    return read_text(fields["ResultCode"]) or ""


def read_value(value: Value) -> str | None:
    """Read a parameter's value as text. A blank counts as absent."""
    return format(value, "f") if isinstance(value, Decimal) else _plain(value or "")


def _plain(text: str) -> str | None:
    """Return a text without control characters and the blanks around it, because texts go to logs and pages."""
    return _CONTROL.sub(" ", text).strip() or None


def read_amount(value: Value) -> Decimal | None:
    """Read an amount in shillings. Return None for any other form."""
    text = read_value(value)
    return Decimal(text) if text and _AMOUNT.fullmatch(text) else None


def read_time(value: Value) -> datetime | None:
    """Read a time in one of Daraja's two forms: `DD.MM.YYYY HH:MM:SS` or fourteen digits, Nairobi time.

    Return None for any other form. Units: the returned time is in UTC.
    """
    text = read_value(value) or ""
    if dotted := _DOTTED_TIME.fullmatch(text):
        day, month, year, hour, minute, second = map(int, dotted.groups())
    elif digits := _DIGIT_TIME.fullmatch(text):
        year, month, day, hour, minute, second = map(int, digits.groups())
    else:
        return None
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=NAIROBI).astimezone(UTC)
    except ValueError:
        return None


def full_phone(party: str | None) -> str | None:
    """Return the complete number at the start of a party's name, as `2547XXXXXXXX`."""
    match = _FULL_PHONE.match(party or "")
    return f"254{match.group(1)}" if match else None


def visible_phone(party: str | None) -> str | None:
    """Return the number at the start of a party's name as M-Pesa shows it, complete or masked, without blanks."""
    if spaced := _SPACED_MASK.match(party or ""):
        return "".join(spaced.groups())
    match = _VISIBLE_PHONE.match(party or "")
    # Six digits without a mask are a shortcode, not a phone.
    return match.group() if match and (_MASK.search(match.group()) or len(match.group()) >= 9) else None


def phone_is_compatible(visible: str, phone_number: str) -> bool:
    """Return True if the number that M-Pesa shows, masked or not, can be `phone_number`.

    Units: `visible` looks like `2547****678` or `0722***`; `phone_number` is `2547XXXXXXXX`.
    """
    parts = _MASK.split(visible.strip().removeprefix("+"))
    spellings = (phone_number, "0" + phone_number[3:], phone_number[3:])
    if len(parts) == 1:
        return parts[0] in spellings
    return any(spelling.startswith(parts[0]) and spelling.endswith(parts[-1]) for spelling in spellings)


@dataclass(frozen=True, eq=False, repr=False)
class Parameters(Mapping[str, Value]):
    """The Key/Value list of a result, in order.

    A look-up returns the first value of a repeated key; `all_values` returns every value. Blanks in keys are removed,
    because some samples on the portal write "Originator Conversation ID". A missing Value is None.
    The repr shows only keys, because values name people and phones.
    """

    pairs: tuple[tuple[str, Value], ...] = ()

    def __getitem__(self, key: str) -> Value:
        for name, value in self.pairs:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _ in self.pairs))

    def __len__(self) -> int:
        return len({name for name, _ in self.pairs})

    def __repr__(self) -> str:
        return f"Parameters({', '.join(self)})"

    def all_values(self, key: str) -> tuple[Value, ...]:
        """Return every value of `key` in the order sent. An absent key has no values."""
        return tuple(value for name, value in self.pairs if name == key)


def read_parameters(holder: Any, list_name: str, key_name: str) -> Parameters:
    """Read a parameter list. Raises: Unreadable.

    Daraja sends a list, or a single object instead of a list of one, or nothing (absent, null or empty text).
    Items without a key are skipped, because M-Pesa adds parameters that we do not need.
    """
    items = holder.get(list_name) if isinstance(holder, dict) else holder
    if items is None or items == "":
        return Parameters()
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list):
        raise Unreadable(f"{list_name} is not a list")
    keyed = [item for item in items if isinstance(item, dict) and isinstance(item.get(key_name), str)]
    return Parameters(tuple((item[key_name].replace(" ", ""), parameter_value(item.get("Value"))) for item in keyed))


def parameter_value(value: Any) -> Value:
    """Return a parameter's value, an integer as Decimal.

    A value of another type (boolean, object, list) is None. So it never counts as a match.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    return value if isinstance(value, str | Decimal) else None
