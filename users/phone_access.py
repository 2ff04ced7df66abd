"""A member's whole phone number, for whoever may see it; that they saw it is recorded first."""

from datetime import datetime

from django.db import transaction

from users import audit
from users.models import CustomUser
from users.refusal import Refusal


class MemberNotFound(Refusal):
    """There is no member with that id."""


def phone_number(*, member_id: int, reason: str, by: audit.Actor, at: datetime) -> str:
    """The member's number in full; the look is in the audit trail before it is shown. Raises: MemberNotFound."""
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
