"""`manage.py settle_market`: settle a market in the foreground."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from testing.builders import member, resolve
from testing.settlement_steps import opened

Queued = Callable[[], list[tuple[str, str, list[Any]]]]


def test_command_settles_a_resolved_market_with_progress(db: None, queued: Queued) -> None:
    market = opened([(member(), "A", 100), (member(), "A", 200), (member(), "B", 50)])
    said = io.StringIO()
    with pytest.raises(CommandError, match="nothing to settle"):
        call_command("settle_market", market.pk)
    with pytest.raises(CommandError, match="no market 999999"):
        call_command("settle_market", 999_999)
    resolve(market, "A")

    call_command("settle_market", market.pk, stdout=said)

    market.refresh_from_db()
    assert market.status == "SETTLED"
    assert said.getvalue() == f"Market {market.pk}: 3 of 3 bets divided, 2 members booked.\n"
    assert [name for name, _, _ in queued()] == ["payments.settlement_tasks.send_due_payouts"]
    with pytest.raises(CommandError, match="nothing to settle"):
        call_command("settle_market", market.pk)
