"""Erasure of a member by the command, with the two roles of PostgreSQL in real processes."""

from pathlib import Path

import pytest

from testing.running import running

pytestmark = [pytest.mark.journey, pytest.mark.long]

TOLD = """
from users import audit, clock, notifications
from users.models import CustomUser
at = clock.database_time()
user = CustomUser.objects.create_user(phone_number="0712345678", full_name="Amina", pin="1234")
notifications.tell(user_id=user.pk, kind="x", subject="x:1", event="x", text="Dear Amina", at=at)
CustomUser.objects.filter(pk=user.pk).update(is_active=False)
"""
READ = "from users.models import Notice; print(Notice.objects.get().text)"


def test_command_erases_a_suspended_member_for_ever(tmp_path: Path) -> None:
    with running(tmp_path) as place:
        place.manage("shell", typed=TOLD)
        assert "Dear Amina" in place.manage("shell", "-c", READ)
        with pytest.raises(AssertionError, match="There is no member 7"):
            place.manage("erase_member", "7", "--reason", "The law's time is over")

        assert "are erased" in place.manage("erase_member", "1", "--reason", "The law's time is over")

        assert "(erased)" in place.manage("shell", "-c", READ)
        assert "intact: 1 entry" in place.manage("verify_audit")
        with pytest.raises(AssertionError, match="were erased before"):
            place.manage("erase_member", "1", "--reason", "The law's time is over")
