"""Second factor of staff: codes of an authenticator app (TOTP), and recovery codes.

Each code works once. Recovery codes are for a lost phone; only a digest of each is stored. django-otp stores the
devices and throttles wrong codes: the wait doubles after each wrong code. django-otp reads the clock itself, because a
code is valid for the present moment only.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice

from users import audit
from users.models import CustomUser
from users.refusal import Refusal

RECOVERY_CODES = 10


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


def begin(user: CustomUser) -> Enrolment:
    """Create a secret for a member who has not set up an app.

    Idempotent: returns the existing secret until it is confirmed.
    Locks: the member.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        device, _ = TOTPDevice.objects.get_or_create(user=user, confirmed=False, defaults={"name": "app"})
    secret = device.config_url.partition("secret=")[2].partition("&")[0]
    return Enrolment(device.config_url, " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)))


def confirm(*, user: CustomUser, code: str, by: audit.Actor, at: datetime) -> list[str]:
    """Finish the set-up with a first code of the app, and return the recovery codes, which are shown once.

    Locks: the member, the device, the end of the audit trail.
    Raises: WrongCode, also if the member has already set up an app.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        device = TOTPDevice.objects.select_for_update(no_key=True).filter(user=user, confirmed=False).first()
        correct = device is not None and not enrolled(user) and _verify(device, code)
        codes = []
        if correct and device is not None:
            device.confirmed = True
            device.save(update_fields=["confirmed"])
            codes = [_recovery_code() for _ in range(RECOVERY_CODES)]
            recovery = StaticDevice.objects.create(user=user, name="recovery")
            for recovery_code in codes:
                recovery.token_set.create(token=_digest(recovery_code))
            audit.record(
                action="staff.second_factor_set_up", by=by, subject=f"member:{user.pk}", before={}, after={}, at=at
            )
    if not correct:
        raise WrongCode("This code is wrong. The app is not set up yet; enter the next code it shows.")
    return codes


def check(*, user: CustomUser, code: str, by: audit.Actor, at: datetime) -> None:
    """Accept a code of the member's app or a recovery code. Each code works once.

    A wrong code is recorded in the audit trail.

    Locks: the device; for a wrong code also the end of the audit trail.
    Raises: WrongCode.
    """
    kind = TOTPDevice if code.strip().isdigit() else StaticDevice
    with transaction.atomic(durable=True):
        device = kind.objects.select_for_update(no_key=True).filter(user=user, confirmed=True).first()
        correct = device is not None and _verify(device, code)
        if not correct:
            subject = f"member:{user.pk}"
            audit.record(action="login.code_refused", by=by, subject=subject, before={}, after={}, at=at)
    if not correct:
        raise WrongCode("This code is wrong, already used, or too soon after a wrong one. Wait for the next code.")


def forget(*, user: CustomUser, by: audit.Actor, at: datetime) -> None:
    """Remove the app and recovery codes of a member who lost them. The next login sets up a new app.

    Locks: the member, the end of the audit trail.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        TOTPDevice.objects.filter(user=user).delete()
        StaticDevice.objects.filter(user=user).delete()
        audit.record(
            action="staff.second_factor_removed", by=by, subject=f"member:{user.pk}", before={}, after={}, at=at
        )


def _verify(device: TOTPDevice | StaticDevice, code: str) -> bool:
    typed = code.strip()
    if isinstance(device, TOTPDevice):
        well_formed = typed.isascii() and typed.isdigit() and len(typed) == device.digits
        # django-otp counts "none" as a wrong code, so malformed codes are throttled too.
        return device.verify_token(typed) if well_formed else device.verify_token("none")
    return device.verify_token(_digest(typed))


def _recovery_code() -> str:
    letters = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))


def _digest(code: str) -> str:
    return hashlib.sha256(code.strip().lower().encode()).hexdigest()[:16]
