"""First values of the figures of law and of limits, each with its source. A migration writes them. Pure.

A figure of law takes effect at 00:00 in Nairobi. Later values are decided by two people (users/figures.py).
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation

NAIROBI = timezone(timedelta(hours=3))
FINANCE_ACT_2025 = datetime(2025, 7, 1, tzinfo=NAIROBI)
GAMBLING_CONTROL_ACT = datetime(2025, 8, 7, tzinfo=NAIROBI)
HIGH, MEDIUM, UNVERIFIED = "high", "medium", "unverified"

# Safaricom's published form has no band above 150,000. We assume the same price up to M-Pesa's limit of 250,000. If
# Safaricom charges another price, the M-Pesa statement will show the difference.
TARIFF = "100:0 1500:5 5000:9 20000:11 150000:13 250000:13"

Bands = tuple[tuple[Decimal, Decimal], ...]


@dataclass(frozen=True)
class First:
    """The first value of one figure."""

    name: str
    value: str
    valid_from: datetime
    source: str
    certainty: str


FIRST = (
    First(
        "minimum_stake", "20", GAMBLING_CONTROL_ACT,
        "Gambling Control Act 2025 (No. 14): at least KES 20 for an online bet. By press reports.", MEDIUM,
    ),
    First(
        "minimum_age", "18", GAMBLING_CONTROL_ACT,
        "Gambling Control Act 2025 (No. 14) asks for a check of age and identity. 18 is the age of majority.", MEDIUM,
    ),
    First(
        "excise_pct", "5", FINANCE_ACT_2025,
        "Finance Act 2025: excise duty of 5 % on money moved into a betting wallet.", HIGH,
    ),
    First(
        "withholding_pct", "5", FINANCE_ACT_2025,
        "Finance Act 2025: 5 % withheld from withdrawals. The exact base is not certain. Ask counsel.", MEDIUM,
    ),
    First(
        "gross_gaming_tax_pct", "15", FINANCE_ACT_2025, "Betting tax: 15 % of the gross gaming revenue.", MEDIUM,
    ),
    First(
        "prize_deadline_hours", "48", GAMBLING_CONTROL_ACT,
        "Gambling Control Act 2025: prizes within two days of the result. By two newspapers.", MEDIUM,
    ),
    First(
        "retention_years", "7", datetime(2010, 6, 28, tzinfo=NAIROBI),
        "Proceeds of Crime and Anti-Money Laundering Act 2009: records for seven years. Ask counsel.", UNVERIFIED,
    ),
    First(
        "report_single_amount", "1000000", datetime(2023, 1, 1, tzinfo=NAIROBI),
        "Financial Reporting Centre: report single amounts of KES 1,000,000 and more.", MEDIUM,
    ),
    First(
        "tax_report_time", "01:00", FINANCE_ACT_2025,
        "A day's excise and withholding go to KRA by 01:00 of the next day. Two other sources say 07:00.", MEDIUM,
    ),
    First(
        "tariff", TARIFF, datetime(2023, 8, 1, tzinfo=NAIROBI),
        "Safaricom's B2C tariff form C1-Public of 1 August 2023. The band above 150,000 is our assumption.", MEDIUM,
    ),
)  # fmt: skip
SET_AT = datetime(2026, 12, 1, tzinfo=UTC)


def bands_of(written: str) -> Bands:
    """Parse a tariff such as `100:0 1500:5` into (largest amount, charge), the lowest band first.

    Units: shillings.
    Raises: ValueError.
    """
    try:
        pairs = [part.partition(":") for part in written.split()]
        bands = tuple((Decimal(largest), Decimal(charge)) for largest, _, charge in pairs)
    except InvalidOperation:
        raise ValueError(f"{written!r} is not a tariff") from None
    if not bands or not all(number.is_finite() and number >= 0 for band in bands for number in band):
        raise ValueError(f"{written!r} is not a tariff")
    if [largest for largest, _ in bands] != sorted({largest for largest, _ in bands}):
        raise ValueError(f"the bands of {written!r} are not in order")
    return bands


def install(figure: type) -> None:
    """Write the first values that are missing. Takes the model, because a migration passes its historical model.

    Idempotent: a second call changes nothing.
    """
    present = set(figure.objects.values_list("name", flat=True))  # type: ignore[attr-defined]
    figure.objects.bulk_create(  # type: ignore[attr-defined]
        figure(
            name=first.name, value=first.value, valid_from=first.valid_from, source=first.source,
            certainty=first.certainty, set_at=SET_AT,
        )
        for first in FIRST
        if first.name not in present
    )  # fmt: skip
