"""Previews as JSON, for the cache. Decimals, times and dataclasses, which JSON lacks, become marked objects."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from payments.settlement import preview
from payments.settlement.division import Division

# An object with this one field is a marked value: its kind and its content.
MARK = "$"
DATACLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (preview.Preview, preview.Figures, preview.MemberNote, Division)
}
READERS: dict[str, Callable[[Any], Any]] = {
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "tuple": lambda items: tuple(map(read, items)),
    "mapping": lambda pairs: {read(key): read(value) for key, value in pairs},
}


class NotAPreview(ValueError):
    """The JSON is not one that `write` made."""


def write(value: Any) -> Any:
    """Return a preview, or a part of it, as values of JSON's own types. Raises: TypeError."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Decimal):
        return {MARK: ["decimal", str(value)]}
    if isinstance(value, datetime):
        return {MARK: ["datetime", value.isoformat()]}
    if isinstance(value, date):
        return {MARK: ["date", value.isoformat()]}
    if isinstance(value, tuple):
        return {MARK: ["tuple", [write(item) for item in value]]}
    if isinstance(value, list):
        return [write(item) for item in value]
    if isinstance(value, Mapping):
        return {MARK: ["mapping", [[write(key), write(item)] for key, item in value.items()]]}
    name = type(value).__name__
    if is_dataclass(value) and DATACLASSES.get(name) is type(value):
        return {MARK: [name, {field.name: write(getattr(value, field.name)) for field in fields(value)}]}
    raise TypeError(f"{name} has no form in JSON here.")


def read(stored: Any) -> Any:
    """Return the value that `write` wrote. Raises: NotAPreview."""
    if isinstance(stored, list):
        return [read(item) for item in stored]
    if not isinstance(stored, dict):
        return stored
    try:
        ((mark, (kind, content)),) = stored.items()
        if mark == MARK and kind in DATACLASSES:
            return DATACLASSES[kind](**{name: read(item) for name, item in content.items()})
        return READERS[kind](content)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotAPreview(str(error)) from error
