"""Amounts sent to each member on each day."""

from typing import ClassVar

from django.conf import settings
from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import Q

from payments.models.columns import shillings


class DayTotal(models.Model):
    """The amount in shillings of the M-Pesa requests that count on one Nairobi day for one member.

    It holds the open and the paid requests whose latest POST was on that day. Only the latest days are kept.
    """

    pk = models.CompositePrimaryKey("user_id", "day")
    # Members are never deleted, so the foreign key needs no constraint. A row is written for each payout that leaves.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    day = models.DateField()
    amount = shillings()

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(amount__gte=0), name="day_total_is_not_negative"),
        ]
        # Old days are deleted. The rows lie in the order of the days, so this index costs a claim next to nothing.
        indexes: ClassVar = [BrinIndex(fields=["day"], name="day_total_by_day", pages_per_range=16)]

    def __str__(self) -> str:
        return f"{self.amount} to member {self.user_id} on {self.day}"
