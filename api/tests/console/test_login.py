"""Console login: PIN and code in one form, set-up of an app, recovery codes."""

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
    boss = operator(is_superuser=True)

    # when
    page = log_in(client, boss)

    # then: the login leads to the set-up, and so does every other page
    assert "Set up your app" in page
    assert "<svg" in page
    assert "Secret:" in page
    for path in ("/admin/", "/admin/payouts/", "/admin/records/", "/admin/users/customuser/"):
        assert client.get(path).status_code == 302

    # when: the app's first code is typed
    done = client.post("/admin/second-factor/", {"code": code_of(boss)})

    # then
    assert done.content.decode().count("<li>") >= second_factor.RECOVERY_CODES
    assert client.get("/admin/").status_code == 200
    assert AuditEntry.objects.filter(action="staff.second_factor_set_up").count() == 1


def test_wrong_first_code_sets_nothing_up(db: None, client: Client, code_required: None) -> None:
    boss = operator(is_superuser=True)
    log_in(client, boss)
    page = page_text(client.post("/admin/second-factor/", {"code": "000000"}))
    assert "The app is not set up yet" in page
    assert not second_factor.enrolled(boss)
    assert client.get("/admin/").status_code == 302


def test_pin_alone_cannot_replace_an_app(db: None, client: Client, code_required: None, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    TOTPDevice.objects.create(user=boss, confirmed=False, key="00" * 20)
    with pytest.raises(second_factor.WrongCode):
        second_factor.confirm(user=boss, code=f"{totp(bytes(20)):06d}", by=ACTOR, at=at)
    assert TOTPDevice.objects.filter(user=boss, confirmed=True).count() == 1


# --- logging in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pin", "right_code"), [("0000", True), (PIN, False), ("0000", False)], ids=["PIN", "code", "both"]
)
def test_failed_login_does_not_say_which_part_was_wrong(
    db: None, client: Client, code_required: None, at: datetime, pin: str, right_code: bool
) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    page = log_in(client, boss, code_of(boss) if right_code else "000000", pin)
    assert login.LOGIN_FAILED in page
    assert "_auth_user_id" not in client.session


def test_pin_and_code_log_in_and_the_code_works_once(
    db: None, client: Client, code_required: None, at: datetime
) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    code = code_of(boss)
    assert "Needs your attention" in log_in(client, boss, code)
    assert "Needs your attention" not in log_in(Client(), boss, code)


def test_recovery_code_works_once_and_is_stored_hashed(
    db: None, client: Client, code_required: None, at: datetime
) -> None:
    boss = operator(is_superuser=True)
    codes = enrol(boss, at)
    tokens = set(boss.staticdevice_set.get().token_set.values_list("token", flat=True))
    assert len(codes) == len(tokens) == second_factor.RECOVERY_CODES
    assert tokens.isdisjoint(codes)
    assert "Needs your attention" in log_in(client, boss, codes[0].upper())
    assert "Needs your attention" not in log_in(Client(), boss, codes[0])


def test_right_code_waits_after_wrong_ones(db: None, client: Client, code_required: None, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    for _ in range(3):
        log_in(client, boss, "000000")
    assert "Needs your attention" not in log_in(client, boss, code_of(boss))
    assert AuditEntry.objects.filter(action="login.code_refused").count() == 4
    # then: the app waits four seconds after the third wrong code, and the count of wrong PINs is unchanged
    TOTPDevice.objects.update(throttling_failure_timestamp=timezone.now() - timedelta(seconds=30))
    assert "Needs your attention" in log_in(client, boss, code_of(boss))


def test_app_is_required_even_if_the_setting_is_off(db: None, client: Client, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    assert login.LOGIN_FAILED in log_in(client, boss)
    client.force_login(boss)
    assert client.get("/admin/").status_code == 302
    assert "Enter your code" in page_text(client.get("/admin/second-factor/"))
    assert client.post("/admin/second-factor/", {"code": code_of(boss)}).headers["Location"] == "/admin/"
    assert client.get("/admin/").status_code == 200


def test_pin_is_enough_if_the_setting_is_off(db: None, client: Client) -> None:
    assert "Needs your attention" in log_in(client, operator(is_superuser=True))


def test_member_who_is_not_staff_cannot_log_in(db: None, client: Client) -> None:
    assert login.LOGIN_FAILED in log_in(client, member())


def test_command_removes_an_app_and_is_recorded(db: None, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    call_command("forget_second_factor", boss.phone_number)
    assert not second_factor.enrolled(boss)
    assert boss.staticdevice_set.count() == 0
    assert AuditEntry.objects.filter(action="staff.second_factor_removed", source="command").count() == 1
    for nobody in (member().phone_number, "admin"):
        with pytest.raises(CommandError):
            call_command("forget_second_factor", nobody)
