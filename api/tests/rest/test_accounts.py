"""Logging in: who gets a token, and what wrong PINs cost."""

from datetime import datetime
from typing import Any

import pytest
from django.test import Client
from knox.models import AuthToken

from testing.builders import PIN, bearer, member
from users import auth
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


def test_a_locked_number_is_answered_with_429_and_a_time(db: None, client: Client) -> None:
    member(phone_number=NUMBER)
    for _ in range(4):
        client.post("/api/users/login/", {"phone_number": NUMBER, "pin": "0000"}, "application/json")

    answer = client.post("/api/users/login/", {"phone_number": NUMBER, "pin": "0000"}, "application/json")

    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_tries")
    assert answer.json()["message"].startswith("Too many wrong PINs. Try again after 20")
    assert client.post("/api/users/login/", {"phone_number": NUMBER, "pin": PIN}, "application/json").status_code == 429
