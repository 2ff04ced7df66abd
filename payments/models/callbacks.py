"""Callbacks, stored as they arrived."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q

from payments.models.float_readings import FloatReading
from payments.models.payouts import Attempt, StatusQuery


class Callback(models.Model):
    """A message about one of our requests, stored unchanged and then applied once.

    The same message is stored once from a trusted and once from an untrusted address. An untrusted caller that sends
    the message first therefore does not block M-Pesa's message.
    """

    class Kind(models.TextChoices):
        RESULT = "result"
        TIMEOUT = "timeout"
        STATUS = "status"
        PLAIN = "plain"
        BALANCE = "balance"

    kind = models.CharField(max_length=10, choices=Kind.choices)
    originator_conversation_id = models.CharField(
        max_length=36, blank=True, help_text="The id of a request that we sent but do not have."
    )
    attempt = models.ForeignKey(Attempt, on_delete=models.PROTECT, null=True, related_name="callbacks")
    query = models.ForeignKey(StatusQuery, on_delete=models.PROTECT, null=True, related_name="callbacks")
    reading = models.ForeignKey(FloatReading, on_delete=models.PROTECT, null=True, related_name="callbacks")
    body = models.BinaryField()
    digest = models.CharField(max_length=64)
    received_at = models.DateTimeField()
    source_ip = models.GenericIPAddressField(null=True)
    trusted = models.BooleanField(help_text="It came from one of M-Pesa's addresses.")
    applied_at = models.DateTimeField(null=True)
    verdict = models.CharField(max_length=200, blank=True, help_text="The outcome in words.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                # A parked callback has only the id of its request.
                fields=["kind", "attempt", "query", "reading", "originator_conversation_id", "digest", "trusted"],
                condition=~Q(kind="plain"),
                nulls_distinct=False,
                name="callback_once_an_address",
            )
        ]
        indexes: ClassVar = [
            models.Index(fields=["id"], condition=Q(applied_at__isnull=True), name="callback_to_apply")
        ]

    def __str__(self) -> str:
        return f"Callback {self.pk} ({self.kind})"
