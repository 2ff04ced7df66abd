"""Tests of the member pages: the search, the full phone number, and notes."""

from django.test import Client

from testing import builders, console_scenes
from testing.console_scenes import client_of, page_text, submit
from users.models import AuditEntry, MemberNote


def test_full_phone_is_shown_for_a_reason_and_recorded(console: Client) -> None:
    person = builders.member(phone_number="0712345678")
    assert console.post(f"/admin/members/{person.pk}/phone/", {"reason": "Calling."}).status_code == 403
    support = client_of(console_scenes.staff("support"))
    path = f"/admin/members/{person.pk}/phone/"
    for shown in (support.get(path), support.post(path, {"reason": " "})):
        assert "2547****678" in page_text(shown)
        assert "254712345678" not in page_text(shown)
    assert AuditEntry.objects.filter(action="member.phone_opened").count() == 0
    assert "254712345678" in page_text(support.post(path, {"reason": "Calling about payout 7."}))
    entry = AuditEntry.objects.get(action="member.phone_opened")
    assert (entry.subject, entry.reason) == (f"member:{person.pk}", "Calling about payout 7.")
    assert "254712345678" not in page_text(support.get(f"/admin/members/{person.pk}/"))


def test_note_is_saved_escaped_and_recorded(console: Client) -> None:
    person = builders.member()
    assert "please fill" in submit(console, f"/admin/members/{person.pk}/note/", text="  ")
    assert "at most 2000" in submit(console, f"/admin/members/{person.pk}/note/", text="x" * 2_001)
    page = submit(console, f"/admin/members/{person.pk}/note/", text="Called.\n<b>Happy</b>")
    assert "The note is saved." in page
    assert "&lt;b&gt;Happy" in page
    assert "Grace Wambui" in page
    assert MemberNote.objects.count() == AuditEntry.objects.filter(action="member.note").count() == 1


def test_members_are_found_by_phone_name_or_number(console: Client) -> None:
    person = builders.member(full_name="Wanjiku Kamau", phone_number="0712345678")
    other = builders.member(full_name="Otieno")
    for typed in ("0712345678", "wanjiku", str(person.pk)):
        page = page_text(console.get(f"/admin/members/?q={typed}"))
        assert f"/admin/members/{person.pk}/" in page
        assert f"/admin/members/{other.pk}/" not in page
