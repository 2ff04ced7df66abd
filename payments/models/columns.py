"""Model fields for amounts of money."""

from django.db import models


def shillings(**options: object) -> models.DecimalField:
    """Return a field for an amount in Kenyan shillings, to the cent."""
    return models.DecimalField(max_digits=16, decimal_places=2, **options)  # type: ignore[arg-type]
