"""Pages of long lists, newest first. Each page starts below an id, so all pages cost the same."""

from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

SIZE = 50
LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Paged:
    """One page of rows. `next` is the id below which the following page starts, None on the last page."""

    rows: list[Any]
    next: int | None
    is_later: bool


def paged(request: HttpRequest, rows: QuerySet[Any], *, by: str = "pk", size: int = SIZE) -> Paged:
    """Return the page below the request's `before`, with rows in falling order of the integer field `by`."""
    before = number(request.GET.get("before", ""))
    below = rows.filter(**{f"{by}__lt": before}) if before else rows
    ahead = list(below.order_by(f"-{by}")[: size + 1])
    last = getattr(ahead[size - 1], by) if len(ahead) > size else None
    return Paged(ahead[:size], last, before is not None)


def number(typed: str) -> int | None:
    """Return a positive integer typed into an address or a search field, or None for any other text."""
    if typed.isascii() and typed.isdigit() and len(typed) <= 19 and 0 < int(typed) <= LARGEST_ID:
        return int(typed)
    return None
