"""Bulk retries of failed payouts."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q


class BulkRetry(models.Model):
    """The decision of a person to retry every failed payout of a choice, and its progress.

    It covers the payouts that had failed when it started. It goes on in batches by id, so any worker can continue it.
    """

    code = models.CharField(max_length=20, blank=True, help_text="The result code of the last request; empty: any.")
    market_id = models.BigIntegerField(null=True, help_text="Empty: any market.")
    since = models.DateTimeField(null=True, help_text="The earliest time of the failure. Empty: any time.")
    started_at = models.DateTimeField()
    started_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    started_from = models.CharField(max_length=64)
    last_id = models.BigIntegerField(default=0)
    chosen = models.PositiveIntegerField(help_text="Failed payouts of the choice when it started.")
    retried = models.PositiveIntegerField(default=0)
    skipped = models.PositiveIntegerField(default=0)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "bulk retries"
        indexes: ClassVar = [
            models.Index(fields=["id"], condition=Q(finished_at__isnull=True), name="bulk_retry_unfinished"),
        ]

    def __str__(self) -> str:
        return f"Bulk retry {self.pk}: {self.retried} of {self.chosen} payouts"

    @property
    def left(self) -> int:
        """Number of payouts that the bulk retry has not reached yet, by its count at the start."""
        return 0 if self.finished_at is not None else max(0, self.chosen - self.retried - self.skipped)

    @property
    def changed(self) -> int:
        """Number of payouts of the choice that were no longer failed when their turn came. Known at the end."""
        return 0 if self.finished_at is None else max(0, self.chosen - self.retried - self.skipped)
