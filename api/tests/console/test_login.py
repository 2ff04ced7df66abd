"""The console's door: PIN and code in one form, an app that is set up on the way, recovery codes, and fresh proof."""

from datetime import datetime, timedelta

import pytest
from django.conf import Settings
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from api.console import login
from payments.models import Breaker
from testing.builders import PIN, member, operator
from users import audit, second_factor
from users.models import AuditEntry, CustomUser

HERE = audit.Actor(user_id=None, source="test")


@pytest.fixture
def asked_for(settings: Settings) -> None:
    """The setting asks staff for a code."""
    settings.STAFF_TOTP = True


def code_of(user: CustomUser, steps: int = 0) -> str:
    """What the member's app shows now, or some steps of half a minute later."""
    device = TOTPDevice.objects.get(user=user)
    return f"{totp(device.bin_key, t0=-30 * steps):06d}"


def enrol(user: CustomUser, at: datetime) -> list[str]:
    second_factor.begin(user)
    codes = second_factor.confirm(user=user, code=code_of(user), by=HERE, at=at)
    # The code of this moment is used up: the tests that follow may use it once more.
    TOTPDevice.objects.filter(user=user).update(last_t=-1)
    return codes


def log_in(client: Client, user: CustomUser, code: str = "", pin: str = PIN) -> str:
    """The door's form, typed and sent: the page one is on afterwards."""
    form = {"username": user.phone_number, "password": pin, "code": code, "next": "/admin/"}
    return client.post("/admin/login/", form, follow=True).content.decode()


# --- setting up ------------------------------------------------------------------------------------------------------


def test_whoever_has_no_app_yet_sets_it_up_before_any_page_opens(db: None, client: Client, asked_for: None) -> None:
    # given
    boss = operator(is_superuser=True)

    # when
    page = log_in(client, boss)

    # then: the door leads to the set-up, and so does every other page
    assert "Set up your app" in page and "<svg" in page and "Secret:" in page
    for path in ("/admin/", "/admin/payouts/", "/admin/records/", "/admin/users/customuser/"):
        assert client.get(path).status_code == 302

    # when: the app's first code is typed
    done = client.post("/admin/second-factor/", {"code": code_of(boss)})

    # then
    assert done.content.decode().count("<li>") >= second_factor.RECOVERY_CODES
    assert client.get("/admin/").status_code == 200
    assert AuditEntry.objects.filter(action="staff.second_factor_set_up").count() == 1


def test_a_wrong_first_code_sets_nothing_up(db: None, client: Client, asked_for: None) -> None:
    boss = operator(is_superuser=True)
    log_in(client, boss)
    page = client.post("/admin/second-factor/", {"code": "000000"}).content.decode()
    assert "Nothing was set up" in page
    assert not second_factor.enrolled(boss) and client.get("/admin/").status_code == 302


def test_an_app_that_is_set_up_is_not_replaced_by_whoever_knows_the_pin(
    db: None, client: Client, asked_for: None, at: datetime
) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    TOTPDevice.objects.create(user=boss, confirmed=False, key="00" * 20)
    with pytest.raises(second_factor.WrongCode):
        second_factor.confirm(user=boss, code=f"{totp(bytes(20)):06d}", by=HERE, at=at)
    assert TOTPDevice.objects.filter(user=boss, confirmed=True).count() == 1


# --- logging in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pin", "right_code"), [("0000", True), (PIN, False), ("0000", False)], ids=["PIN", "code", "both"]
)
def test_the_door_does_not_tell_which_part_was_wrong(
    db: None, client: Client, asked_for: None, at: datetime, pin: str, right_code: bool
) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    page = log_in(client, boss, code_of(boss) if right_code else "000000", pin)
    assert login.NOT_LET_IN in page.replace("&#x27;", "'")
    assert "_auth_user_id" not in client.session


def test_pin_and_code_open_the_door_and_the_code_only_once(
    db: None, client: Client, asked_for: None, at: datetime
) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    code = code_of(boss)
    assert "What needs you now" in log_in(client, boss, code)
    assert "What needs you now" not in log_in(Client(), boss, code)


def test_a_recovery_code_opens_the_door_once_and_is_not_kept_as_it_is(
    db: None, client: Client, asked_for: None, at: datetime
) -> None:
    boss = operator(is_superuser=True)
    codes = enrol(boss, at)
    tokens = set(boss.staticdevice_set.get().token_set.values_list("token", flat=True))
    assert len(codes) == len(tokens) == second_factor.RECOVERY_CODES and tokens.isdisjoint(codes)
    assert "What needs you now" in log_in(client, boss, codes[0].upper())
    assert "What needs you now" not in log_in(Client(), boss, codes[0])


def test_after_a_wrong_code_even_the_right_one_waits(db: None, client: Client, asked_for: None, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    for _ in range(3):
        log_in(client, boss, "000000")
    assert "What needs you now" not in log_in(client, boss, code_of(boss))
    assert AuditEntry.objects.filter(action="login.code_refused").count() == 4
    # then: the wait is the device's, four seconds after the third wrong one; the PIN's count is untouched
    TOTPDevice.objects.update(throttling_failure_timestamp=timezone.now() - timedelta(seconds=30))
    assert "What needs you now" in log_in(client, boss, code_of(boss))


def test_an_app_that_was_set_up_is_asked_for_though_the_setting_is_off(db: None, client: Client, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    assert login.NOT_LET_IN in log_in(client, boss).replace("&#x27;", "'")
    client.force_login(boss)
    assert client.get("/admin/").status_code == 302
    assert "Your code" in client.get("/admin/second-factor/").content.decode()
    assert client.post("/admin/second-factor/", {"code": code_of(boss)}).headers["Location"] == "/admin/"
    assert client.get("/admin/").status_code == 200


def test_where_the_setting_is_off_a_pin_is_enough(db: None, client: Client) -> None:
    assert "What needs you now" in log_in(client, operator(is_superuser=True))


def test_a_member_who_is_no_staff_is_not_let_in(db: None, client: Client) -> None:
    assert login.NOT_LET_IN in log_in(client, member()).replace("&#x27;", "'")


def test_a_lost_phone_is_forgotten_by_a_command_and_recorded(db: None, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    call_command("forget_second_factor", boss.phone_number)
    assert not second_factor.enrolled(boss) and boss.staticdevice_set.count() == 0
    assert AuditEntry.objects.filter(action="staff.second_factor_removed", source="command").count() == 1
    for nobody in (member().phone_number, "admin"):
        with pytest.raises(CommandError):
            call_command("forget_second_factor", nobody)


# --- fresh proof for money -------------------------------------------------------------------------------------------

STOP = {"reason": "Something is odd.", "typed": "stop"}


def switched_off() -> bool:
    return Breaker.objects.filter(cause="switch", opened_at__isnull=False).exists()


def test_a_money_action_asks_for_the_pin_again_and_does_nothing_without(db: None, client: Client) -> None:
    client.force_login(operator(is_superuser=True))
    assert "Your PIN" in client.get("/admin/sending/stop/").content.decode()
    for proof in ({}, {"proof": "0000"}):
        answer = client.post("/admin/sending/stop/", STOP | proof)
        assert answer.status_code == 409 and "not your PIN. Nothing was done." in answer.content.decode()
        assert not switched_off()
    assert client.post("/admin/sending/stop/", STOP | {"proof": PIN}).status_code == 302
    assert switched_off()


def test_a_proof_is_fresh_for_some_minutes_and_no_longer(db: None, client: Client, settings: Settings) -> None:
    client.force_login(operator(is_superuser=True))
    client.post("/admin/sending/stop/", STOP | {"proof": PIN})
    assert client.post("/admin/sending/start/").status_code == 302
    assert not switched_off()

    session = client.session
    session["stepped_up_at"] = (timezone.now() - timedelta(minutes=settings.STEP_UP_MINUTES, seconds=1)).isoformat()
    session.save()
    assert client.post("/admin/sending/stop/", STOP).status_code == 409
    assert not switched_off()


def test_with_an_app_it_is_a_code_that_proves(db: None, client: Client, asked_for: None, at: datetime) -> None:
    boss = operator(is_superuser=True)
    enrol(boss, at)
    log_in(client, boss, code_of(boss))
    session = client.session
    session["stepped_up_at"] = (timezone.now() - timedelta(hours=1)).isoformat()
    session.save()
    assert "Code of your app" in client.get("/admin/sending/stop/").content.decode()
    assert client.post("/admin/sending/stop/", STOP | {"proof": PIN}).status_code == 409
    TOTPDevice.objects.update(last_t=-1, throttling_failure_timestamp=None, throttling_failure_count=0)
    assert client.post("/admin/sending/stop/", STOP | {"proof": code_of(boss)}).status_code == 302
    assert switched_off()


def test_wrong_pins_at_a_money_action_count_as_at_the_door(db: None, client: Client) -> None:
    boss = operator(is_superuser=True)
    client.force_login(boss)
    for _ in range(5):
        client.post("/admin/sending/stop/", STOP | {"proof": "0000"})
    answer = client.post("/admin/sending/stop/", STOP | {"proof": PIN})
    assert "Too many wrong PINs" in answer.content.decode() and not switched_off()
    boss.refresh_from_db()
    assert boss.failed_logins == 5 and boss.locked_until is not None
