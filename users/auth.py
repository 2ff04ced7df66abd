"""Login and every other check of a PIN. Each check is counted, and refused beyond the limits of users/pin_limits.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from knox.models import AuthToken

from users import audit, hashing, known_callers, phone, pin_limits, pins, second_factor, tokens
from users.models import CustomUser
from users.pin_counters import Limits
from users.pin_limits import TooManyTries as TooManyTries
from users.refusal import Refusal

LOGIN_FAILED = (
    "Login failed. The phone number, the PIN or the code is wrong. Staff also send the current code of their"
    " authenticator app, which they set up in the console."
)


class WrongCredentials(Refusal):
    """The number is unknown or suspended, or the PIN or the code is wrong. The caller is not told which."""


@dataclass(frozen=True)
class Credentials:
    """What a caller shows at a login: number, PIN, for staff a code, and the token of a known device.

    `source` is the address of the caller.
    """

    phone_number: str
    pin: str
    source: str
    code: str = ""
    device: str = ""


@dataclass(frozen=True)
class Rules:
    """Rules of logins, from the settings.

    `staff_need_code`: refuse tokens to staff who have no authenticator app.
    `pin_rules`: refuse PINs that are easy to guess when people choose one.
    `staff_idle`: time without a call after which a token of staff ends, or None.
    """

    staff_need_code: bool = False
    pin_rules: bool = False
    staff_idle: timedelta | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Entered:
    """A member whose PIN was right. `by_code`: the code was right too. `device`: the token for the caller's device."""

    user: CustomUser
    by_code: bool
    device: str


@dataclass(frozen=True)
class Login:
    """A new bearer token, its expiry, its member and the token for the caller's device."""

    token: str
    expires_at: datetime
    user_id: int
    device: str


def log_in(*, credentials: Credentials, rules: Rules, at: datetime) -> Login:
    """Exchange a phone number, a PIN and for staff a code for a token. Only the token's digest is stored.

    Staff who have set up an app need its code. Staff without one are refused if the rules say so, or if they have lost
    an app: they set up another in the console.
    Locks: as `enter`, then the member's row.
    Raises: phone.NotAPhoneNumber; WrongCredentials; TooManyTries; hashing.Busy.
    """
    return token_for(enter(credentials=credentials, rules=rules, at=at), rules=rules, at=at)


def token_for(entered: Entered, *, rules: Rules, at: datetime) -> Login:
    """Make a token for a member whose PIN was right, unless the PIN was changed since it was checked.

    Locks: the member's row.
    Raises: WrongCredentials.
    """
    user = entered.user
    with transaction.atomic(durable=True):
        current = CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        if not current.is_active or (current.password, current.session_epoch) != (user.password, user.session_epoch):
            raise WrongCredentials(LOGIN_FAILED)
        idle = {"expiry": rules.staff_idle} if current.is_staff and rules.staff_idle else {}
        token, secret = AuthToken.objects.create(user=current, **idle)
        if entered.by_code:
            tokens.remember(token, at=at)
    return Login(token=secret, expires_at=token.expiry, user_id=user.pk, device=entered.device)


def enter(*, credentials: Credentials, rules: Rules, at: datetime, may_enrol: bool = False) -> Entered:
    """Return the member who has this number and this PIN. Check the code of staff who have set up an app.

    Every failure gets the same answer: unknown number, suspended member, wrong PIN, wrong or missing code.
    `may_enrol` lets staff without an app in, because the console then sets one up. A member's code is ignored.
    Logins and wrong PINs of staff are recorded in the audit trail. Refused tries beyond a limit are not recorded, so
    that an untrusted caller cannot fill the trail.
    Locks: counters of wrong PINs; with a code the device; then for staff the end of the audit trail.
    Raises: phone.NotAPhoneNumber; WrongCredentials; TooManyTries; hashing.Busy.
    """
    number = phone.normalise(credentials.phone_number)
    found = CustomUser.objects.filter(phone_number=number).first()
    keys = known_callers.counters(found, phone_number=number, source=credentials.source, device=credentials.device)
    user, ticket = _counted(
        found, pin=credentials.pin, keys=keys, limits=rules.limits, source=credentials.source, at=at
    )
    by_code = user.is_staff and second_factor.enrolled(user)
    by = audit.Actor(user_id=user.pk, source=credentials.source)
    if by_code:
        try:
            second_factor.check(user=user, code=credentials.code, by=by, at=at)
        except second_factor.WrongCode as refusal:
            raise _failure(ticket) from refusal
    elif user.is_staff and not may_enrol and (rules.staff_need_code or second_factor.awaits_enrolment(user)):
        raise _failure(ticket)
    _accept(user, ticket, source=credentials.source, at=at)
    return Entered(user, by_code, known_callers.device_token(user, device=credentials.device))


def check_pin(
    *,
    phone_number: str,
    pin: str,
    source: str,
    at: datetime,
    limits: Limits | None = None,
    at_the_server: bool = False,
) -> CustomUser:
    """Return the member who has this number and this PIN, without a look at a second factor.

    With `at_the_server` the try has the counter of logged-in persons, because only an engineer can run a command.
    Locks: as `enter`.
    Raises: phone.NotAPhoneNumber; WrongCredentials; TooManyTries; hashing.Busy.
    """
    number = phone.normalise(phone_number)
    found = CustomUser.objects.filter(phone_number=number).first()
    if at_the_server and found is not None:
        keys: tuple[str, ...] = (known_callers.inside_counter(found),)
    else:
        keys = known_callers.counters(found, phone_number=number, source=source, device="")
    user, ticket = _counted(found, pin=pin, keys=keys, limits=limits or Limits(), source=source, at=at)
    _accept(user, ticket, source=source, at=at)
    return user


def confirm_pin(*, user: CustomUser, pin: str, source: str, at: datetime) -> None:
    """Check the PIN of a person who is already logged in.

    A separate counter counts these tries. So callers at the login cannot lock it, and a thief of a session gets
    five tries.
    Locks: the counter, then for staff the end of the audit trail.
    Raises: WrongCredentials; TooManyTries; hashing.Busy.
    """
    keys = [known_callers.inside_counter(user)]
    _, ticket = _counted(user, pin=pin, keys=keys, limits=Limits(), source=source, at=at)
    with transaction.atomic(durable=True):
        pin_limits.accept(ticket, at=at)
        if user.is_staff:
            _record(user, ticket, correct=True, source=source, at=at)


def change_pin(*, user: CustomUser, pin: str, new_pin: str, rules: Rules, source: str, at: datetime) -> Entered:
    """Replace a person's PIN after a check of the present one. All sessions, tokens and known devices end.

    Returns the person, who may get a new token at once.
    Locks: the counter; then the member's row and the end of the audit trail.
    Raises: WrongCredentials; TooManyTries; hashing.Busy; pins.BadPin.
    """
    confirm_pin(user=user, pin=pin, source=source, at=at)
    if new_pin == pin:
        raise pins.BadPin("This is your present PIN. Please choose another. Your PIN was not changed.")
    if rules.pin_rules:
        pins.check(new_pin, phone_number=user.phone_number, is_staff=user.is_staff)
    with transaction.atomic(durable=True):
        current = CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        if current.password != user.password:
            raise WrongCredentials("Your PIN was changed at the same moment. Log in with the new one.")
        current.set_password(new_pin)
        current.save(update_fields=["password"])
        _record_change(current, "member.pin_changed", source=source, at=at)
    current.refresh_from_db()
    return Entered(current, by_code=False, device=known_callers.device_token(current))


def end_sessions(*, user: CustomUser, source: str, at: datetime) -> None:
    """End all sessions, tokens and known devices of a person who asks for it.

    Locks: the member's row, the end of the audit trail.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.filter(pk=user.pk).update(session_epoch=F("session_epoch") + 1)
        _record_change(user, "login.ended_everywhere", source=source, at=at)


def unlock(*, user: CustomUser, by: audit.Actor, at: datetime) -> None:
    """Forget the wrong PINs at a member's number, so that its owner may log in from a new device at once.

    Locks: the counters, the end of the audit trail.
    """
    with transaction.atomic(durable=True):
        forget_wrong_pins(user)
        audit.record(action="login.unlocked", by=by, subject=f"member:{user.pk}", before={}, after={}, at=at)


def forget_wrong_pins(user: CustomUser) -> None:
    """Forget the wrong PINs at a member's number, in the transaction of a caller that records the decision.

    Locks: the counters.
    """
    pin_limits.forget([known_callers.number_counter(user.phone_number), known_callers.inside_counter(user)])


def _counted(
    user: CustomUser | None, *, pin: str, keys: Sequence[str], limits: Limits, source: str, at: datetime
) -> tuple[CustomUser, pin_limits.Ticket]:
    """Count a try, check the PIN, and return the member and the ticket of a right PIN. A wrong PIN stays counted."""
    ticket = pin_limits.reserve(keys, limits=limits, at=at)
    try:
        correct = hashing.matches(pin, user.password if user else None)
    except hashing.Busy:
        pin_limits.cancel(ticket, at=at)
        raise
    if user is not None and correct and user.is_active:
        return user, ticket
    if user is not None and user.is_staff:
        with transaction.atomic(durable=True):
            _record(user, ticket, correct=False, source=source, at=at)
    raise _failure(ticket)


def _failure(ticket: pin_limits.Ticket) -> Refusal:
    """Return the refusal of a counted try: the end of the lock that it began, or the one answer for all failures."""
    return TooManyTries(ticket.locked_until) if ticket.locked_until else WrongCredentials(LOGIN_FAILED)


def _accept(user: CustomUser, ticket: pin_limits.Ticket, *, source: str, at: datetime) -> None:
    with transaction.atomic(durable=True):
        pin_limits.accept(ticket, at=at)
        known_callers.remember_address(user, source=source, at=at)
        if user.is_staff:
            _record(user, ticket, correct=True, source=source, at=at)


def _record_change(user: CustomUser, action: str, *, source: str, at: datetime) -> None:
    by = audit.Actor(user_id=user.pk, source=source)
    audit.record(action=action, by=by, subject=f"member:{user.pk}", before={}, after={}, at=at)


def _record(user: CustomUser, ticket: pin_limits.Ticket, *, correct: bool, source: str, at: datetime) -> None:
    audit.record(
        action="login.accepted" if correct else "login.refused",
        by=audit.Actor(user_id=user.pk, source=source),
        subject=f"member:{user.pk}",
        before={},
        after={
            "failed_logins": 0 if correct else ticket.first.wrong,
            "locked_until": None if correct else ticket.locked_until,
        },
        at=at,
    )
