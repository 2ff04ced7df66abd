"""Login: a phone number and a PIN are exchanged for a bearer token."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.hashers import check_password, make_password
from django.db import transaction
from knox.models import AuthToken

from users import audit, phone, second_factor, tokens
from users.models import CustomUser
from users.refusal import Refusal

# Five wrong PINs lock the number for 15 minutes. Each further five lock it twice as long, up to a day.
TRIES_BEFORE_LOCK = 5
FIRST_LOCK = timedelta(minutes=15)
LONGEST_LOCK = timedelta(hours=24)
# Hash of a PIN that nobody has. The PIN for an unknown number is checked against this hash, so that the refusal takes
# as long as for a known number.
_UNUSED_PIN = make_password("not a PIN")


class WrongCredentials(Refusal):
    """The number is unknown or suspended, or the PIN is wrong. The caller is not told which."""


class CodeRequired(Refusal):
    """The PIN is right, but this member of staff must also send a code."""


class SecondFactorNotSetUp(Refusal):
    """The PIN is right, but this member of staff has no authenticator app yet."""


class TooManyTries(Refusal):
    """The number is locked for some time after wrong PINs. Only a member's number can be locked."""

    def __init__(self, until: datetime) -> None:
        super().__init__(f"Too many wrong PINs. Try again after {until.isoformat(timespec='seconds')}.")
        self.until = until


@dataclass(frozen=True)
class Login:
    """A new bearer token, its expiry and its member."""

    token: str
    expires_at: datetime
    user_id: int


def log_in(*, phone_number: str, pin: str, code: str, staff_need_code: bool, source: str, at: datetime) -> Login:
    """Exchange a phone number, a PIN and for staff a code for a token. Only the token's digest is stored.

    Staff need a code if `staff_need_code` is set or if they have set up an app. A member's `code` is ignored.
    Locks: the member's row; with a code also the device.
    Raises: phone.NotAPhoneNumber; WrongCredentials; TooManyTries; CodeRequired; SecondFactorNotSetUp;
    second_factor.WrongCode.
    """
    user = check_pin(phone_number=phone_number, pin=pin, source=source, at=at)
    enrolled = user.is_staff and second_factor.enrolled(user)
    if enrolled:
        if not code:
            raise CodeRequired("Send the current code of your authenticator app as code.")
        second_factor.check(user=user, code=code, by=audit.Actor(user_id=user.pk, source=source), at=at)
    elif user.is_staff and staff_need_code:
        raise SecondFactorNotSetUp("Log in to the console first and set up an authenticator app.")
    with transaction.atomic(durable=True):
        token, secret = AuthToken.objects.create(user=user)
        if enrolled:
            tokens.remember(token, at=at)
    return Login(token=secret, expires_at=token.expiry, user_id=user.pk)


def check_pin(*, phone_number: str, pin: str, source: str, at: datetime) -> CustomUser:
    """Return the member who has this number and this PIN. `source` is the address the login came from.

    Logins and wrong PINs of staff are recorded in the audit trail. Tries at a locked number are not recorded, so that
    an untrusted caller cannot fill the trail. Wrong PINs are counted in PostgreSQL under the lock of the
    member's row, so neither a race nor a lost cache resets the count.
    Locks: the member's row, then for staff the end of the audit trail.
    Raises: phone.NotAPhoneNumber; WrongCredentials; TooManyTries.
    """
    number = phone.normalise(phone_number)
    refusal: Exception | None = None
    with transaction.atomic(durable=True):
        user = CustomUser.objects.select_for_update(no_key=True).filter(phone_number=number).first()
        if user is not None and user.locked_until is not None and user.locked_until > at:
            raise TooManyTries(user.locked_until)
        correct = check_password(pin, user.password if user else _UNUSED_PIN) and user is not None and user.is_active
        if user is not None and correct:
            if user.failed_logins:
                user.failed_logins, user.locked_until = 0, None
                user.save(update_fields=["failed_logins", "locked_until"])
        elif user is not None:
            refusal = _count_wrong_pin(user, at)
        if user is not None and user.is_staff:
            _record(user, correct=correct, source=source, at=at)
    if user is None or not correct:
        raise refusal or WrongCredentials("The phone number or the PIN is wrong.")
    return user


def _record(user: CustomUser, *, correct: bool, source: str, at: datetime) -> None:
    audit.record(
        action="login.accepted" if correct else "login.refused",
        by=audit.Actor(user_id=user.pk, source=source),
        subject=f"member:{user.pk}",
        before={},
        after={"failed_logins": user.failed_logins, "locked_until": user.locked_until},
        at=at,
    )


def _count_wrong_pin(user: CustomUser, at: datetime) -> TooManyTries | None:
    user.failed_logins += 1
    locks = user.failed_logins // TRIES_BEFORE_LOCK
    locked = locks > 0 and user.failed_logins % TRIES_BEFORE_LOCK == 0
    if locked:
        user.locked_until = at + min(FIRST_LOCK * 2 ** min(locks - 1, 10), LONGEST_LOCK)
    user.save(update_fields=["failed_logins", "locked_until"])
    return TooManyTries(user.locked_until) if locked and user.locked_until else None
