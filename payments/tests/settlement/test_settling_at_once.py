"""Settling by several workers at the same time."""

from decimal import Decimal

import pytest
from django.db import IntegrityError

from payments.models import Settlement
from payments.settlement import settling
from testing.builders import AT, at_once, member, orm_bet, policy, resolve, settle
from testing.settlement_steps import dividends, due, opened, settled_at_once, seven_bets
from users.models import CustomUser


@pytest.mark.parametrize("chunk", [20_000, 1])
def test_concurrent_workers_settle_a_market_once(transactional_db: None, chunk: int) -> None:
    # given
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    market = opened(seven_bets(users))
    resolve(market, rule="JOINT", weights={"A": "70", "B": "30"})

    # when
    rules = policy(settlement_chunk=chunk)
    answers = at_once(*[lambda: settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=lambda: True)] * 3)

    # then: no worker was refused, and the money moved once
    assert {type(answer) for answer in answers} == {settling.Progress}
    assert any(answer.settled for answer in answers)
    assert (dividends(market), due(market), Settlement.objects.get(market=market).fee) == expected


def test_markets_with_the_same_winners_settle_concurrently_without_deadlock(transactional_db: None) -> None:
    # given: the same members won on each market, and placed their bets in different orders
    users = [member() for _ in range(8)]
    markets = []
    for turn in range(4):
        order = users[turn:] + users[:turn]
        markets.append(opened([(user, "A", "5.25") for user in (order if turn % 2 else order[::-1])]))
        resolve(markets[-1], "A")

    # when
    answers = at_once(*[lambda one=one: settle(one).settled for one in markets])

    # then
    assert answers == [True] * 4
    assert set(CustomUser.objects.values_list("balance", flat=True)) == {Decimal("21.00")}


def test_bet_after_frozen_totals_is_refused(transactional_db: None) -> None:
    market = opened([(member(), "A", 100), (member(), "B", 50)])
    resolve(market, "A")
    settling.settle(market_id=market.pk, at=AT, policy=policy(settlement_chunk=1), keep_going=lambda: False)
    late = member()
    (refused,) = at_once(lambda: orm_bet(market, late, "A", 1_000))
    assert isinstance(refused, IntegrityError)
    settle(market)
    assert dividends(market) == [Decimal("142.50"), 0]
