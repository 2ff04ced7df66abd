"""Tests of users/backends.py: the console's login and the bearer header."""

from django.contrib.auth import authenticate
from django.test import Client

from testing.builders import PIN, operator
from users.models import CustomUser


def test_console_login_accepts_any_form_of_the_phone_and_refuses_others(db: None) -> None:
    user = operator(phone_number="0712345678")
    console = Client()

    assert authenticate(phone_number="0712 345 678", password=PIN) == user
    for typed in ("admin", "٠٧١٢٣٤٥٦٧٨", "0799999999", "x" * 500):
        answer = console.post("/admin/login/", {"username": typed, "password": PIN})
        assert answer.status_code == 200
        assert "_auth_user_id" not in console.session
    answer = console.post("/admin/login/?next=/admin/", {"username": "+254712345678", "password": PIN})
    assert answer.status_code == 302
    assert console.session["_auth_user_id"] == str(user.pk)


def test_console_login_counts_wrong_pins_and_locks_the_number(db: None, client: Client) -> None:
    # given
    CustomUser.objects.create_user(phone_number="0712345670", pin="1234", is_staff=True)

    # when
    for _ in range(5):
        client.post("/admin/login/", {"username": "0712345670", "password": "0000"})
    locked = client.post("/admin/login/", {"username": "0712345670", "password": "1234"})

    # then
    assert locked.status_code == 200
    assert "_auth_user_id" not in client.session


def test_bearer_header_that_is_not_ascii_answers_401(db: None, client: Client) -> None:
    assert client.get("/api/users/me/", HTTP_AUTHORIZATION="Bearer \u00e9").status_code == 401
