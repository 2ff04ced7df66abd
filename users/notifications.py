"""Notices to members.

A notice is written in the same transaction as its event. So no member is told of an event that was rolled back.
"""

from datetime import datetime

from django.db.models import QuerySet

from users import personal
from users.models import Notice


def tell(*, user_id: int, kind: str, subject: str, event: str, text: str, at: datetime) -> None:
    """Add a notice for a member, in the caller's transaction. The text is cut at 500 characters, and
    sealed under the member's key.

    `subject` and `event` are keys, such as "dispute:<id>" and "ANSWERED:<id>", not texts.
    Idempotent: a second notice of the same kind, subject and event is not added.
    """
    sealed = personal.seal(user_id, text[:500])
    Notice.objects.bulk_create(
        [Notice(user_id=user_id, kind=kind, subject=subject, event=event, text=sealed, created_at=at)],
        ignore_conflicts=True,
    )


def notices(user_id: int) -> QuerySet[Notice]:
    """Return a member's notices, newest first."""
    return Notice.objects.filter(user_id=user_id).order_by("-pk")
