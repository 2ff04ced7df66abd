"""Erasure of a member's personal texts, by destroying their key."""

from datetime import datetime

from django.db import transaction

from users import audit, personal
from users.models import CustomUser
from users.refusal import Refusal


class ErasureRefused(Refusal):
    """The member does not exist, may still use the account, or was erased before."""


def erase(*, member_id: int, reason: str, by: audit.Actor, at: datetime) -> CustomUser:
    """Destroy the key of a member's personal texts, for ever. Only the owner of the tables may do it.

    Locks: the member, the end of the audit trail.
    Raises: ErasureRefused; then nothing was erased.
    """
    with transaction.atomic(durable=True):
        member = CustomUser.objects.select_for_update(no_key=True).filter(pk=member_id).first()
        if member is None:
            raise ErasureRefused(f"There is no member {member_id}. Nothing was erased.")
        if member.is_active or member.balance:
            raise ErasureRefused(f"{member} is not suspended, or has money here. Nothing was erased.")
        if not personal.destroy(member.pk):
            raise ErasureRefused(f"The personal texts of {member} were erased before.")
        # The reason is a value and no `reason`, because that one would be sealed under the destroyed key.
        after = {"grounds": reason[:300]}
        audit.record(action="member.erased", by=by, subject=f"member:{member.pk}", before={}, after=after, at=at)
    return member
