"""Tests of the command `unlock_login`."""

import pytest
from django.core.management import CommandError, call_command

from testing.builders import member
from users import known_callers
from users.models import AuditEntry, PinCounter


def test_unlocked_number_has_no_counter_and_is_recorded(db: None) -> None:
    user = member()
    key = known_callers.number_counter(user.phone_number)
    PinCounter.objects.create(key=key, wrong=5, until="2099-01-01T00:00:00Z")
    call_command("unlock_login", user.phone_number)
    assert not PinCounter.objects.exists()
    assert AuditEntry.objects.filter(action="login.unlocked", source="command").count() == 1


@pytest.mark.parametrize("number", ["254799999999", "admin"])
def test_unknown_number_cannot_be_unlocked(db: None, number: str) -> None:
    with pytest.raises(CommandError):
        call_command("unlock_login", number)
    assert not AuditEntry.objects.exists()
