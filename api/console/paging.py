"""Pages of long lists, newest rows first.

A page starts below a given id and counts no rows, so the last page costs as much as the first.
"""

from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

SIZE = 50
LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Paged:
    """One page of rows. The following page starts below the id `next`. `next` is None on the last page."""

    rows: list[Any]
    next: int | None
    is_later: bool


def paged(request: HttpRequest, rows: QuerySet[Any], *, by: str = "pk", size: int = SIZE) -> Paged:
    """Return one page of rows, sorted by the integer field `by` from the largest value down.

    The page starts below the request's parameter `before`, or at the largest value without it.
    """
    before = number(request.GET.get("before", ""))
    below = rows.filter(**{f"{by}__lt": before}) if before else rows
    ahead = list(below.order_by(f"-{by}")[: size + 1])
    last = getattr(ahead[size - 1], by) if len(ahead) > size else None
    return Paged(ahead[:size], last, before is not None)


def number(typed: str) -> int | None:
    """Return the positive integer in a text that a person typed, or None if the text is anything else."""
    if typed.isascii() and typed.isdigit() and len(typed) <= 19 and 0 < int(typed) <= LARGEST_ID:
        return int(typed)
    return None
