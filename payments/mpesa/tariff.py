"""Charges that M-Pesa takes from the business for B2C payments to registered customers. Pure."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal


class NoTariff(LookupError):
    """No published charge for this amount on this day."""


@dataclass(frozen=True, slots=True)
class _Tariff:
    since: date
    bands: tuple[tuple[Decimal, Decimal], ...]  # (largest amount of the band, charge), both in shillings


# Newest first. Safaricom's published tariff form of 1 August 2023 has no band above 150,000. We assume the same price
# up to today's limit of 250,000. If Safaricom charges another price, the M-Pesa statement will show the difference.
_TARIFFS = (
    _Tariff(
        since=date(2023, 8, 1),
        bands=(
            (Decimal(100), Decimal(0)),
            (Decimal(1_500), Decimal(5)),
            (Decimal(5_000), Decimal(9)),
            (Decimal(20_000), Decimal(11)),
            (Decimal(150_000), Decimal(13)),
            (Decimal(250_000), Decimal(13)),
        ),
    ),
)


def bands(on: date) -> tuple[tuple[Decimal, Decimal], ...]:
    """Return the bands of a day's tariff: (largest amount, price), the lowest band first.

    Units: shillings; `on` is a Nairobi date.
    Raises: NoTariff for a day before the published tables.
    """
    for tariff in _TARIFFS:
        if on >= tariff.since:
            return tariff.bands
    raise NoTariff(f"no tariff on file for {on}")


def charge(amount: Decimal, on: date) -> Decimal:
    """Return the charge for one payment.

    Units: shillings; `on` is the Nairobi date of the payment.
    Raises: NoTariff for an amount or a day outside the published tables.
    Source: Safaricom B2C tariff form "C1-Public" of 1 August 2023.
    """
    if not amount.is_finite() or amount <= 0:
        raise NoTariff(f"no charge for an amount of {amount}")
    for largest, price in bands(on):
        if amount <= largest:
            return price
    raise NoTariff(f"the tariff of {on} has no band for {amount}")
