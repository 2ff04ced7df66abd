"""Heartbeats, figures for the home page, and results of invariant checks."""

from __future__ import annotations

from django.db import models


class Heartbeat(models.Model):
    """The latest time at which beat or a named worker reported that it runs. Written by monitoring_tasks."""

    name = models.CharField(max_length=120, unique=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Figures(models.Model):
    """A set of expensive figures. A task computes and stores it every minute, and the home page reads it."""

    name = models.CharField(max_length=40, unique=True)
    at = models.DateTimeField()
    value = models.JSONField()

    class Meta:
        verbose_name_plural = "figures"

    def __str__(self) -> str:
        return f"{self.name} at {self.at:%Y-%m-%d %H:%M}"


class InvariantCheck(models.Model):
    """The latest check of one invariant of ledger/invariants.py, and the rows that broke it."""

    invariant = models.CharField(max_length=120, unique=True)
    checked_at = models.DateTimeField()
    seconds = models.FloatField()
    broken_by = models.JSONField(default=list, help_text="The first rows that break it, in words.")
    broken_count = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.invariant
