"""Tests of the console login: PIN and code, set-up of an app, recovery codes."""

from datetime import datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from api.console import login
from testing.builders import PIN, member, operator
from testing.console_scenes import ACTOR, code_of, enrol, log_in, page_text
from users import second_factor
from users.models import AuditEntry

# --- setting up ------------------------------------------------------------------------------------------------------


def test_member_without_an_app_must_set_it_up_first(db: None, client: Client, code_required: None) -> None:
    # given
    superuser = operator(is_superuser=True)

    # when
    page = log_in(client, superuser)

    # then: the login leads to the set-up, and so does every other page
    assert "Set up your app" in page
    assert "<svg" in page
    assert "Secret:" in page
    for path in ("/admin/", "/admin/payouts/", "/admin/records/", "/admin/users/customuser/"):
        assert client.get(path).status_code == 302

    # when: the app's first code is typed
    done = client.post("/admin/second-factor/", {"code": code_of(superuser)})

    # then
    assert done.content.decode().count("<li>") >= second_factor.RECOVERY_CODES
    assert client.get("/admin/").status_code == 200
    assert AuditEntry.objects.filter(action="staff.second_factor_set_up").count() == 1


def test_wrong_first_code_does_not_set_up_the_app(db: None, client: Client, code_required: None) -> None:
    superuser = operator(is_superuser=True)
    log_in(client, superuser)
    page = page_text(client.post("/admin/second-factor/", {"code": "000000"}))
    assert "The app is not set up yet" in page
    assert not second_factor.enrolled(superuser)
    assert client.get("/admin/").status_code == 302


def test_second_app_cannot_replace_the_first(db: None, client: Client, code_required: None, at: datetime) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    TOTPDevice.objects.create(user=superuser, confirmed=False, key="00" * 20)
    with pytest.raises(second_factor.WrongCode):
        second_factor.confirm(user=superuser, code=f"{totp(bytes(20)):06d}", by=ACTOR, at=at)
    assert TOTPDevice.objects.filter(user=superuser, confirmed=True).count() == 1


# --- logging in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pin", "right_code"), [("0000", True), (PIN, False), ("0000", False)], ids=["PIN", "code", "both"]
)
def test_failed_login_does_not_say_which_part_was_wrong(
    db: None, client: Client, code_required: None, at: datetime, pin: str, right_code: bool
) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    page = log_in(client, superuser, code_of(superuser) if right_code else "000000", pin)
    assert login.LOGIN_FAILED in page
    assert "_auth_user_id" not in client.session


def test_pin_and_code_log_in_and_the_code_works_once(
    db: None, client: Client, code_required: None, at: datetime
) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    code = code_of(superuser)
    assert "Needs your attention" in log_in(client, superuser, code)
    assert "Needs your attention" not in log_in(Client(), superuser, code)


def test_recovery_code_works_once_and_is_stored_hashed(
    db: None, client: Client, code_required: None, at: datetime
) -> None:
    superuser = operator(is_superuser=True)
    codes = enrol(superuser, at)
    tokens = set(superuser.staticdevice_set.get().token_set.values_list("token", flat=True))
    assert len(codes) == len(tokens) == second_factor.RECOVERY_CODES
    assert tokens.isdisjoint(codes)
    assert "Needs your attention" in log_in(client, superuser, codes[0].upper())
    assert "Needs your attention" not in log_in(Client(), superuser, codes[0])


def test_right_code_waits_after_wrong_ones(db: None, client: Client, code_required: None, at: datetime) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    for _ in range(3):
        log_in(client, superuser, "000000")
    assert "Needs your attention" not in log_in(client, superuser, code_of(superuser))
    assert AuditEntry.objects.filter(action="login.code_refused").count() == 4
    # then: the right code works after the wait (four seconds after three wrong codes); wrong codes lock no PIN
    TOTPDevice.objects.update(throttling_failure_timestamp=timezone.now() - timedelta(seconds=30))
    assert "Needs your attention" in log_in(client, superuser, code_of(superuser))


def test_app_that_is_set_up_asks_for_a_code_even_if_the_setting_is_off(db: None, client: Client, at: datetime) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    assert login.LOGIN_FAILED in log_in(client, superuser)
    client.force_login(superuser)
    assert client.get("/admin/").status_code == 302
    assert "Enter your code" in page_text(client.get("/admin/second-factor/"))
    assert client.post("/admin/second-factor/", {"code": code_of(superuser)}).headers["Location"] == "/admin/"
    assert client.get("/admin/").status_code == 200


def test_pin_is_enough_if_the_setting_is_off(db: None, client: Client) -> None:
    assert "Needs your attention" in log_in(client, operator(is_superuser=True))


def test_member_who_is_not_staff_cannot_log_in(db: None, client: Client) -> None:
    assert login.LOGIN_FAILED in log_in(client, member())


def test_command_removes_an_app_and_is_recorded(db: None, at: datetime) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    call_command("forget_second_factor", superuser.phone_number)
    assert not second_factor.enrolled(superuser)
    assert superuser.staticdevice_set.count() == 0
    assert AuditEntry.objects.filter(action="staff.second_factor_removed", source="command").count() == 1
    for nobody in (member().phone_number, "admin"):
        with pytest.raises(CommandError):
            call_command("forget_second_factor", nobody)
