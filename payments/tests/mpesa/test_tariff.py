"""Charges follow the published tariff."""

from decimal import Decimal

import pytest

from payments.mpesa import tariff
from users import figures, first_figures

BANDS = figures.bands_of(first_figures.TARIFF)


@pytest.mark.parametrize(
    ("amount", "price"),
    [
        ("10", "0"),
        ("100", "0"),
        ("101", "5"),
        ("1500", "5"),
        ("1501", "9"),
        ("5000", "9"),
        ("5001", "11"),
        ("20000", "11"),
        ("20001", "13"),
        ("150000", "13"),
        ("250000", "13"),
    ],
)
def test_charge_follows_the_published_bands(amount: str, price: str) -> None:
    assert tariff.charge(Decimal(amount), BANDS) == Decimal(price)


@pytest.mark.parametrize("amount", ["0", "-5", "250000.01", "NaN"])
def test_amount_without_band_is_refused(amount: str) -> None:
    with pytest.raises(tariff.NoTariff):
        tariff.charge(Decimal(amount), BANDS)
