"""Notices to members about changed terms of a market that they have bet on.

A change may concern a million members. So the notices are not part of the change's transaction: a sweep writes them, a
chunk of members at a time, and keeps its place in the version's row.
"""

from collections.abc import Callable
from datetime import datetime

from django.db import transaction

from markets import terms
from markets.models import Bet, Terms
from users import notifications

CHUNK = 1_000
EVERYBODY_TOLD = 2**62
LONGEST_VALUE = 60


def to_tell(limit: int) -> list[int]:
    """Return the ids of the versions of terms whose members have not all got a notice, oldest first."""
    rows = Terms.objects.filter(notice_until__isnull=False, told_up_to__lt=EVERYBODY_TOLD)
    return list(rows.order_by("pk").values_list("pk", flat=True)[:limit])


def tell(*, terms_id: int, at: datetime, keep_going: Callable[[], bool]) -> bool:
    """Write the notices of one change as far as `keep_going` allows, and return True if all are written.

    Members whose stakes are still in the pool get one. Safe to kill at any line.
    Idempotent: a member gets one notice for each version.
    Locks: the version's row, for a chunk of members.
    """
    while True:
        with transaction.atomic(durable=True):
            version = Terms.objects.select_for_update(no_key=True, of=("self",)).get(pk=terms_id)
            if version.told_up_to >= EVERYBODY_TOLD:
                return True
            bets = Bet.objects.filter(market=version.market_id, taken_back_at=None, user_id__gt=version.told_up_to)
            bets = bets.filter(terms_version__lt=version.version)
            members = list(bets.order_by("user_id").values_list("user_id", flat=True).distinct()[:CHUNK])
            words = text(version)
            for user_id in members:
                notifications.tell(
                    user_id=user_id,
                    kind="TERMS",
                    subject=f"market:{version.market_id}",
                    event=f"{version.version}:{user_id}",
                    text=words,
                    at=at,
                )
            version.told_up_to = members[-1] if len(members) == CHUNK else EVERYBODY_TOLD
            version.save(update_fields=["told_up_to"])
        if not keep_going():
            return False


def text(version: Terms) -> str:
    """Write the notice about a version: the differences, and until when a stake can be taken back."""
    changes = "; ".join(
        f"{each.label}: {_short(each.before)} → {_short(each.after)}" for each in terms.differences_of(version)
    )
    until = terms.in_words("end_date", version.notice_until)
    return (
        f"The terms of market {version.market_id} changed. {changes}. Your bets stand. Until {until} (Nairobi) you can"
        " take back the stakes that you made before. After that the new terms apply to all bets."
    )


def _short(value: str) -> str:
    one_line = " ".join(value.split()) or "none"
    return one_line if len(one_line) <= LONGEST_VALUE else f"{one_line[: LONGEST_VALUE - 1]}…"
