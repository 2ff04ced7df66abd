"""Fixtures shared by the tests of payouts."""

import logging
from collections.abc import Callable

import pytest

from payments.models import Transaction
from testing import builders


@pytest.fixture
def payout() -> Transaction:
    """Return a payout of 285 shillings that is due over M-Pesa."""
    return builders.payout(285)


@pytest.fixture
def alarms(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that lists the alarms logged so far."""
    caplog.set_level(logging.INFO, "kasoko.alarm")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "kasoko.alarm"]
