"""Personal texts under a key per member: sealed where they are stored, and erased with the key."""

from collections.abc import Iterable
from datetime import datetime
from typing import cast

import pytest
from django.conf import Settings
from django.contrib.auth.models import Group
from django.db import IntegrityError, ProgrammingError, connection, transaction
from django.http import StreamingHttpResponse

from testing import console_scenes, database
from testing.builders import member
from testing.console_scenes import client_of, page_text
from users import audit, erasure, notifications, personal, staff_notes
from users.models import AuditEntry, CustomUser, MemberKey, MemberNote, Notice

BY = audit.Actor(user_id=None, source="test")
PHONE = "254712345678"


def stored(table: str, column: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT string_agg({column}, ' ') FROM {table}")  # noqa: S608 - the test names both
        return str(cursor.fetchone()[0])


def record_phone(user: CustomUser, at: datetime) -> AuditEntry:
    """Record a change of a member's phone, as a decision does."""
    with transaction.atomic():
        before = {"phone": personal.Personal(user.pk, "254700000000"), "held": None}
        after = {"phone": personal.Personal(user.pk, PHONE), "held": at}
        audit.record(
            action="member.phone", by=BY, subject=f"member:{user.pk}", before=before, after=after, at=at,
            reason="Amina lost her SIM",
        )  # fmt: skip
    return AuditEntry.objects.latest("number")


def test_sealed_text_is_opened_only_with_both_secrets(db: None, settings: Settings) -> None:
    user, other = member(), member()
    sealed = personal.seal(user.pk, "Amina é 254712345678")
    assert "Amina" not in sealed
    assert personal.seal(user.pk, "Amina é 254712345678") != sealed
    assert personal.opened(sealed) == "Amina é 254712345678"
    assert personal.opened(sealed.replace(f":{user.pk}:", f":{other.pk}:")).startswith("(unreadable")
    assert personal.opened(f"sealed:{user.pk}:A=").startswith("(unreadable")
    settings.PERSONAL_DATA_KEY = "another key"
    assert personal.opened(sealed).startswith("(unreadable")


@pytest.mark.parametrize("text", ["", "plain", "sealed:", "sealed:x:AAAA", "sealed:1:???", "sealed:999999:AAAA"])
def test_other_text_is_read_as_it_is(db: None, text: str) -> None:
    assert personal.opened(text) == (personal.ERASED if text.startswith("sealed:9") else text)


def test_every_new_member_gets_a_secret_of_their_own(db: None) -> None:
    member()
    CustomUser.objects.bulk_create([CustomUser(phone_number=f"25471234567{digit}") for digit in range(3)])
    secrets = {bytes(key.secret) for key in MemberKey.objects.all()}
    assert len(secrets) == CustomUser.objects.count()
    assert {len(secret) for secret in secrets} == {32}


def test_member_without_a_secret_gets_one_with_the_first_text(transactional_db: None) -> None:
    user, other = member(), member()
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE users_memberkey DISABLE TRIGGER USER")
        cursor.execute("DELETE FROM users_memberkey")
        cursor.execute("ALTER TABLE users_memberkey ENABLE TRIGGER USER")
        assert personal.destroy(other.pk)
    assert personal.opened(personal.seal(user.pk, "Amina")) == "Amina"
    assert personal.seal(other.pk, "Amina") == personal.ERASED


def test_trail_holds_no_personal_text_and_verifies(db: None, at: datetime) -> None:
    entry = record_phone(member(), at)
    everything = " ".join(stored("users_auditentry", column) for column in ("before", "after", "reason"))
    assert PHONE not in everything
    assert "Amina" not in everything
    assert entry.reason == "Amina lost her SIM"
    assert audit.verify().difference is None


def test_erasing_the_key_erases_the_person_and_the_trail_still_verifies(db: None, at: datetime) -> None:
    # given
    user, other, author = member(), member(), console_scenes.staff("support")
    for each in (user, other):
        record_phone(each, at)
        notifications.tell(user_id=each.pk, kind="x", subject="x:1", event=f"{each.pk}", text="Dear Amina", at=at)
    MemberNote.objects.create(member=user, author=author, at=at, text=personal.seal(user.pk, "Amina called"))
    assert "Amina" not in stored("users_notice", "text") + stored("users_membernote", "text")

    # when
    with database.as_owner():
        assert personal.destroy(user.pk)
        assert not personal.destroy(user.pk)

    # then
    erased, kept = AuditEntry.objects.filter(action="member.phone").order_by("number")
    assert (erased.reason, kept.reason) == (personal.ERASED, "Amina lost her SIM")
    assert Notice.objects.get(user=user).text == MemberNote.objects.get().text == personal.ERASED
    assert Notice.objects.get(user=other).text == "Dear Amina"
    assert audit.verify().difference is None
    # and: later texts of this member are not kept either
    assert record_phone(user, at).reason == personal.ERASED
    assert audit.verify().difference is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users_memberkey SET secret = NULL, destroyed_at = now()",
        "UPDATE users_memberkey SET secret = '\\x00'",
        "DELETE FROM users_memberkey",
        "TRUNCATE users_memberkey",
    ],
)
def test_application_destroys_and_changes_no_key(db: None, statement: str) -> None:
    member()
    if not database.application_role():
        pytest.skip("The tests run as the owner.")
    with (
        connection.cursor() as cursor,
        pytest.raises(ProgrammingError, match="permission denied"),
        transaction.atomic(),
    ):
        cursor.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users_memberkey SET secret = decode(repeat('00', 32), 'hex')",
        "UPDATE users_memberkey SET secret = NULL",
        "DELETE FROM users_memberkey",
    ],
)
def test_owner_only_destroys_a_key(db: None, statement: str) -> None:
    member()
    with (
        pytest.raises(IntegrityError, match="is destroyed, not"),
        transaction.atomic(),
        database.as_owner(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)


def test_notes_are_sealed(transactional_db: None, at: datetime) -> None:
    author, user = console_scenes.staff("support"), member()
    staff_notes.add(member_id=user.pk, text="Amina called", by=audit.Actor(author.pk, "test"), at=at)
    assert "Amina" not in stored("users_membernote", "text")
    assert MemberNote.objects.get().text == "Amina called"


def test_only_a_suspended_member_without_money_is_erased_and_only_once(transactional_db: None, at: datetime) -> None:
    user = member(balance=5)
    with database.as_owner():
        for member_id in (user.pk, 999_999):
            with pytest.raises(erasure.ErasureRefused, match="Nothing was erased"):
                erasure.erase(member_id=member_id, reason="asked", by=BY, at=at)
        CustomUser.objects.filter(pk=user.pk).update(is_active=False)
        with pytest.raises(erasure.ErasureRefused, match="has money here"):
            erasure.erase(member_id=user.pk, reason="asked", by=BY, at=at)
        user.refresh_from_db()
        user.balance = 0
        user.save()
        erasure.erase(member_id=user.pk, reason="asked", by=BY, at=at)
        with pytest.raises(erasure.ErasureRefused, match="erased before"):
            erasure.erase(member_id=user.pk, reason="asked", by=BY, at=at)
    assert AuditEntry.objects.get(action="member.erased").after == '{"grounds":"asked"}'
    assert audit.verify().difference is None


@pytest.mark.parametrize("more_roles", [(), ("support",)])
def test_export_has_whole_numbers_only_for_those_who_may_open_phones(
    transactional_db: None, at: datetime, more_roles: tuple[str, ...]
) -> None:
    record_phone(member(), at)
    person = console_scenes.staff("accountant")
    person.groups.add(*Group.objects.filter(name__in=more_roles))
    page = page_text(client_of(person).get("/admin/audit/"))
    answer = client_of(person).get("/admin/audit/export/")
    assert isinstance(answer, StreamingHttpResponse)
    export = b"".join(cast(Iterable[bytes], answer.streaming_content)).decode()

    assert "phone: 2547****000 → 2547****678" in page
    assert (PHONE in export) == bool(more_roles)
    assert ("2547****678" in export) != bool(more_roles)
    # and: a person who got whole numbers is on record
    assert AuditEntry.objects.filter(action="audit.export", actor=person).exists() == bool(more_roles)
