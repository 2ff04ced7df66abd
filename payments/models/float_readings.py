"""Readings of the Utility account's balance."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from payments.models.columns import shillings


class FloatReading(models.Model):
    """The Utility account's balance at one moment, in shillings, as M-Pesa stated it.

    M-Pesa states the balance in a payment's result, or when we ask for it. A balance query stores the hash of its
    callback token. It has no amount until its answer arrives.
    """

    class Source(models.TextChoices):
        RESULT = "result"
        BALANCE = "balance"

    source = models.CharField(max_length=8, choices=Source.choices)
    token_hash = models.CharField(max_length=64, null=True)  # noqa: DJ001 - absent where nothing was asked
    asked_at = models.DateTimeField(null=True)
    amount = shillings(null=True)
    read_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["token_hash"], name="float_token_once")]
        indexes: ClassVar = [
            models.Index(fields=["-read_at"], condition=Q(read_at__isnull=False), name="float_latest"),
        ]

    def __str__(self) -> str:
        return f"Float {self.amount} at {self.read_at}"
