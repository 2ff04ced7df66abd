"""Tests of users/pins.py and of the change of a PIN."""

from datetime import datetime, timedelta

import pytest
from knox.models import AuthToken

from testing.builders import PIN, member, operator
from users import auth, pins
from users.models import AuditEntry

RULES = auth.Rules(pin_rules=True)
SOURCE = "192.0.2.7"


@pytest.mark.parametrize(
    "pin",
    ["", "123", "12a4", "٠٧١٢", "1234567890123", "0000", "1234", "9876", "1212", "1221", "2580", "1984", "2026", "3112",
     "0229", "5454", "1004", "5683", "123456", "654321", "112233", "123123", "311299", "990131", "19991231", "147258"],
)  # fmt: skip
def test_pin_that_is_easy_to_guess_is_refused(pin: str) -> None:
    with pytest.raises(pins.BadPin):
        pins.check(pin, phone_number="254712345678", is_staff=False)


@pytest.mark.parametrize("pin", ["8068", "7391", "6093", "739184", "7391840"])
def test_other_pins_are_accepted(pin: str) -> None:
    pins.check(pin, phone_number="254712345678", is_staff=False)


def test_pin_of_staff_has_six_digits(db: None) -> None:
    with pytest.raises(pins.BadPin):
        pins.check("8068", phone_number="254712345678", is_staff=True)


def test_pin_with_four_digits_of_the_phone_is_refused() -> None:
    with pytest.raises(pins.BadPin):
        pins.check("4598", phone_number="254714598032", is_staff=False)


def test_change_ends_tokens_and_is_recorded(db: None, at: datetime) -> None:
    user = member()
    AuthToken.objects.create(user=user)
    entered = auth.change_pin(user=user, pin=PIN, new_pin="8068", rules=RULES, source=SOURCE, at=at)
    assert AuthToken.objects.count() == 0
    assert auth.token_for(entered, rules=RULES, at=at).user_id == user.pk
    assert AuditEntry.objects.filter(action="member.pin_changed", actor=user).count() == 1
    auth.check_pin(phone_number=user.phone_number, pin="8068", source=SOURCE, at=at)


@pytest.mark.parametrize("new_pin", [PIN, "2580"])
def test_refused_change_leaves_the_pin(db: None, at: datetime, new_pin: str) -> None:
    user = member()
    with pytest.raises(pins.BadPin):
        auth.change_pin(user=user, pin=PIN, new_pin=new_pin, rules=RULES, source=SOURCE, at=at)
    auth.check_pin(phone_number=user.phone_number, pin=PIN, source=SOURCE, at=at)
    assert AuditEntry.objects.count() == 0


def test_wrong_present_pins_are_counted(db: None, at: datetime) -> None:
    user = operator()
    for expected in [auth.WrongCredentials] * 4 + [auth.TooManyTries] * 2:
        with pytest.raises(expected):
            auth.change_pin(user=user, pin="0000", new_pin="806835", rules=RULES, source=SOURCE, at=at)
    with pytest.raises(auth.TooManyTries):
        auth.change_pin(user=user, pin=PIN, new_pin="806835", rules=RULES, source=SOURCE, at=at)


def test_rules_are_off_in_development(db: None, at: datetime) -> None:
    user = member()
    auth.change_pin(user=user, pin=PIN, new_pin="1111", rules=auth.Rules(), source=SOURCE, at=at)
    auth.check_pin(phone_number=user.phone_number, pin="1111", source=SOURCE, at=at)


def test_token_of_staff_begins_with_the_idle_time(db: None, at: datetime) -> None:
    rules = auth.Rules(staff_idle=timedelta(minutes=30))
    lives = []
    for user in (operator(), member()):
        credentials = auth.Credentials(user.phone_number, PIN, source=SOURCE)
        auth.log_in(credentials=credentials, rules=rules, at=at)
        token = AuthToken.objects.get(user=user)
        lives.append(round((token.expiry - token.created).total_seconds() / 60))
    assert lives == [30, 480]
