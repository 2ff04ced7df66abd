"""Charges follow the published tariff."""

from datetime import date
from decimal import Decimal

import pytest

from payments.mpesa import tariff


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
    assert tariff.charge(Decimal(amount), date(2026, 11, 23)) == Decimal(price)


@pytest.mark.parametrize(
    ("amount", "on"),
    [
        ("0", date(2026, 1, 1)),
        ("-5", date(2026, 1, 1)),
        ("250000.01", date(2026, 1, 1)),
        ("NaN", date(2026, 1, 1)),
        ("100", date(2023, 7, 31)),
    ],
)
def test_amount_or_day_without_tariff_is_refused(amount: str, on: date) -> None:
    with pytest.raises(tariff.NoTariff):
        tariff.charge(Decimal(amount), on)
