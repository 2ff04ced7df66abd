"""Heartbeats, figures of the home page, and checks of the invariants."""

from __future__ import annotations

from django.db import models


class Heartbeat(models.Model):
    """When a part of the machine was last seen at work: beat, or a worker by its name. Written by overview_tasks."""

    name = models.CharField(max_length=120, unique=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Figures(models.Model):
    """A set of figures that is dear to compute, as beat last had it computed: the home page reads it as it is."""

    name = models.CharField(max_length=40, unique=True)
    at = models.DateTimeField()
    value = models.JSONField()

    class Meta:
        verbose_name_plural = "figures"

    def __str__(self) -> str:
        return f"{self.name} at {self.at:%Y-%m-%d %H:%M}"


class InvariantCheck(models.Model):
    """When an invariant of reconciliation.py was last checked, and what broke it then."""

    invariant = models.CharField(max_length=120, unique=True)
    checked_at = models.DateTimeField()
    seconds = models.FloatField()
    broken_by = models.JSONField(default=list, help_text="The first rows that break it, in words.")
    broken_count = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.invariant
