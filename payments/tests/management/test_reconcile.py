"""`manage.py reconcile`: its output and its exit status."""

from io import StringIO

import pytest
from django.core.management import call_command

from payments.models import LedgerDay
from testing import builders
from testing.builders import AT


def test_reconcile_of_closed_books_prints_the_trial_balance(db: None) -> None:
    builders.bet(builders.market(), builders.member(100), "Yes", "30.50")
    out = StringIO()

    call_command("reconcile", stdout=out)

    lines = out.getvalue().splitlines()
    assert [line.split() for line in lines[:-1]] == [
        ["wallet", "30.50", "100.00", "69.50"],
        ["pool", "0.00", "30.50", "30.50"],
        ["opening", "100.00", "0.00", "-100.00"],
    ]
    assert lines[-1] == "The books close: 22 invariants hold."


@pytest.mark.broken_books
def test_reconcile_of_broken_books_lists_the_differences_and_exits_with_1(db: None) -> None:
    LedgerDay.objects.create(day=AT.date(), kind="payable", debits=0, credits="0.01")
    out, err = StringIO(), StringIO()

    with pytest.raises(SystemExit) as exited:
        call_command("reconcile", stdout=out, stderr=err)

    assert exited.value.code == 1
    assert "The books close" not in out.getvalue()
    assert err.getvalue().splitlines() == [
        f"The days of the ledger are the sums of their transfers: day {AT.date()} of payable is off by 0.00 and 0.01"
    ]
