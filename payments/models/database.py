"""The profile of the database, which the database's own guards read."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q


class DatabaseProfile(models.Model):
    """One row that says if this database holds real money.

    Only the owner of the tables may change it, so no setting of a session opens a guard. In production the triggers
    refuse an assigned balance and a bet without its stake in the ledger. Without the row they refuse too.
    """

    ONLY_ROW = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY_ROW)
    production = models.BooleanField()

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(id=1), name="one_database_profile")]

    def __str__(self) -> str:
        return "production" if self.production else "development"
