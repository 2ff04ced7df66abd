"""Logging in: who gets a token, and what wrong PINs cost."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from knox.models import AuthToken

from testing.builders import PIN, bearer, member
from users import auth, phone
from users.models import CustomUser

NUMBER = "254712345678"


def log_in(at: datetime, pin: str = PIN, phone_number: str = NUMBER) -> auth.Login:
    return auth.log_in(phone_number=phone_number, pin=pin, source="192.0.2.7", at=at)


def miss(at: datetime, times: int) -> None:
    for _ in range(times):
        with pytest.raises(auth.WrongCredentials):
            log_in(at, pin="0000")


def test_the_right_pin_gets_a_token_that_opens_the_door(db: None, client: Client) -> None:
    user = member(phone_number=NUMBER, full_name="Amina", balance="12.50")

    answer = client.post("/api/users/login/", {"phone_number": "0712 345 678", "pin": PIN}, "application/json")

    assert answer.status_code == 200
    assert set(answer.json()) == {"token", "expires_at"}
    me = client.get("/api/users/me/", headers={"Authorization": f"Bearer {answer.json()['token']}"})
    assert me.json() == {
        "id": str(user.public_id),
        "phone_number": NUMBER,
        "full_name": "Amina",
        "balance": "12.50",
        "is_staff": False,
    }


def test_only_a_digest_of_the_token_is_kept(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    login = log_in(at)
    kept = AuthToken.objects.values().get()
    assert login.token not in {str(value) for value in kept.values()}
    assert login.token.startswith("ksk_")


def test_a_token_is_dead_after_logging_out(db: None, client: Client) -> None:
    headers = bearer(member())
    assert client.post("/api/users/logout/", headers=headers).status_code == 204

    answer = client.get("/api/users/me/", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_wrong_pins_and_unknown_and_suspended_numbers_are_refused_alike(db: None, client: Client) -> None:
    member(phone_number=NUMBER)
    member(phone_number="254712345679", is_active=False)

    answers = [
        client.post("/api/users/login/", {"phone_number": number, "pin": pin}, "application/json")
        for number, pin in (
            (NUMBER, "0000"),
            ("254799999999", PIN),
            ("254799999999", "not a PIN"),
            ("254712345679", PIN),
        )
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert {answer.content for answer in answers} == {
        b'{"code":"wrong_credentials","message":"The phone number or the PIN is wrong.","details":{}}'
    }
    assert AuthToken.objects.count() == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "phone_number"),
        ({"phone_number": NUMBER}, "pin"),
        ({"phone_number": NUMBER, "pin": 1234}, "pin"),
        ({"phone_number": NUMBER, "pin": None}, "pin"),
        ({"phone_number": NUMBER, "pin": ["1234"]}, "pin"),
        ({"phone_number": NUMBER, "pin": "1" * 129}, "pin"),
        ({"phone_number": int(NUMBER), "pin": PIN}, "phone_number"),
        ({"phone_number": "0" * 21, "pin": PIN}, "phone_number"),
        ({"phone_number": NUMBER, "pin": PIN, "otp": "1"}, "otp"),
    ],
)
def test_a_body_of_another_shape_is_refused_by_field(
    db: None, client: Client, body: dict[str, Any], field: str
) -> None:
    member(phone_number=NUMBER)
    answer = client.post("/api/users/login/", body, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert list(answer.json()["details"])[0] == field
    assert CustomUser.objects.get().failed_logins == 0


@pytest.mark.parametrize("typed", ["admin", "2540712345678", "٠٧١٢٣٤٥٦٧٨", "' OR 1=1 --"])
def test_what_is_no_phone_number_is_said_so(db: None, client: Client, typed: str) -> None:
    answer = client.post("/api/users/login/", {"phone_number": typed, "pin": PIN}, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "not_a_phone_number")


def test_a_suspended_members_token_opens_nothing(db: None, client: Client) -> None:
    user = member()
    headers = bearer(user)
    user.is_active = False
    user.save()
    assert client.get("/api/users/me/", headers=headers).status_code == 401


def test_five_wrong_pins_lock_the_number_for_a_quarter_of_an_hour(db: None, at: datetime) -> None:
    # given
    member(phone_number=NUMBER)
    miss(at, 4)

    # when
    with pytest.raises(auth.TooManyTries) as refused:
        log_in(at, pin="0000")

    # then: even the right PIN is refused until the lock is over, and trying does not prolong it
    assert refused.value.until == at + timedelta(minutes=15)
    with pytest.raises(auth.TooManyTries) as again:
        log_in(at + timedelta(minutes=15) - timedelta(microseconds=1))
    assert again.value.until == at + timedelta(minutes=15)
    assert AuthToken.objects.count() == 0
    log_in(at + timedelta(minutes=15))


def test_each_further_five_wrong_pins_lock_twice_as_long_up_to_a_day(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    locks = []
    for _ in range(9):
        miss(at, 4)
        with pytest.raises(auth.TooManyTries) as refused:
            log_in(at, pin="0000")
        locks.append((refused.value.until - at).total_seconds() / 60)
        at = refused.value.until

    assert locks == [15, 30, 60, 120, 240, 480, 960, 1440, 1440]


def test_the_right_pin_forgets_the_wrong_ones(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    miss(at, 4)
    log_in(at)
    miss(at, 4)
    log_in(at)
    assert CustomUser.objects.values_list("failed_logins", "locked_until").get() == (0, None)


def test_a_locked_number_is_answered_with_429_and_a_time(db: None, client: Client) -> None:
    member(phone_number=NUMBER)
    for _ in range(4):
        client.post("/api/users/login/", {"phone_number": NUMBER, "pin": "0000"}, "application/json")

    answer = client.post("/api/users/login/", {"phone_number": NUMBER, "pin": "0000"}, "application/json")

    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_tries")
    assert answer.json()["message"].startswith("Too many wrong PINs. Try again after 20")
    assert client.post("/api/users/login/", {"phone_number": NUMBER, "pin": PIN}, "application/json").status_code == 429


def test_one_members_wrong_pins_lock_nobody_else(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    other = member()
    miss(at, 4)
    with pytest.raises(auth.TooManyTries):
        log_in(at, pin="0000")
    assert log_in(at, phone_number=other.phone_number).user_id == other.pk


def test_the_login_service_refuses_what_is_no_phone_number(db: None, at: datetime) -> None:
    with pytest.raises(phone.NotAPhoneNumber):
        log_in(at, phone_number="admin")


# --- the console and the header --------------------------------------------------------------------------------------


def test_the_console_counts_wrong_pins_as_the_api_does(db: None, client: Client) -> None:
    # given
    staff = CustomUser.objects.create_user(phone_number="0712345670", pin="1234", is_staff=True)

    # when
    for _ in range(5):
        client.post("/admin/login/", {"username": "0712345670", "password": "0000"})
    right = client.post("/admin/login/", {"username": "0712345670", "password": "1234"})

    # then
    staff.refresh_from_db()
    assert staff.failed_logins == 5 and staff.locked_until is not None
    assert right.status_code == 200 and "_auth_user_id" not in client.session


def test_a_header_that_is_not_ascii_is_a_wrong_token(db: None, client: Client) -> None:
    assert client.get("/api/users/me/", HTTP_AUTHORIZATION="Bearer \u00e9").status_code == 401
