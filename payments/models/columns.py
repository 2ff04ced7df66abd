"""Columns of money."""

from django.db import models


def shillings(**options: object) -> models.DecimalField:
    return models.DecimalField(max_digits=16, decimal_places=2, **options)  # type: ignore[arg-type]
