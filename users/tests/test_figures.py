"""Tests of users/figures.py: the dated table of law, limits and thresholds."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from users import audit, figures, first_figures
from users.models import AuditEntry, Figure

AT = datetime(2026, 2, 16, 7, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _fresh(db: None) -> Iterator[None]:
    figures.forget()
    yield
    figures.forget()


def change(name: str, value: str, *, valid_from: datetime = AT, source: str = "A law") -> Figure:
    made = figures.set_value(figures.Change(name, value, valid_from, source, "New law"), by=audit.MACHINE, at=AT)
    figures.forget()
    return made


def test_migrated_table_has_every_figure_with_its_source() -> None:
    rows = {row.name: row for row in Figure.objects.all()}
    assert set(rows) == set(figures.KINDS) == {first.name for first in first_figures.FIRST}
    assert all(row.source and row.certainty for row in rows.values())
    for name, row in rows.items():
        figures.KINDS[name].check(row.value)


def test_value_changes_at_its_date_and_not_before() -> None:
    change("excise_pct", "7.5", valid_from=AT + timedelta(days=30))
    assert figures.value("excise_pct", AT + timedelta(days=29)) == Decimal(5)
    assert figures.value("excise_pct", AT + timedelta(days=30)) == Decimal("7.5")


def test_moment_before_the_first_value_is_refused() -> None:
    with pytest.raises(figures.UnknownFigure):
        figures.value("excise_pct", datetime(2025, 6, 30, 20, 59, tzinfo=UTC))


def test_tariff_is_read_from_the_table() -> None:
    change("tariff", "1000:7 250000:33")
    assert figures.bands(AT) == ((Decimal(1000), Decimal(7)), (Decimal(250000), Decimal(33)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("excise_pct", "101"),
        ("excise_pct", "-1"),
        ("excise_pct", "NaN"),
        ("excise_pct", "1e1"),
        ("minimum_age", "17"),
        ("tax_report_time", "24:00"),
        ("tariff", "1500:5 100:0"),
        ("tariff", ""),
        ("threshold:market.resolve", "always"),
        ("threshold:market.resolve", "-1"),
    ],
)
def test_value_that_does_not_fit_is_refused(name: str, value: str) -> None:
    with pytest.raises(figures.BadFigure):
        change(name, value)


def test_figure_of_another_name_is_refused() -> None:
    with pytest.raises(figures.UnknownFigure):
        change("minimum_steak", "20")


def test_change_of_the_past_is_refused() -> None:
    with pytest.raises(figures.BadFigure, match="past"):
        change("excise_pct", "6", valid_from=AT - timedelta(seconds=1))


def test_change_without_a_source_is_refused() -> None:
    with pytest.raises(figures.BadFigure, match="source"):
        change("excise_pct", "6", source=" ")


def test_change_is_recorded_with_both_values() -> None:
    change("excise_pct", "6")
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.subject, entry.reason) == ("figure.set", "figure:excise_pct", "New law")
    assert '"value":"5"' in entry.before
    assert '"value":"6"' in entry.after


@pytest.mark.parametrize("statement", ["UPDATE users_figure SET value = '0'", "DELETE FROM users_figure"])
@pytest.mark.usefixtures("as_owner")
def test_row_of_the_table_is_never_changed(statement: str) -> None:
    with pytest.raises(IntegrityError, match="figure is not changed"), transaction.atomic():
        connection.cursor().execute(statement)


def test_threshold_is_unset_then_an_amount_then_never() -> None:
    assert figures.threshold("market.resolve", AT) is None
    change("threshold:market.resolve", "5000")
    assert figures.threshold("market.resolve", AT) == Decimal(5000)
    change("threshold:market.resolve", "never")
    assert figures.threshold("market.resolve", AT) == figures.NEVER
    assert figures.threshold("market.void", AT) is None


def test_readings_within_seconds_ask_the_database_once(django_assert_num_queries: Any) -> None:
    figures.value("excise_pct", AT)
    with django_assert_num_queries(0):
        figures.value("withholding_pct", AT)
        figures.bands(AT)


def test_value_written_by_another_process_is_seen_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    figures.value("excise_pct", AT)
    Figure.objects.create(name="excise_pct", value="9", valid_from=AT, source="A law", set_at=AT)
    assert figures.value("excise_pct", AT) == 5
    monkeypatch.setattr(figures, "SECONDS_KEPT", 0.0)
    assert figures.value("excise_pct", AT) == 9
