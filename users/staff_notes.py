"""Notes that staff write about members. Notes are never edited; the audit trail has an entry for each note.

A note is sealed under its member's key.
"""

from datetime import datetime

from django.db import transaction

from users import audit, personal
from users.models import CustomUser, MemberNote
from users.refusal import Refusal

LONGEST = 2_000


class NoteRefused(Refusal):
    """The note is empty or too long, or its member or author does not exist."""


def add(*, member_id: int, text: str, by: audit.Actor, at: datetime) -> MemberNote:
    """Add a note about a member.

    Locks: the end of the audit trail.
    Raises: NoteRefused.
    """
    note_text = text.strip()
    if not note_text or len(note_text) > LONGEST or "\x00" in note_text:
        raise NoteRefused(f"Write a note of 1 to {LONGEST} characters. Nothing was saved.")
    with transaction.atomic(durable=True):
        if by.user_id is None or not CustomUser.objects.filter(pk=member_id).exists():
            raise NoteRefused(f"There is no member {member_id}, or nobody is logged in. Nothing was saved.")
        sealed = personal.seal(member_id, note_text)
        note = MemberNote.objects.create(member_id=member_id, author_id=by.user_id, at=at, text=sealed)
        audit.record(
            action="member.note",
            by=by,
            subject=f"member:{member_id}",
            before={},
            after={"note": note.pk, "characters": len(note_text)},
            at=at,
        )
    return note
