"""Second factor of staff: codes of an authenticator app (TOTP), and recovery codes.

Each code works once. Recovery codes are for a lost phone; only a digest of each is stored. django-otp stores the
devices and throttles wrong codes: the wait doubles after each wrong code, up to MOST_FAILURES. It reads the clock
itself, because a code is valid for the present moment only.

A person who has lost app and recovery codes gets an enrolment code from an engineer (`manage.py forget_second_factor`).
Only with it they can set up a new app. So a PIN alone is never enough again.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice

from users import audit
from users.models import CustomUser, EnrolmentCode
from users.refusal import Refusal

RECOVERY_CODES = 10
ENROLMENT_LIFE = timedelta(hours=24)
# After this many wrong codes the wait grows no more: about nine minutes. Before each code comes a counted PIN.
MOST_FAILURES = 10
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_LONG_CODE = re.compile(f"[{_LETTERS}]{{16}}")
_APP_CODE = re.compile("[0-9]{6}", re.ASCII)
_BLANKS = re.compile(r"[\s\-\u2010-\u2015]")


WRONG_ENROLMENT_CODE = (
    "The enrolment code is wrong or older than a day. Ask the engineer for a new one; nothing was set up."
)


class WrongCode(Refusal):
    """The code is not the app's current code, was already used, or comes too soon after a wrong code."""


@dataclass(frozen=True)
class Enrolment:
    """The secret for the app: `url` for a QR code, `secret` in groups of four letters for typing by hand."""

    url: str
    secret: str


def enrolled(user: CustomUser) -> bool:
    """Return True if the member has set up an app, so that a login needs a code."""
    return TOTPDevice.objects.filter(user=user, confirmed=True).exists()


def awaits_enrolment(user: CustomUser) -> bool:
    """Return True if the member lost an app, and must show an enrolment code to set up another."""
    return EnrolmentCode.objects.filter(user=user).exists()


def may_enrol(user: CustomUser, enrolment_code: str, *, at: datetime) -> bool:
    """Return True if the member never had an app, or shows the enrolment code that an engineer gave."""
    due = EnrolmentCode.objects.filter(user=user).first()
    return due is None or (
        at < due.expires_at and secrets.compare_digest(due.digest, _digest(_cleaned(enrolment_code)))
    )


def all_enrolled(user_ids: Sequence[int]) -> set[int]:
    """Return those of the people who have set up an app."""
    return set(TOTPDevice.objects.filter(user__in=user_ids, confirmed=True).values_list("user_id", flat=True))


def begin(user: CustomUser, *, at: datetime, enrolment_code: str = "") -> Enrolment:
    """Create a secret for a member who has not set up an app.

    Idempotent: returns the existing secret until it is confirmed.
    Locks: the member.
    Raises: WrongCode without the enrolment code that is due.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        if not may_enrol(user, enrolment_code, at=at):
            raise WrongCode(WRONG_ENROLMENT_CODE)
        device, _ = TOTPDevice.objects.get_or_create(user=user, confirmed=False, defaults={"name": "app"})
    secret = device.config_url.partition("secret=")[2].partition("&")[0]
    return Enrolment(device.config_url, " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)))


def confirm(*, user: CustomUser, code: str, by: audit.Actor, at: datetime, enrolment_code: str = "") -> list[str]:
    """Finish the set-up with a first code of the app, and return the recovery codes, which are shown once.

    Locks: the member, the device, the end of the audit trail.
    Raises: WrongCode, also if the member has already set up an app, or without the enrolment code that is due.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        if not may_enrol(user, enrolment_code, at=at):
            raise WrongCode(WRONG_ENROLMENT_CODE)
        device = TOTPDevice.objects.select_for_update(no_key=True).filter(user=user, confirmed=False).first()
        correct = device is not None and not enrolled(user) and _verify(device, code)
        codes = []
        if correct and device is not None:
            device.confirmed = True
            device.save(update_fields=["confirmed"])
            EnrolmentCode.objects.filter(user=user).delete()
            codes = [_long_code() for _ in range(RECOVERY_CODES)]
            recovery = StaticDevice.objects.create(user=user, name="recovery")
            for recovery_code in codes:
                recovery.token_set.create(token=_digest(recovery_code)[:16])
            audit.record(
                action="staff.second_factor_set_up", by=by, subject=f"member:{user.pk}", before={}, after={}, at=at
            )
    if not correct:
        raise WrongCode("This code is wrong. The app is not set up yet; enter the next code it shows.")
    return codes


def check(*, user: CustomUser, code: str, by: audit.Actor, at: datetime) -> None:
    """Accept a code of the member's app or a recovery code. Each code works once. Blanks and dashes do not matter.

    A wrong code is recorded in the audit trail. A code of the wrong length is refused and makes nobody wait. A recovery
    code has 80 random bits, so wrong ones need no wait either. A right one ends the wait of the app.

    Locks: the device; for a wrong code also the end of the audit trail.
    Raises: WrongCode.
    """
    typed = _cleaned(code)
    kind = TOTPDevice if _APP_CODE.fullmatch(typed) else StaticDevice if _LONG_CODE.fullmatch(typed) else None
    with transaction.atomic(durable=True):
        device = kind and kind.objects.select_for_update(no_key=True).filter(user=user, confirmed=True).first()
        correct = device is not None and _verify(device, typed)
        if correct and kind is StaticDevice:
            TOTPDevice.objects.filter(user=user).update(throttling_failure_count=0, throttling_failure_timestamp=None)
        if not correct:
            subject = f"member:{user.pk}"
            audit.record(action="login.code_refused", by=by, subject=subject, before={}, after={}, at=at)
    if not correct:
        raise WrongCode("This code is wrong, already used, or too soon after a wrong one. Wait for the next code.")


def forget(*, user: CustomUser, by: audit.Actor, at: datetime) -> str:
    """Remove the app and recovery codes of a member who lost them, and end their sessions and tokens.

    Returns an enrolment code, which is shown once. The next login asks for it before it sets up a new app.
    Locks: the member, the end of the audit trail.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        enrolment_code = remove(user, at=at)
        audit.record(
            action="staff.second_factor_removed", by=by, subject=f"member:{user.pk}", before={}, after={}, at=at
        )
    return enrolment_code


def remove(user: CustomUser, *, at: datetime) -> str:
    """Do what `forget` does, in the transaction of a caller that has locked the member and records the decision."""
    enrolment_code = _long_code()
    TOTPDevice.objects.filter(user=user).delete()
    StaticDevice.objects.filter(user=user).delete()
    due = {"digest": _digest(_cleaned(enrolment_code)), "expires_at": at + ENROLMENT_LIFE}
    EnrolmentCode.objects.update_or_create(user=user, defaults=due)
    CustomUser.objects.filter(pk=user.pk).update(session_epoch=F("session_epoch") + 1)
    return enrolment_code


def _verify(device: TOTPDevice | StaticDevice, typed: str) -> bool:
    if isinstance(device, TOTPDevice):
        device.throttling_failure_count = min(device.throttling_failure_count, MOST_FAILURES)
        return device.verify_token(typed)
    return device.verify_token(_digest(typed)[:16])


def _cleaned(typed: str) -> str:
    """Return a typed code in small letters, without blanks and dashes."""
    return _BLANKS.sub("", typed).lower()


def _long_code() -> str:
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(4))


def _digest(code: str) -> str:
    """Return the digest of a long code in its written form, with dashes."""
    written = "-".join(code.strip().lower().replace("-", "")[at : at + 4] for at in range(0, 16, 4))
    return hashlib.sha256(written.encode()).hexdigest()
