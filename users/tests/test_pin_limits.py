"""Tests of the limits on wrong PINs: spraying, locks that cannot keep an owner out, and unknown numbers."""

import threading
from datetime import datetime, timedelta

import pytest
from django.conf import Settings
from django.contrib.auth.hashers import MD5PasswordHasher
from django.db import connection
from django.test.utils import CaptureQueriesContext

from testing.builders import PIN, at_once, member
from users import audit, auth, hashing, known_callers, pin_limits
from users.models import CustomUser, KnownAddress, PinCounter
from users.pin_counters import FORGOTTEN_AFTER, Budget, Limits

OWNER, OUTSIDE = "192.0.2.7", "198.51.100.9"
NUMBER = "254712345678"


def log_in(at: datetime, pin: str = PIN, number: str = NUMBER, source: str = OUTSIDE, device: str = "") -> auth.Login:
    credentials = auth.Credentials(phone_number=number, pin=pin, source=source, device=device)
    return auth.log_in(credentials=credentials, rules=auth.Rules(), at=at)


def answer(at: datetime, pin: str = PIN, number: str = NUMBER, source: str = OUTSIDE, device: str = "") -> str:
    """Try to log in. Return the name of the refusal, or "in"."""
    try:
        log_in(at, pin, number, source, device)
    except (auth.WrongCredentials, auth.TooManyTries, hashing.Busy) as refusal:
        return type(refusal).__name__
    return "in"


def guess_until_locked(at: datetime, number: str = NUMBER) -> list[str]:
    """Send five wrong PINs to a number from five addresses."""
    return [answer(at, "0000", number, f"198.51.100.{host}") for host in range(5)]


# --- spraying --------------------------------------------------------------------------------------------------------


def test_one_pin_over_many_numbers_stops_at_the_limit_of_the_address(db: None, at: datetime) -> None:
    numbers = [member().phone_number for _ in range(30)]
    answers = [answer(at, "8068", number) for number in numbers]
    assert answers == ["WrongCredentials"] * 20 + ["TooManyTries"] * 10
    # then: two more tries an hour
    later = [answer(at + timedelta(hours=1), "8068", number) for number in numbers[20:24]]
    assert later == ["WrongCredentials"] * 2 + ["TooManyTries"] * 2
    assert answer(at, "8068", numbers[25], source="203.0.113.1") == "WrongCredentials"


def test_ipv6_addresses_of_one_host_share_a_limit(db: None, at: datetime) -> None:
    numbers = [member().phone_number for _ in range(21)]
    answers = [answer(at, "8068", number, f"2001:db8::{place + 1:x}") for place, number in enumerate(numbers)]
    assert answers == ["WrongCredentials"] * 20 + ["TooManyTries"]


def test_many_addresses_together_stop_at_the_overall_limit(db: None, at: datetime) -> None:
    # given
    limits = Limits(overall=Budget(burst=6, an_hour=1))
    owner = member()
    known = log_in(at, number=owner.phone_number, source=OWNER)
    newcomer = member()

    # when
    answers = []
    for host in range(8):
        credentials = auth.Credentials(phone_number=member().phone_number, pin="0000", source=f"203.0.113.{host}")
        with pytest.raises((auth.WrongCredentials, auth.TooManyTries)) as refused:
            auth.enter(credentials=credentials, rules=auth.Rules(limits=limits), at=at)
        answers.append(refused.type.__name__)

    # then: untrusted callers wait; a known device and a known address do not
    assert answers == ["WrongCredentials"] * 6 + ["TooManyTries"] * 2
    for source, device in ((OUTSIDE, known.device), (OWNER, "")):
        credentials = auth.Credentials(owner.phone_number, PIN, source=source, device=device)
        assert auth.enter(credentials=credentials, rules=auth.Rules(limits=limits), at=at).user == owner
    credentials = auth.Credentials(newcomer.phone_number, PIN, source="203.0.113.77")
    with pytest.raises(auth.TooManyTries):
        auth.enter(credentials=credentials, rules=auth.Rules(limits=limits), at=at)


def test_right_pins_spend_nothing_of_the_limits(db: None, at: datetime) -> None:
    for _ in range(25):
        assert answer(at, number=member().phone_number) == "in"
    assert {counter.wrong for counter in PinCounter.objects.all()} == {0}


# --- owners ----------------------------------------------------------------------------------------------------------


def test_lock_by_others_lets_a_known_device_in(db: None, at: datetime) -> None:
    # given
    member(phone_number=NUMBER)
    device = log_in(at, source=OWNER).device

    # when
    assert guess_until_locked(at) == ["WrongCredentials"] * 4 + ["TooManyTries"]

    # then
    assert answer(at, source="203.0.113.5") == "TooManyTries"
    assert answer(at, source="203.0.113.5", device=device) == "in"
    assert answer(at, source=OWNER) == "in"


def test_known_device_has_its_own_five_tries(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    device = log_in(at, source=OWNER).device
    answers = [answer(at, "0000", device=device) for _ in range(5)]
    assert answers == ["WrongCredentials"] * 4 + ["TooManyTries"]
    assert answer(at, device=device) == "TooManyTries"
    assert answer(at, device=device, source=OWNER) == "TooManyTries"
    assert answer(at + timedelta(minutes=15), device=device) == "in"


def test_known_device_of_one_member_does_not_serve_another(db: None, at: datetime) -> None:
    own, other = member(), member(phone_number=NUMBER)
    device = log_in(at, number=own.phone_number, source=OWNER).device
    guess_until_locked(at)
    assert answer(at, source="203.0.113.5", device=device) == "TooManyTries"
    for forged in ("", "x", device[:-1], device + "a", "a:b:c", "\x00", "é" * 400):
        assert answer(at, source="203.0.113.5", device=forged) == "TooManyTries"
    assert known_callers.device_token(other, device=device) != device


def test_right_pin_from_a_known_device_keeps_the_lock_of_others(db: None, at: datetime) -> None:
    """Otherwise each login of the owner would give an untrusted caller five more tries."""
    member(phone_number=NUMBER)
    device = log_in(at, source=OWNER).device
    guess_until_locked(at)
    log_in(at, source=OWNER, device=device)
    assert answer(at, "0000", source="203.0.113.5") == "TooManyTries"


def test_change_of_the_pin_makes_devices_and_addresses_unknown(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    device = log_in(at, source=OWNER).device
    user.set_password("7391")
    user.save()
    guess_until_locked(at)
    for source in (OWNER, "203.0.113.5"):
        assert answer(at, "7391", source=source, device=device) == "TooManyTries"


def test_ten_addresses_of_a_member_are_kept(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    for host in range(12):
        log_in(at + timedelta(minutes=host), source=f"192.0.2.{host}")
    assert KnownAddress.objects.filter(user=user).count() == 10
    later = at + timedelta(hours=1)
    guess_until_locked(later)
    assert [answer(later, source=f"192.0.2.{host}") for host in (0, 11)] == ["TooManyTries", "in"]


def test_unlocked_number_may_try_again(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    guess_until_locked(at)
    auth.unlock(user=user, by=audit.MACHINE, at=at)
    assert answer(at, source="203.0.113.5") == "in"


# --- unknown numbers -------------------------------------------------------------------------------------------------


def test_unknown_number_gets_the_answers_of_a_known_one(db: None, at: datetime) -> None:
    """An answer that differs would show an untrusted caller who is a member."""
    known, unknown, suspended = member().phone_number, "254799999999", member(is_active=False).phone_number
    answers = {number: guess_until_locked(at, number) for number in (known, unknown, suspended)}
    assert answers[unknown] == answers[known] == answers[suspended] == ["WrongCredentials"] * 4 + ["TooManyTries"]
    texts = set()
    for number in answers:
        with pytest.raises(auth.TooManyTries) as refused:
            log_in(at, number=number, source="203.0.113.5")
        texts.add(str(refused.value))
    assert len(texts) == 1


def test_unknown_number_costs_the_statements_of_a_known_one(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    statements = []
    for number in (NUMBER, "254799999999"):
        with CaptureQueriesContext(connection) as captured:
            answer(at, "0000", number)
        statements.append(len(captured))
    assert statements[0] == statements[1]


# --- counting --------------------------------------------------------------------------------------------------------


def test_simultaneous_guesses_cannot_exceed_the_lock(transactional_db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    refusals = at_once(*[lambda: log_in(at, "0000")] * 16)
    checked = sum(type(refusal) is auth.WrongCredentials for refusal in refusals)
    assert checked <= 5
    assert PinCounter.objects.get(key=known_callers.number_counter(NUMBER)).wrong <= 5


def test_login_beyond_the_bound_is_refused_at_once_and_not_counted(db: None, at: datetime) -> None:
    # given: all places are taken
    member(phone_number=NUMBER)
    for _ in range(hashing.AT_ONCE_OR_WAITING):
        assert hashing._places.acquire(blocking=False)

    # when
    try:
        refused = answer(at)
    finally:
        for _ in range(hashing.AT_ONCE_OR_WAITING):
            hashing._places.release()

    # then
    assert refused == "Busy"
    assert {counter.wrong for counter in PinCounter.objects.all()} == {0}
    assert answer(at) == "in"


class HeldHasher(MD5PasswordHasher):
    """Hasher that waits until the test lets it go, and counts how many threads are in it."""

    algorithm = "held"
    let_go = threading.Event()
    inside = most = 0
    lock = threading.Lock()

    def verify(self, password: str, encoded: str) -> bool:
        with HeldHasher.lock:
            HeldHasher.inside += 1
            HeldHasher.most = max(HeldHasher.most, HeldHasher.inside)
        assert HeldHasher.let_go.wait(30)
        with HeldHasher.lock:
            HeldHasher.inside -= 1
        return True


def test_two_pins_at_most_are_hashed_at_once(settings: Settings) -> None:
    # given
    settings.PASSWORD_HASHERS = [f"{__name__}.HeldHasher"]
    threads = [threading.Thread(target=hashing.matches, args=(PIN, "held$salt$hash")) for _ in range(4)]

    # when: four logins come, and then a fifth
    for thread in threads:
        thread.start()
    while hashing._places.acquire(blocking=False):
        hashing._places.release()
    with pytest.raises(hashing.Busy):
        hashing.matches(PIN, "held$salt$hash")
    HeldHasher.let_go.set()
    for thread in threads:
        thread.join()

    # then
    assert HeldHasher.most <= hashing.AT_ONCE


def test_old_counters_are_deleted_by_later_tries(db: None, at: datetime) -> None:
    for place in range(5):
        answer(at, "0000", f"25479999999{place}", f"203.0.113.{place}")
    before = PinCounter.objects.count()
    answer(at + FORGOTTEN_AFTER + timedelta(days=1), "0000", "254711111111", "203.0.113.99")
    assert PinCounter.objects.count() < before


def test_wrong_pins_are_forgotten_after_thirty_days(db: None, at: datetime) -> None:
    member(phone_number=NUMBER)
    for _ in range(4):
        answer(at, "0000")
    later = at + FORGOTTEN_AFTER + timedelta(hours=1)
    assert answer(later, "0000") == "WrongCredentials"
    assert PinCounter.objects.get(key=known_callers.number_counter(NUMBER)).wrong == 1


def test_counters_hold_no_phone_number_or_address(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    guess_until_locked(at)
    log_in(at + timedelta(days=1), source=OWNER)
    keys = " ".join(PinCounter.objects.values_list("key", flat=True))
    keys += " ".join(KnownAddress.objects.filter(user=user).values_list("address", flat=True))
    assert NUMBER not in keys
    assert "198.51" not in keys
    assert OWNER not in keys


def test_pin_of_a_logged_in_person_has_its_own_counter(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    guess_until_locked(at)
    auth.confirm_pin(user=user, pin=PIN, source=OUTSIDE, at=at)
    for _ in range(4):
        with pytest.raises(auth.WrongCredentials):
            auth.confirm_pin(user=user, pin="0000", source=OUTSIDE, at=at)
    for _ in range(2):
        with pytest.raises(pin_limits.TooManyTries):
            auth.confirm_pin(user=user, pin="0000", source=OUTSIDE, at=at)


def test_lock_by_others_does_not_stop_a_command_at_the_server(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    guess_until_locked(at)
    assert auth.check_pin(phone_number=NUMBER, pin=PIN, source="command", at=at, at_the_server=True) == user
    for expected in [auth.WrongCredentials] * 4 + [auth.TooManyTries] * 2:
        with pytest.raises(expected):
            auth.check_pin(phone_number=NUMBER, pin="0000", source="command", at=at, at_the_server=True)


def test_login_that_waited_during_a_change_of_the_pin_gets_no_token(db: None, at: datetime) -> None:
    """The PIN was right when it was checked, but the token would outlive the change."""
    user = member(phone_number=NUMBER)
    entered = auth.enter(credentials=auth.Credentials(NUMBER, PIN, source=OWNER), rules=auth.Rules(), at=at)
    CustomUser.objects.filter(pk=user.pk).update(password="another")
    with pytest.raises(auth.WrongCredentials):
        auth.token_for(entered, rules=auth.Rules(), at=at)
