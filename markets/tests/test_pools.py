"""Tests of markets/pools.py: pools are exact before and after bets are summed into tallies."""

from datetime import datetime, timedelta
from decimal import Decimal

from markets import pools
from markets.models import Bet, Tally
from testing.builders import bet, market, member


def always() -> bool:
    return True


def test_pools_are_the_same_before_and_after_bets_are_summed(db: None, at: datetime) -> None:
    # given
    race, rain = market(["A", "B"]), market()
    for place, (outcome, amount) in enumerate((("A", "10.50"), ("B", "20"), ("A", "0.75"))):
        bet(race, member(balance=100), outcome, Decimal(amount), at=at + timedelta(minutes=3 * place))
    bet(rain, member(balance=100), "No", 7, at=at)
    expected = {
        race.pk: {"A": (Decimal("11.25"), 2), "B": (Decimal("20.00"), 1)},
        rain.pk: {"No": (Decimal("7.00"), 1)},
    }
    assert pools.pools([race.pk, rain.pk]) == expected

    # when, then: the bets are summed, and summed again
    last = Bet.objects.order_by("-pk")[0].pk
    assert pools.advance(keep_going=always) == last == pools.advance(keep_going=always)
    assert Tally.objects.count() == 4
    assert pools.pools([race.pk, rain.pk]) == expected

    # when, then: one more bet arrives in five minutes that are already summed
    bet(race, member(balance=100), "A", Decimal("0.25"), at=at)
    expected[race.pk]["A"] = (Decimal("11.50"), 3)
    assert pools.pools([race.pk, rain.pk]) == expected
    pools.advance(keep_going=always)
    assert Tally.objects.count() == 4
    assert pools.pools([race.pk, rain.pk]) == expected
