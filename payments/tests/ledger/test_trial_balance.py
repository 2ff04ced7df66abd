"""Trial balance: the sums of days plus the later transfers are exact at every moment."""

from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from markets.models import NAIROBI, Tally, Watermark
from payments import monitoring_tasks
from payments.ledger import invariants, journal, trial_balance
from payments.models import LedgerDay, Transfer
from testing import builders
from testing.builders import bet, market, member, resolve, settle


def test_trial_balance_is_the_same_before_and_after_days_are_summed(db: None, at: datetime) -> None:
    builders.settled_market([(member(), "Yes", 100), (member(), "No", 50)], at=at)
    before = trial_balance.trial_balance()
    monitoring_tasks.sum_up()
    assert trial_balance.trial_balance() == before
    assert Watermark.objects.get(table="payments_transfer").up_to == Transfer.objects.order_by("-pk")[0].pk
    user = member()
    with transaction.atomic():
        journal.post([journal.Entry("deposit:1", "mpesa_paybill", journal.wallet(user.pk), Decimal("0.01"))], at=at)
    lines = {line.kind: line.balance for line in trial_balance.trial_balance()}
    assert lines["mpesa_paybill"] == Decimal("0.01")
    assert sum(line.debits - line.credits for line in trial_balance.trial_balance()) == 0


@pytest.mark.broken_books
def test_sum_that_is_off_by_a_cent_breaks_its_invariant(db: None, at: datetime) -> None:
    open_market = market()
    bet(open_market, member(balance=10), "Yes", 10, at=at)
    monitoring_tasks.sum_up()
    assert invariants.differences() == []
    Tally.objects.update(stakes=Decimal("10.01"))
    LedgerDay.objects.filter(kind="pool").update(credits=Decimal("9.99"))
    assert [difference.detail for difference in invariants.differences()] == [
        f"day {at.date()} of pool is off by 0.00 and -0.01",
        f"outcome Yes of market {open_market.pk} is off by 0.01 and 0 bets",
    ]


def test_trial_balance_of_a_day_excludes_later_transfers(db: None, at: datetime) -> None:
    user = member()
    for place, amount in enumerate((100, 50)):
        builders.orm_bet(market(), user, "Yes", amount, at=at)
        on = user.bets.order_by("-pk")[0].market
        resolve(on, "Yes", at=at + timedelta(days=place))
        settle(on, at=at + timedelta(days=place))

    def booked(day: date | None) -> dict[str, Decimal]:
        lines = trial_balance.trial_balance(day=day)
        assert sum(line.debits for line in lines) == sum(line.credits for line in lines)
        return {line.kind: line.credits for line in lines}

    today = at.astimezone(NAIROBI).date()
    for _ in range(2):  # First from the transfers alone, then from summed days.
        assert booked(today)["payable"] == 100
        assert booked(today + timedelta(days=2))["payable"] == 150
        assert booked(None)["payable"] == 150
        assert "payable" not in booked(today - timedelta(days=1))
        trial_balance.advance(keep_going=lambda: True)
