"""What members are told: written in the transaction that makes it true, so that nobody is told what did not happen."""

from datetime import datetime

from django.db.models import QuerySet

from users.models import Notice


def tell(*, user_id: int, kind: str, subject: str, event: str, text: str, at: datetime) -> None:
    """Leave a notice for a member, in the caller's transaction.

    Idempotent: by kind, subject and event.
    """
    Notice.objects.bulk_create(
        [Notice(user_id=user_id, kind=kind, subject=subject, event=event, text=text[:500], created_at=at)],
        ignore_conflicts=True,
    )


def of(user_id: int) -> QuerySet[Notice]:
    """A member's notices, newest first."""
    return Notice.objects.filter(user_id=user_id).order_by("-pk")
