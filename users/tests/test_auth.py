"""Tests of users/auth.py: tokens for correct PINs, and locks after wrong ones."""

from datetime import datetime, timedelta

import pytest
from django.db import transaction
from knox.models import AuthToken

from testing.builders import PIN, at_once, member
from users import auth, known_callers, phone
from users.models import PinCounter

NUMBER = "254712345678"


def log_in(
    at: datetime, pin: str = PIN, phone_number: str = NUMBER, *, source: str = "192.0.2.7", device: str = ""
) -> auth.Login:
    return auth.log_in(
        credentials=auth.Credentials(phone_number=phone_number, pin=pin, source=source, device=device),
        rules=auth.Rules(),
        at=at,
    )


def enter_wrong_pins(at: datetime, times: int) -> None:
    for _ in range(times):
        with pytest.raises(auth.WrongCredentials):
            log_in(at, pin="0000")


def test_only_a_digest_of_the_token_is_stored(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    login = log_in(at)
    stored = AuthToken.objects.values().get()
    assert login.token not in {str(value) for value in stored.values()}
    assert login.token.startswith("ksk_")


def test_five_wrong_pins_lock_the_number_for_15_minutes(db: None, at: datetime) -> None:
    # given
    member(phone_number=NUMBER)
    enter_wrong_pins(at, 4)

    # when
    with pytest.raises(auth.TooManyTries) as refused:
        log_in(at, pin="0000")

    # then: even the correct PIN is refused until the lock ends, and a try does not extend the lock
    assert refused.value.until == at + timedelta(minutes=15)
    with pytest.raises(auth.TooManyTries) as again:
        log_in(at + timedelta(minutes=15) - timedelta(microseconds=1))
    assert again.value.until == at + timedelta(minutes=15)
    assert AuthToken.objects.count() == 0
    log_in(at + timedelta(minutes=15))


def test_each_further_five_wrong_pins_double_the_lock_up_to_one_day(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    locks = []
    for _ in range(9):
        enter_wrong_pins(at, 4)
        with pytest.raises(auth.TooManyTries) as refused:
            log_in(at, pin="0000")
        locks.append((refused.value.until - at).total_seconds() / 60)
        at = refused.value.until

    assert locks == [15, 30, 60, 120, 240, 480, 960, 1440, 1440]


def test_correct_pin_resets_the_count_of_wrong_pins(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    enter_wrong_pins(at, 4)
    log_in(at)
    enter_wrong_pins(at, 4)
    log_in(at)
    # then: only the address still counts the wrong PINs, because other numbers share its limit
    assert {counter.key.partition(":")[0] for counter in PinCounter.objects.all()} == {"address", "overall"}


def test_wrong_pins_of_one_member_do_not_lock_another(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    other = member()
    enter_wrong_pins(at, 4)
    with pytest.raises(auth.TooManyTries):
        log_in(at, pin="0000")
    assert log_in(at, phone_number=other.phone_number).user_id == other.pk


def test_login_with_an_invalid_phone_number_is_refused(db: None, at: datetime) -> None:
    with pytest.raises(phone.NotAPhoneNumber):
        log_in(at, phone_number="admin")


def test_wrong_pins_at_once_are_all_counted(transactional_db: None, at: datetime) -> None:
    # given
    member(phone_number=NUMBER)

    # when
    refusals = at_once(*[lambda: log_in(at, pin="0000")] * 4)

    # then
    assert [type(refusal) for refusal in refusals] == [auth.WrongCredentials] * 4
    counter = PinCounter.objects.get(key=known_callers.number_counter(NUMBER))
    assert counter.wrong == 4


def test_token_and_end_of_sessions_are_refused_inside_a_transaction(db: None, at: datetime) -> None:
    """A transaction around them could take the change back after its answer."""
    user = member(phone_number=NUMBER)
    entered = auth.Entered(user, by_code=False, device="")

    with transaction.atomic():
        with pytest.raises(RuntimeError, match="durable"):
            auth.token_for(entered, rules=auth.Rules(), at=at)
        with pytest.raises(RuntimeError, match="durable"):
            auth.end_sessions(user=user, source="192.0.2.7", at=at)
