"""Tests of users/auth.py: tokens for correct PINs, and locks after wrong ones."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from knox.models import AuthToken

from testing.builders import PIN, at_once, member, operator
from testing.console_scenes import code_of, enrol
from users import audit, auth, known_callers, phone, pins, second_factor
from users.models import AuditEntry, CustomUser, KnownAddress, PinCounter, TokenProof

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


@pytest.mark.parametrize("change", [{"password": "another"}, {"session_epoch": 7}, {"is_active": False}])
def test_change_after_the_check_of_the_pin_gives_no_token(db: None, at: datetime, change: dict[str, Any]) -> None:
    user = member(phone_number=NUMBER)
    CustomUser.objects.filter(pk=user.pk).update(**change)

    with pytest.raises(auth.WrongCredentials):
        auth.token_for(auth.Entered(user, by_code=False, device=""), rules=auth.Rules(), at=at)
    assert not AuthToken.objects.exists()


@pytest.mark.parametrize(
    ("is_staff", "idle", "minutes"),
    [(True, timedelta(minutes=30), 30), (True, None, 480), (False, timedelta(minutes=30), 480), (False, None, 480)],
)
def test_only_tokens_of_staff_begin_with_the_idle_time(
    db: None, at: datetime, is_staff: bool, idle: timedelta | None, minutes: int
) -> None:
    user = member(is_staff=is_staff)

    auth.token_for(auth.Entered(user, by_code=False, device=""), rules=auth.Rules(staff_idle=idle), at=at)

    token = AuthToken.objects.get()
    assert round((token.expiry - token.created).total_seconds() / 60) == minutes


def test_staff_with_an_app_need_its_code(db: None, at: datetime) -> None:
    # given
    user = operator(phone_number=NUMBER)
    enrol(user, at)
    credentials = auth.Credentials(NUMBER, PIN, source="192.0.2.7")

    # then
    with pytest.raises(auth.WrongCredentials):
        auth.log_in(credentials=credentials, rules=auth.Rules(), at=at)

    # when
    auth.log_in(credentials=replace(credentials, code=code_of(user)), rules=auth.Rules(), at=at)

    # then: the token has proved itself by the code
    assert TokenProof.objects.get(token__user=user).at == at


@pytest.mark.parametrize(("needed", "lost"), [(True, False), (False, True)])
def test_staff_without_an_app_get_no_token_if_a_code_is_needed_or_lost(
    db: None, at: datetime, needed: bool, lost: bool
) -> None:
    # given
    user = operator(phone_number=NUMBER)
    credentials, rules = auth.Credentials(NUMBER, PIN, source="192.0.2.7"), auth.Rules(staff_need_code=needed)
    if lost:
        with transaction.atomic():
            second_factor.remove(user, at=at)

    # then: only the console lets them in, because it sets an app up
    with pytest.raises(auth.WrongCredentials):
        auth.log_in(credentials=credentials, rules=rules, at=at)
    assert auth.enter(credentials=credentials, rules=rules, at=at, may_enrol=True).user == user


def test_staff_and_members_without_an_app_log_in_by_the_pin_alone(db: None, at: datetime) -> None:
    operator(phone_number=NUMBER)
    other = member()

    log_in(at)
    credentials = auth.Credentials(other.phone_number, PIN, source="192.0.2.7")
    auth.log_in(credentials=credentials, rules=auth.Rules(staff_need_code=True), at=at)

    assert AuthToken.objects.count() == 2
    assert not TokenProof.objects.exists()
    assert AuditEntry.objects.filter(action="login.accepted").count() == 1


def test_pin_is_checked_against_the_member_of_the_number(db: None, at: datetime) -> None:
    member(pin="8068")
    second = member()
    assert auth.check_pin(phone_number=second.phone_number, pin=PIN, source="192.0.2.7", at=at) == second
    assert KnownAddress.objects.get().user == second


def test_unknown_number_gets_the_answer_of_a_wrong_pin(db: None, at: datetime) -> None:
    with pytest.raises(auth.WrongCredentials, match="Login failed"):
        log_in(at)


def test_present_pin_is_refused_as_the_new_one_without_rules_too(db: None, at: datetime) -> None:
    with pytest.raises(pins.BadPin, match="present PIN"):
        auth.change_pin(user=member(), pin=PIN, new_pin=PIN, rules=auth.Rules(), source="192.0.2.7", at=at)


def test_pin_changed_at_the_same_moment_is_not_changed_again(db: None, at: datetime) -> None:
    # given
    stale = member()
    changed = CustomUser.objects.get(pk=stale.pk)
    changed.set_password("8068")
    changed.save()

    # when
    with pytest.raises(auth.WrongCredentials, match="at the same moment"):
        auth.change_pin(user=stale, pin=PIN, new_pin="7391", rules=auth.Rules(), source="192.0.2.7", at=at)

    # then
    assert auth.check_pin(phone_number=stale.phone_number, pin="8068", source="192.0.2.7", at=at) == stale


def test_change_of_the_pin_is_no_proof_by_a_code(db: None, at: datetime) -> None:
    entered = auth.change_pin(
        user=member(), pin=PIN, new_pin="8068", rules=auth.Rules(), source="192.0.2.7", at=at
    )  # fmt: skip
    assert not entered.by_code


def test_end_of_sessions_ends_tokens_and_logins_under_way(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    log_in(at)

    auth.end_sessions(user=user, source="192.0.2.7", at=at)

    assert not AuthToken.objects.exists()
    with pytest.raises(auth.WrongCredentials):
        auth.token_for(auth.Entered(user, by_code=False, device=""), rules=auth.Rules(), at=at)
    assert AuditEntry.objects.get(action="login.ended_everywhere").actor == user


def test_unlocked_member_may_log_in_and_type_the_pin_again(db: None, at: datetime) -> None:
    # given
    user = member(phone_number=NUMBER)
    for _ in range(5):
        for attempt in (lambda: log_in(at, pin="0000"), lambda: auth.confirm_pin(
            user=user, pin="0000", source="192.0.2.7", at=at
        )):  # fmt: skip
            with pytest.raises((auth.WrongCredentials, auth.TooManyTries)):
                attempt()

    # when
    auth.unlock(user=user, by=audit.MACHINE, at=at)

    # then
    log_in(at)
    auth.confirm_pin(user=user, pin=PIN, source="192.0.2.7", at=at)
    assert AuditEntry.objects.get(action="login.unlocked").subject == f"member:{user.pk}"


def test_tries_of_staff_are_audited_with_their_count_and_lock(db: None, at: datetime) -> None:
    # given
    user = operator(phone_number=NUMBER)

    # when
    enter_wrong_pins(at, 4)
    with pytest.raises(auth.TooManyTries):
        log_in(at, pin="0000")
    log_in(at + timedelta(minutes=15))

    # then
    entries = AuditEntry.objects.order_by("number")
    assert [(entry.action, json.loads(entry.after)["failed_logins"]) for entry in entries] == [
        *(("login.refused", tries) for tries in range(1, 6)),
        ("login.accepted", 0),
    ]
    locks = [json.loads(entry.after)["locked_until"] for entry in entries]
    assert [lock is not None for lock in locks] == [False] * 4 + [True, False]
    assert {(entry.actor, entry.subject) for entry in entries} == {(user, f"member:{user.pk}")}


def test_tries_of_members_are_not_audited(db: None, at: datetime) -> None:
    user = member(phone_number=NUMBER)
    enter_wrong_pins(at, 1)
    log_in(at)
    auth.confirm_pin(user=user, pin=PIN, source="192.0.2.7", at=at)
    assert not AuditEntry.objects.exists()
