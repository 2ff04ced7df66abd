"""Notes of staff about a member: added, never edited, and each is in the audit trail."""

from datetime import datetime

from django.db import transaction

from users import audit
from users.models import CustomUser, MemberNote
from users.refusal import Refusal

LONGEST = 2_000


class NoteRefused(Refusal):
    """A note has words in it, up to LONGEST characters, and is about a member that exists."""


def add(*, member_id: int, text: str, by: audit.Actor, at: datetime) -> MemberNote:
    """Write a note about a member. Raises: NoteRefused."""
    words = text.strip()
    if not words or len(words) > LONGEST or "\x00" in words:
        raise NoteRefused(f"A note has words, at most {LONGEST} characters.")
    with transaction.atomic(durable=True):
        if by.user_id is None or not CustomUser.objects.filter(pk=member_id).exists():
            raise NoteRefused(f"A person writes a note, about a member; there is no member {member_id}.")
        note = MemberNote.objects.create(member_id=member_id, author_id=by.user_id, at=at, text=words)
        audit.record(
            action="member.note",
            by=by,
            subject=f"member:{member_id}",
            before={},
            after={"note": note.pk, "characters": len(words)},
            at=at,
        )
    return note
