"""The second factor of staff: six digits of an app (TOTP), each good once, and recovery codes for a lost phone.

django-otp keeps the devices and throttles wrong codes: after each the wait doubles. What we keep of a recovery code is
a digest. Times are its own clock's, as a code is about this very moment.
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
    """The code is not the app's of this moment, was used already, or comes too soon after wrong ones."""


@dataclass(frozen=True)
class Enrolment:
    """What the app must be given: `url` as a QR code holds it, `secret` to type by hand, in groups of four."""

    url: str
    secret: str


def enrolled(user: CustomUser) -> bool:
    """Whether the member's app is set up, so that a code is asked for."""
    return TOTPDevice.objects.filter(user=user, confirmed=True).exists()


def begin(user: CustomUser) -> Enrolment:
    """Draw a secret for a member who has no app set up, or return the one drawn and not confirmed yet. Idempotent."""
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        device, _ = TOTPDevice.objects.get_or_create(user=user, confirmed=False, defaults={"name": "app"})
    secret = device.config_url.partition("secret=")[2].partition("&")[0]
    return Enrolment(device.config_url, " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)))


def confirm(*, user: CustomUser, code: str, by: audit.Actor, at: datetime) -> list[str]:
    """Finish the set-up by a first code of the app; return the recovery codes, which are shown once.

    Locks: the member, the device.
    Raises: WrongCode, also where an app is set up already.
    """
    with transaction.atomic(durable=True):
        CustomUser.objects.select_for_update(no_key=True).get(pk=user.pk)
        device = TOTPDevice.objects.select_for_update(no_key=True).filter(user=user, confirmed=False).first()
        right = device is not None and not enrolled(user) and _verify(device, code)
        codes = []
        if right and device is not None:
            device.confirmed = True
            device.save(update_fields=["confirmed"])
            codes = [_recovery_code() for _ in range(RECOVERY_CODES)]
            box = StaticDevice.objects.create(user=user, name="recovery")
            for one in codes:
                box.token_set.create(token=_digest(one))
            audit.record(
                action="staff.second_factor_set_up", by=by, subject=f"member:{user.pk}", before={}, after={}, at=at
            )
    if not right:
        raise WrongCode("The code is not right. Nothing was set up; try the app's next code.")
    return codes


def check(*, user: CustomUser, code: str, by: audit.Actor, at: datetime) -> None:
    """Accept a code of the member's app, or one of the recovery codes; either is good once. A wrong one is recorded.

    Locks: the device.
    Raises: WrongCode.
    """
    kind = TOTPDevice if code.strip().isdigit() else StaticDevice
    with transaction.atomic(durable=True):
        device = kind.objects.select_for_update(no_key=True).filter(user=user, confirmed=True).first()
        right = device is not None and _verify(device, code)
        if not right:
            subject = f"member:{user.pk}"
            audit.record(action="login.code_refused", by=by, subject=subject, before={}, after={}, at=at)
    if not right:
        raise WrongCode("The code is not right, was used already, or comes too soon after wrong ones.")


def forget(*, user: CustomUser, by: audit.Actor, at: datetime) -> None:
    """Remove the member's app and recovery codes: the next login sets up a new one. For a lost phone.

    Locks: the member.
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
        right = typed.isascii() and typed.isdigit() and len(typed) == device.digits
        return device.verify_token(typed) if right else device.verify_token("none")
    return device.verify_token(_digest(typed))


def _recovery_code() -> str:
    letters = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))


def _digest(code: str) -> str:
    return hashlib.sha256(code.strip().lower().encode()).hexdigest()[:16]
