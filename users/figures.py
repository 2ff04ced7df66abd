"""Figures of law, limits and thresholds: one dated table that all rooms read.

The value of a figure at a moment is its newest row that is valid then. A process keeps the rows in memory, and looks
for new rows every few seconds. Thresholds are read from the table each time, because only decisions of staff read them.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation

from django.db import transaction
from django.db.models import Max

from users import audit, first_figures
from users.decision_models import Figure
from users.refusal import Refusal

THRESHOLD = "threshold:"
NEVER = "never"
LONGEST_SOURCE = 500
SECONDS_KEPT = 5.0
# A subquery for statements that need a figure without a statement of its own. Its parameter is %(at)s.
MINIMUM_STAKE_SQL = """
    SELECT f.value FROM users_figure f WHERE f.name = 'minimum_stake' AND f.valid_from <= %(at)s
    ORDER BY f.valid_from DESC, f.id DESC LIMIT 1
"""
Bands = first_figures.Bands


class UnknownFigure(Refusal):
    """The table has no figure of this name, or no value for this moment."""


class BadFigure(Refusal):
    """The value, its source or its date does not fit the figure."""


@dataclass(frozen=True)
class Kind:
    """The name of a figure in words, its unit, and the function that refuses values which do not fit."""

    words: str
    unit: str
    check: Callable[[str], object]


def _number(low: str, high: str) -> Callable[[str], object]:
    def check(value: str) -> None:
        if not Decimal(low) <= decimal_of(value) <= Decimal(high):
            raise BadFigure(f"The value must be between {low} and {high}. Nothing was changed.")

    return check


def _time_of_day(value: str) -> None:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise BadFigure("The value must be a time of day in Nairobi, such as 01:00. Nothing was changed.")


KINDS = {
    "minimum_stake": Kind("Minimum stake of a bet", "shillings", _number("0.01", "1000000")),
    "minimum_age": Kind("Minimum age of a member", "years", _number("18", "120")),
    "excise_pct": Kind("Excise duty on deposits", "%", _number("0", "100")),
    "withholding_pct": Kind("Withholding tax on withdrawals and payouts", "%", _number("0", "100")),
    "gross_gaming_tax_pct": Kind("Betting tax on gross gaming revenue", "%", _number("0", "100")),
    "prize_deadline_hours": Kind("Time to pay a prize after the result", "hours", _number("1", "8760")),
    "retention_years": Kind("Time for which records are kept", "years", _number("1", "100")),
    "report_single_amount": Kind("Single amount to report to the FRC", "shillings", _number("1", "1000000000")),
    "tax_report_time": Kind("Time to report a day's tax to KRA, on the next day", "Nairobi time", _time_of_day),
    "tariff": Kind(
        "M-Pesa's charge for a payout", "largest amount:charge, in shillings", lambda written: bands_of(written)
    ),
}


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    """The rows that this process keeps: by name, oldest first. `version` is the highest id among all rows."""

    read_at: float
    version: int
    rows: dict[str, list[tuple[datetime, str]]]


_kept: _Kept | None = None


def text(name: str, at: datetime) -> str:
    """Return the value of a figure at a moment, as it is written in the table.

    Raises: UnknownFigure.
    """
    valid = [value for valid_from, value in _rows().get(name, ()) if valid_from <= at]
    if not valid:
        raise UnknownFigure(f"The figure {name} has no value at {at:%Y-%m-%d}. Set it on the page Limits and law.")
    return valid[-1]


def value(name: str, at: datetime) -> Decimal:
    """Return the value of a numeric figure at a moment.

    Raises: UnknownFigure; BadFigure, if it is not a number.
    """
    return decimal_of(text(name, at))


def bands(at: datetime) -> Bands:
    """Return the bands of M-Pesa's tariff at a moment: (largest amount, charge), the lowest band first.

    Units: shillings.
    Raises: UnknownFigure.
    """
    return bands_of(text("tariff", at))


def threshold(act: str, at: datetime) -> Decimal | str | None:
    """Return the amount above which an act takes two people: shillings, NEVER, or None if nobody has set it."""
    rows = Figure.objects.filter(name=THRESHOLD + act, valid_from__lte=at).order_by("-valid_from", "-pk")
    written = rows.values_list("value", flat=True).first()
    return written if written in (None, NEVER) else decimal_of(written)


def forget() -> None:
    """Forget the rows that this process keeps, so that the next reading sees the newest."""
    global _kept
    _kept = None


def _rows() -> dict[str, list[tuple[datetime, str]]]:
    global _kept
    kept, read_at = _kept, time.monotonic()
    if kept is not None and read_at < kept.read_at + SECONDS_KEPT:
        return kept.rows
    version = Figure.objects.aggregate(version=Max("pk"))["version"] or 0
    if kept is None or kept.version != version:
        rows: dict[str, list[tuple[datetime, str]]] = {}
        written = Figure.objects.exclude(name__startswith=THRESHOLD).order_by("valid_from", "pk")
        for name, valid_from, value in written.values_list("name", "valid_from", "value"):
            rows.setdefault(name, []).append((valid_from, value))
        kept = _Kept(read_at, version, rows)
    _kept = replace(kept, read_at=read_at)
    return kept.rows


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A new value of a figure, with the moment from which it is valid, its source and the reason for the change."""

    name: str
    value: str
    valid_from: datetime
    source: str
    reason: str = ""
    certainty: str = ""

    def check(self, *, at: datetime) -> None:
        """Refuse a change that does not fit the figure, or that would change the past.

        Raises: UnknownFigure; BadFigure.
        """
        if self.name.startswith(THRESHOLD):
            check_threshold(self.value)
        elif self.name in KINDS:
            KINDS[self.name].check(self.value)
        else:
            raise UnknownFigure(f"There is no figure {self.name}. Nothing was changed.")
        if not self.source.strip() or len(self.source) > LONGEST_SOURCE:
            raise BadFigure(f"Name the source in 1 to {LONGEST_SOURCE} characters. Nothing was changed.")
        if self.valid_from < at:
            raise BadFigure("A figure cannot change in the past. Give a later date. Nothing was changed.")


def set_value(change: Change, *, by: audit.Actor, at: datetime, proposed_by: int | None = None) -> Figure:
    """Write a new value of a figure. Runs in the caller's transaction, which has the decision of the people.

    `proposed_by` is the id of the first person, if `by` approved the change.
    Locks: the end of the audit trail.
    Raises: UnknownFigure; BadFigure.
    """
    change.check(at=at)
    before = latest(change.name)
    row = Figure.objects.create(
        name=change.name,
        value=change.value,
        valid_from=change.valid_from,
        source=change.source.strip(),
        certainty=change.certainty,
        set_by_id=by.user_id,
        set_at=at,
    )
    transaction.on_commit(forget)
    audit.record(
        action="threshold.set" if change.name.startswith(THRESHOLD) else "figure.set",
        by=by,
        subject=f"figure:{change.name}",
        before={"value": before.value, "valid_from": before.valid_from} if before else {},
        after={"value": row.value, "valid_from": row.valid_from, "source": row.source}
        | ({"proposed_by": proposed_by} if proposed_by is not None else {}),
        at=at,
        reason=change.reason,
    )
    return row


def latest(name: str) -> Figure | None:
    """Return the last row of a figure. It may be valid only in the future."""
    return Figure.objects.filter(name=name).order_by("-valid_from", "-pk").first()


# --- values ----------------------------------------------------------------------------------------------------------


def decimal_of(written: str) -> Decimal:
    """Parse a number. Raises: BadFigure."""
    try:
        number = Decimal(written)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or not re.fullmatch(r"\d{1,12}(\.\d{1,4})?", written):
        raise BadFigure("The value must be a number such as 20 or 2.5. Nothing was changed.")
    return number


def bands_of(written: str) -> Bands:
    """Parse a tariff such as `100:0 1500:5`, the lowest band first. Raises: BadFigure."""
    try:
        return first_figures.bands_of(written)
    except ValueError:
        raise BadFigure("Write the tariff as 100:0 1500:5, with the lowest band first. Nothing was changed.") from None


def check_threshold(written: str) -> None:
    """Refuse a threshold that is neither NEVER nor an amount in shillings. Raises: BadFigure."""
    if written != NEVER:
        decimal_of(written)
