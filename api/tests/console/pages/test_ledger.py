"""Tests of the books pages: CSV files, and the trial balance of a day."""

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from api.console import downloads
from payments.models import LedgerAccount
from testing import builders, console_scenes
from testing.console_scenes import client_of, page_text


def csv_rows(answer: Any) -> list[list[str]]:
    """Read the rows of a downloaded CSV file."""
    return list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode())))


def test_account_and_trial_balance_are_downloaded_as_csv(db: None) -> None:
    accountant = client_of(console_scenes.staff("accountant"))
    user = builders.member(balance="100.50")
    builders.bet(builders.market(), user, "Yes", 40)
    wallet = LedgerAccount.objects.get(user=user)

    header, opening, stake = csv_rows(accountant.get(f"/admin/accounts/{wallet.pk}/export/"))
    assert header[-2:] == ["change", "balance"]
    assert (opening[3], opening[-2:], stake[-2:]) == ("opening", ["100.50", "100.50"], ["-40.00", "60.50"])

    answer = accountant.get("/admin/trial-balance/export/")
    assert ".csv" in answer.headers["Content-Disposition"]
    assert "no-store" in answer.headers["Cache-Control"]
    lines = {row[0]: row[1:] for row in csv_rows(answer)}
    assert lines["wallet"] == ["1", "40.00", "100.50", "60.50"]
    empty = csv_rows(accountant.get("/admin/trial-balance/export/?day=2000-01-01"))
    assert empty == [["kind", "accounts", "debits", "credits", "balance"]]


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), ("@x", "'@x"), ("-5", "'-5"), ("+2", "'+2"), ("\tx", "'\tx"), ("stake:1", "stake:1"), (-5, -5)],
)
def test_formula_in_a_cell_is_written_as_text(cell: object, written: object) -> None:
    assert downloads.plain(cell) == written


def test_trial_balance_of_a_day_and_of_an_invalid_day(console: Client) -> None:
    builders.member(balance=100)
    today = timezone.localdate()
    assert "KES 100.00" in page_text(console.get(f"/admin/trial-balance/?day={today}"))
    assert "No transfer was booked by then." in page_text(
        console.get(f"/admin/trial-balance/?day={today - timedelta(days=1)}")
    )
    for odd in ("soon", "2026-02-31", "0001-01-01"):
        assert "That is not a date." in page_text(console.get(f"/admin/trial-balance/?day={odd}"))
