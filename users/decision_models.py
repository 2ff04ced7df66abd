"""Tables of decided figures. `users.models` re-exports them."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models


class Figure(models.Model):
    """A value of one figure of law, limit or threshold, from a moment on; see users/figures.py.

    Rows are never changed: a later row replaces an earlier one. `set_by` is empty for first values and for commands.
    """

    class Certainty(models.TextChoices):
        HIGH = "high"
        MEDIUM = "medium"
        UNVERIFIED = "unverified"

    name = models.CharField(max_length=80)
    value = models.CharField(max_length=500)
    valid_from = models.DateTimeField()
    source = models.CharField(max_length=500, help_text="The law, form or decision that this value comes from.")
    certainty = models.CharField(max_length=10, choices=Certainty.choices, blank=True)
    set_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    set_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["name", "valid_from", "id"], name="figure_by_name")]

    def __str__(self) -> str:
        return f"{self.name} = {self.value}"
