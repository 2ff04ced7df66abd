"""Long lists by pages that cost the same wherever they are: newest first, each page begins below an id."""

from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

SIZE = 50
LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Paged:
    """One page of rows. `next` is where the following page begins, None at the end."""

    rows: list[Any]
    next: int | None
    is_later: bool


def paged(request: HttpRequest, rows: QuerySet[Any], *, by: str = "pk", size: int = SIZE) -> Paged:
    """The page that the request's `before` names, of rows ordered by a falling whole number."""
    before = number(request.GET.get("before", ""))
    found = list((rows.filter(**{f"{by}__lt": before}) if before else rows).order_by(f"-{by}")[: size + 1])
    last = getattr(found[size - 1], by) if len(found) > size else None
    return Paged(found[:size], last, before is not None)


def number(typed: str) -> int | None:
    """A whole number as typed into an address or a search, or None for anything else."""
    if typed.isascii() and typed.isdigit() and len(typed) <= 19 and 0 < int(typed) <= LARGEST_ID:
        return int(typed)
    return None
