"""Access to whole phone numbers of members. Each access is recorded first."""

from datetime import datetime

from django.db import transaction

from users import audit
from users.models import CustomUser
from users.refusal import Refusal


class MemberNotFound(Refusal):
    """No member has this id."""


def phone_number(*, member_id: int, reason: str, by: audit.Actor, at: datetime) -> str:
    """Record the access in the audit trail, then return the member's whole number.

    Locks: the end of the audit trail.
    Raises: MemberNotFound.
    """
    with transaction.atomic(durable=True):
        member = CustomUser.objects.filter(pk=member_id).first()
        if member is None:
            raise MemberNotFound(f"There is no member {member_id}.")
        audit.record(
            action="member.phone_opened",
            by=by,
            subject=f"member:{member_id}",
            before={},
            after={},
            at=at,
            reason=reason.strip()[:300],
        )
    return member.phone_number
