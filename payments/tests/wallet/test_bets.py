"""Placing a bet: the entry and its money are one, and a bet never waits for another one."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, connection, transaction

from markets import locks
from markets.models import Bet, Market
from payments.ledger import journal
from payments.ledger.journal import Entry
from payments.wallet import bets
from testing.builders import (
    AT,
    at_once,
    begin,
    bet,
    market,
    member,
    nothing_moved,
    orm_bet,
    transfers,
    wait_until_one_waits,
)
from users.models import CustomUser


def test_a_stake_leaves_the_wallet_for_the_pool(db: None, at: datetime) -> None:
    made, user = market(), member(balance="100.00")

    placed = bets.place(
        user_id=user.pk, market_id=made.pk, outcome="No", amount=Decimal("40.01"), client_ref=None, at=at
    )

    assert (placed.balance, placed.new) == (Decimal("59.99"), True)
    assert (placed.bet.outcome, placed.bet.amount, placed.bet.placed_at) == ("No", Decimal("40.01"), at)
    assert transfers(code="stake") == [
        (f"stake:{placed.bet.pk}", f"wallet:{user.pk}", f"pool:{made.pk}", Decimal("40.01"))
    ]
    assert journal.balance(journal.pool(made.pk)) == Decimal("40.01")
    user.refresh_from_db()
    assert user.balance == Decimal("59.99")


def test_the_whole_wallet_may_be_staked_and_not_a_cent_more(db: None) -> None:
    made, user = market(), member(balance="5.00")
    with nothing_moved(), pytest.raises(bets.InsufficientFunds):
        bet(made, user, "Yes", "5.01")
    bet(made, user, "Yes", "5.00")
    with nothing_moved(), pytest.raises(bets.InsufficientFunds):
        bet(made, user, "Yes", "0.01")


def test_bets_end_at_the_markets_end_to_the_microsecond(db: None, at: datetime) -> None:
    made, user = market(end_date=at), member(balance=10)
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        bet(made, user, at=at)
    bet(made, user, "Yes", 1, at=at - timedelta(microseconds=1))


def test_what_cannot_be_bet_on_is_named(db: None) -> None:
    made, user = market(), member(balance=1_000)
    with nothing_moved():
        with pytest.raises(locks.OutcomeNotInMarket, match="Yes, No"):
            bet(made, user, "Maybe")
        with pytest.raises(locks.MarketNotFound):
            bets.place(user_id=user.pk, market_id=999_999, outcome="Yes", amount=Decimal(1), client_ref=None, at=AT)


def test_a_client_ref_places_one_bet_and_names_no_other(db: None) -> None:
    made, other, user = market(), market(), member(balance=100)
    first = bet(made, user, "Yes", 30, client_ref="tap")
    with nothing_moved():
        assert bet(made, user, "Yes", 30, client_ref="tap") == first
        for changed in ((made, "No", 30), (made, "Yes", 31), (other, "Yes", 30)):
            with pytest.raises(bets.ClientRefReused):
                bet(changed[0], user, changed[1], changed[2], client_ref="tap")


def test_in_production_a_bet_is_placed_by_the_service_only(transactional_db: None) -> None:
    made, user = market(), member(balance=100)
    with connection.cursor() as cursor:
        cursor.execute("SET kasoko.production TO 'on'")
    try:
        with nothing_moved(), pytest.raises(IntegrityError, match="has no stake in the ledger"):
            orm_bet(made, user)
        assert bet(made, user).amount == 100
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET kasoko.production TO 'off'")


# --- many at once ----------------------------------------------------------------------------------------------------


def test_bets_at_once_never_stake_more_than_the_wallet_holds(transactional_db: None) -> None:
    made, user = market(), member(balance=100)
    answers = at_once(*[lambda: bet(made, user, "Yes", 40)] * 4)
    assert sorted(type(answer).__name__ for answer in answers) == ["Bet"] * 2 + ["InsufficientFunds"] * 2
    assert CustomUser.objects.get().balance == 20


def test_one_client_ref_at_once_places_one_bet(transactional_db: None) -> None:
    made, user = market(), member(balance=100)
    answers = at_once(*[lambda: bet(made, user, "Yes", 40, client_ref="tap")] * 4)
    assert len({answer.pk for answer in answers}) == Bet.objects.count() == 1
    assert CustomUser.objects.get().balance == 60


def test_bets_of_two_members_on_one_market_do_not_wait_for_each_other(transactional_db: None) -> None:
    made, first, second = market(), member(balance=10), member(balance=10)
    bet(made, first, "Yes", 1)  # The pool's account is open.
    with transaction.atomic():
        # given: a bet that is placed and not committed yet
        placed = orm_bet(made, first, "Yes", 2)
        journal.post([Entry(f"stake:{placed.pk}", journal.wallet(first.pk), journal.pool(made.pk), Decimal(2))], at=AT)
        # when, then: another member's bet goes through meanwhile
        assert at_once(lambda: bet(made, second, "No", 3).amount) == [3]


def test_a_bet_locks_the_market_before_the_wallet_as_a_settlement_does(transactional_db: None) -> None:
    made, user = market(), member(balance=10)
    with transaction.atomic():
        # given: a settlement holds the market, and that wallet's member bets on it at this very moment
        Market.objects.select_for_update(no_key=True).get()
        placed = begin(lambda: bet(made, user, "Yes", 4))
        wait_until_one_waits()
        # when: the settlement pays into the wallet
        journal.post([Entry("wallet:1", "opening", journal.wallet(user.pk), Decimal(1))], at=AT)

    # then: neither was the victim of a deadlock
    assert placed.result(timeout=30).amount == 4
    assert CustomUser.objects.get().balance == 7
