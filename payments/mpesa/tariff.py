"""Charges that M-Pesa takes from the business for B2C payments to registered customers. Pure.

The tariff itself is a dated figure (users/figures.py). Callers pass its bands.
"""

from collections.abc import Sequence
from decimal import Decimal

Bands = Sequence[tuple[Decimal, Decimal]]


class NoTariff(LookupError):
    """The tariff has no charge for this amount."""


def charge(amount: Decimal, bands: Bands) -> Decimal:
    """Return the charge for one payment. `bands` are (largest amount, charge), the lowest band first.

    Units: shillings.
    Raises: NoTariff for an amount outside the bands.
    """
    if not amount.is_finite() or amount <= 0:
        raise NoTariff(f"no charge for an amount of {amount}")
    for largest, price in bands:
        if amount <= largest:
            return price
    raise NoTariff(f"the tariff has no band for {amount}")
