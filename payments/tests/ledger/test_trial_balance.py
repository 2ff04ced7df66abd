"""Pools and trial balances are read from sums and what came since: the same to the cent at every moment, as if live."""

import threading
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, transaction

from markets import pools, watermarks
from markets.models import Bet, Tally, Watermark
from payments import monitoring_tasks
from payments.ledger import invariants, journal, trial_balance
from payments.models import LedgerDay, Transfer
from testing import builders
from testing.builders import AT, bet, market, member


def always() -> bool:
    return True


def test_pools_are_the_same_before_and_after_bets_are_summed_and_when_more_come(db: None, at: datetime) -> None:
    # given
    made, other = market(["A", "B"]), market()
    for place, (outcome, amount) in enumerate((("A", "10.50"), ("B", "20"), ("A", "0.75"))):
        bet(made, member(balance=100), outcome, Decimal(amount), at=at + timedelta(minutes=3 * place))
    bet(other, member(balance=100), "No", 7, at=at)
    expected = {
        made.pk: {"A": (Decimal("11.25"), 2), "B": (Decimal("20.00"), 1)},
        other.pk: {"No": (Decimal("7.00"), 1)},
    }
    assert pools.pools([made.pk, other.pk]) == expected

    # when, then: summed, and summed again
    last = Bet.objects.order_by("-pk")[0].pk
    assert pools.advance(keep_going=always) == last == pools.advance(keep_going=always)
    assert Tally.objects.count() == 4 and pools.pools([made.pk, other.pk]) == expected

    # when, then: one more in a slot that is summed already
    bet(made, member(balance=100), "A", Decimal("0.25"), at=at)
    expected[made.pk]["A"] = (Decimal("11.50"), 3)
    assert pools.pools([made.pk, other.pk]) == expected
    pools.advance(keep_going=always)
    assert Tally.objects.count() == 4 and pools.pools([made.pk, other.pk]) == expected


def test_a_trial_balance_is_the_same_before_and_after_its_days_are_summed(db: None, at: datetime) -> None:
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


def test_steps_are_as_small_as_the_time_given_and_none_is_done_twice(db: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(watermarks, "STEP", 2)
    made = market()
    for _ in range(5):
        bet(made, member(balance=10), "Yes", 10)
    first = Bet.objects.order_by("pk")[0].pk
    Watermark.objects.create(table="markets_bet", up_to=first - 1)
    assert pools.advance(keep_going=lambda: False) == first + 1
    assert Tally.objects.get().bets == 2
    assert pools.pools([made.pk])[made.pk] == {"Yes": (50, 5)}
    pools.advance(keep_going=always)
    assert Tally.objects.get().bets == 5


@pytest.mark.django_db(transaction=True)
def test_nothing_is_summed_over_the_head_of_somebody_who_has_drawn_an_id_and_is_not_through(monkeypatch: Any) -> None:
    # given: a bet with the lower id is still in its transaction, one with a higher id is committed
    made, slow, quick = market(), member(balance=10), member(balance=20)
    drawn, go_on = threading.Event(), threading.Event()

    def bet_slowly() -> None:
        with transaction.atomic():
            Bet.objects.create(user=slow, market=made, outcome="Yes", amount=10, placed_at=AT)
            drawn.set()
            go_on.wait(20)
        connection.close()

    bettor = threading.Thread(target=bet_slowly)
    bettor.start()
    assert drawn.wait(20)
    bet(made, quick, "No", 20)
    monkeypatch.setattr(watermarks, "PATIENCE_SECONDS", 0.05)

    # when, then
    assert pools.advance(keep_going=always) == 0 and not Tally.objects.exists()
    assert pools.pools([made.pk])[made.pk] == {"No": (20, 1)}
    go_on.set()
    bettor.join()
    assert pools.advance(keep_going=always) == Bet.objects.order_by("-pk")[0].pk
    assert pools.pools([made.pk])[made.pk] == {"Yes": (10, 1), "No": (20, 1)}


@pytest.mark.broken_books
def test_a_sum_that_is_off_by_a_cent_breaks_its_invariant(db: None, at: datetime) -> None:
    made = market()
    bet(made, member(balance=10), "Yes", 10, at=at)
    monitoring_tasks.sum_up()
    assert invariants.differences() == []
    Tally.objects.update(stakes=Decimal("10.01"))
    LedgerDay.objects.filter(kind="pool").update(credits=Decimal("9.99"))
    assert [difference.detail for difference in invariants.differences()] == [
        f"day {at.date()} of pool is off by 0.00 and -0.01",
        f"outcome Yes of market {made.pk} is off by 0.01 and 0 bets",
    ]
