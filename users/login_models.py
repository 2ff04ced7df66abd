"""Tables of logins: counters of wrong PINs, known addresses, codes, proofs. `users.models` re-exports them."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models


class PinCounter(models.Model):
    """Counter of wrong PINs for a number, a device, an address, or all; see users/pin_limits.py.

    `until` is the end of a lock, or the time of the last try, or the time at which a budget is whole again. Keys hold
    digests of phone numbers and addresses.
    """

    key = models.CharField(max_length=80, primary_key=True)
    wrong = models.PositiveIntegerField()
    until = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["until"], name="pin_counter_by_age")]

    def __str__(self) -> str:
        return f"{self.key}: {self.wrong} wrong PINs"


class KnownAddress(models.Model):
    """Digest of an address from which a member has logged in; see users/known_callers.py."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="known_addresses")
    address = models.CharField(max_length=32)
    last_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "address"], name="known_address_once")]

    def __str__(self) -> str:
        return f"Address of member {self.user_id}, last seen {self.last_at:%Y-%m-%d}"


class EnrolmentCode(models.Model):
    """Digest of the code with which a member who lost an app may set up another; see users/second_factor.py."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="+")
    digest = models.CharField(max_length=64)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"Enrolment code of member {self.user_id}"


class ApiKey(models.Model):
    """A key with which a machine calls the REST API; see users/api_keys.py. `shown` is the beginning of its secret."""

    name = models.CharField(max_length=80)
    shown = models.CharField(max_length=16)
    digest = models.CharField(max_length=64, unique=True)
    acts = models.JSONField()
    addresses = models.JSONField()
    made_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="api_keys")
    made_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.name} ({self.shown}…)"


class TokenProof(models.Model):
    """Time at which the owner of a bearer token last showed a code; see users/tokens.py."""

    token = models.OneToOneField("knox.AuthToken", on_delete=models.CASCADE, primary_key=True, related_name="proof")
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"Code shown at {self.at:%Y-%m-%d %H:%M}"
