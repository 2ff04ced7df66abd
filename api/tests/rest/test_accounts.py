"""Tests of api/rest/accounts.py: login, logout and the caller's account."""

from datetime import datetime
from typing import Any

import pytest
from django.conf import Settings
from django.test import Client
from django_otp.plugins.otp_totp.models import TOTPDevice
from knox.models import AuthToken

from testing.builders import PIN, bearer, member, operator
from testing.console_scenes import code_of, enrol
from users.models import CustomUser, PinCounter

NUMBER = "254712345678"


def test_correct_pin_returns_a_token_that_authenticates(db: None, client: Client) -> None:
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


def test_token_is_refused_after_logout(db: None, client: Client) -> None:
    headers = bearer(member())
    assert client.post("/api/users/logout/", headers=headers).status_code == 204

    answer = client.get("/api/users/me/", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_wrong_pin_unknown_and_suspended_number_get_the_same_answer(db: None, client: Client) -> None:
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
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["code"] == "wrong_credentials"
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
def test_login_body_with_a_wrong_field_is_refused_by_its_name(
    db: None, client: Client, body: dict[str, Any], field: str
) -> None:
    member(phone_number=NUMBER)
    answer = client.post("/api/users/login/", body, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert next(iter(answer.json()["details"])) == field
    assert PinCounter.objects.count() == 0


@pytest.mark.parametrize("typed", ["admin", "2540712345678", "٠٧١٢٣٤٥٦٧٨", "' OR 1=1 --"])
def test_login_with_an_invalid_phone_number_answers_400(db: None, client: Client, typed: str) -> None:
    answer = client.post("/api/users/login/", {"phone_number": typed, "pin": PIN}, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "not_a_phone_number")


def test_token_of_a_suspended_member_answers_401(db: None, client: Client) -> None:
    user = member()
    headers = bearer(user)
    user.is_active = False
    user.save()
    assert client.get("/api/users/me/", headers=headers).status_code == 401


def test_locked_number_answers_429_with_the_end_of_the_lock(db: None, client: Client) -> None:
    member(phone_number=NUMBER)
    for _ in range(4):
        client.post("/api/users/login/", {"phone_number": NUMBER, "pin": "0000"}, "application/json")

    answer = client.post("/api/users/login/", {"phone_number": NUMBER, "pin": "0000"}, "application/json")

    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_tries")
    assert answer.json()["message"].startswith("Too many wrong PINs. Try again after 20")
    assert client.post("/api/users/login/", {"phone_number": NUMBER, "pin": PIN}, "application/json").status_code == 429


# --- staff -----------------------------------------------------------------------------------------------------------


def logged_in(client: Client, user: CustomUser, **more: str) -> tuple[int, str]:
    """Log in. Return the status, and the token or the code of the refusal."""
    body = {"phone_number": user.phone_number, "pin": PIN} | more
    answer = client.post("/api/users/login/", body, "application/json")
    return answer.status_code, answer.json().get("token") or answer.json()["code"]


def test_staff_with_an_app_log_in_with_its_code(db: None, client: Client, at: datetime) -> None:
    staff = operator()
    enrol(staff, at)

    assert logged_in(client, staff) == (401, "wrong_credentials")
    assert logged_in(client, staff, code="000000") == (401, "wrong_credentials")
    TOTPDevice.objects.update(throttling_failure_timestamp=None, throttling_failure_count=0)
    assert AuthToken.objects.count() == 0

    status, token = logged_in(client, staff, code=code_of(staff))
    assert status == 200
    # The code of the login is the proof for a money act.
    headers = {"Authorization": f"Bearer {token}"}
    answer = client.post("/api/markets/admin/resolve/", {}, "application/json", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


def test_wrong_pin_does_not_reveal_that_a_code_is_needed(db: None, client: Client, at: datetime) -> None:
    staff = operator()
    enrol(staff, at)
    assert logged_in(client, staff, pin="0000") == (401, "wrong_credentials")


def test_staff_without_an_app_get_no_token_where_codes_are_required(
    db: None, client: Client, settings: Settings
) -> None:
    settings.STAFF_TOTP = True
    assert logged_in(client, operator()) == (401, "wrong_credentials")
    assert AuthToken.objects.count() == 0
    assert logged_in(client, member())[0] == 200
