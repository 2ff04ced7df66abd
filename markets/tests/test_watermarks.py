"""Tests of markets/watermarks.py: each row is summed once, and only after it is final."""

import threading

import pytest
from django.db import connection, transaction

from markets import pools, watermarks
from markets.models import Bet, Tally, Watermark
from testing.builders import AT, bet, market, member


def always() -> bool:
    return True


def test_advance_stops_after_a_step_if_told_and_sums_each_row_once(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks, "STEP", 2)
    rain = market()
    for _ in range(5):
        bet(rain, member(balance=10), "Yes", 10)
    first = Bet.objects.order_by("pk")[0].pk
    Watermark.objects.create(table="markets_bet", up_to=first - 1)
    assert pools.advance(keep_going=lambda: False) == first + 1
    assert Tally.objects.get().bets == 2
    assert pools.pools([rain.pk])[rain.pk] == {"Yes": (50, 5)}
    pools.advance(keep_going=always)
    assert Tally.objects.get().bets == 5


@pytest.mark.django_db(transaction=True)
def test_nothing_is_summed_while_a_lower_id_is_uncommitted(monkeypatch: pytest.MonkeyPatch) -> None:
    # given: the bet with the lower id is still in its transaction, and one with a higher id is committed
    rain, slow, quick = market(), member(balance=10), member(balance=20)
    drawn, go_on = threading.Event(), threading.Event()

    def bet_slowly() -> None:
        with transaction.atomic():
            Bet.objects.create(user=slow, market=rain, outcome="Yes", amount=10, placed_at=AT)
            drawn.set()
            go_on.wait(20)
        connection.close()

    bettor = threading.Thread(target=bet_slowly)
    bettor.start()
    assert drawn.wait(20)
    bet(rain, quick, "No", 20)
    monkeypatch.setattr(watermarks, "PATIENCE_SECONDS", 0.05)

    # when, then
    assert pools.advance(keep_going=always) == 0
    assert not Tally.objects.exists()
    assert pools.pools([rain.pk])[rain.pk] == {"No": (20, 1)}
    go_on.set()
    bettor.join()
    assert pools.advance(keep_going=always) == Bet.objects.order_by("-pk")[0].pk
    assert pools.pools([rain.pk])[rain.pk] == {"Yes": (10, 1), "No": (20, 1)}
