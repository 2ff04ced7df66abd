"""Bets: one transaction writes a bet and books its stake, and bets do not wait for each other."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from markets import locks
from markets.models import Bet, Market
from payments.ledger import journal
from payments.ledger.journal import Entry
from payments.wallet import bets
from testing import database
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


def test_stake_moves_from_the_wallet_to_the_pool(db: None, at: datetime) -> None:
    open_market, user = market(), member(balance="100.00")

    placed = bets.place(
        user_id=user.pk, market_id=open_market.pk, outcome="No", amount=Decimal("40.01"), client_ref=None, at=at
    )

    assert (placed.balance, placed.new) == (Decimal("59.99"), True)
    assert (placed.bet.outcome, placed.bet.amount, placed.bet.placed_at) == ("No", Decimal("40.01"), at)
    assert transfers(code="stake") == [
        (f"stake:{placed.bet.pk}", f"wallet:{user.pk}", f"pool:{open_market.pk}", Decimal("40.01"))
    ]
    assert journal.balance(journal.pool(open_market.pk)) == Decimal("40.01")
    user.refresh_from_db()
    assert user.balance == Decimal("59.99")


def test_stake_above_the_balance_is_refused_to_the_cent(db: None) -> None:
    open_market, user = market(), member(balance="5.00")
    with nothing_moved(), pytest.raises(bets.InsufficientFunds):
        bet(open_market, user, "Yes", "5.01")
    bet(open_market, user, "Yes", "5.00")
    with nothing_moved(), pytest.raises(bets.InsufficientFunds):
        bet(open_market, user, "Yes", "0.01")


def test_bet_at_the_markets_end_is_refused_to_the_microsecond(db: None, at: datetime) -> None:
    open_market, user = market(end_date=at), member(balance=10)
    with nothing_moved(), pytest.raises(locks.MarketNotOpen):
        bet(open_market, user, at=at)
    bet(open_market, user, "Yes", 1, at=at - timedelta(microseconds=1))


def test_bet_on_unknown_outcome_or_market_is_refused(db: None) -> None:
    open_market, user = market(), member(balance=1_000)
    with nothing_moved():
        with pytest.raises(locks.OutcomeNotInMarket, match="Yes, No"):
            bet(open_market, user, "Maybe")
        with pytest.raises(locks.MarketNotFound):
            bets.place(user_id=user.pk, market_id=999_999, outcome="Yes", amount=Decimal(1), client_ref=None, at=AT)


def test_repeated_client_ref_places_one_bet_and_refuses_another(db: None) -> None:
    open_market, other, user = market(), market(), member(balance=100)
    first = bet(open_market, user, "Yes", 30, client_ref="tap")
    with nothing_moved():
        assert bet(open_market, user, "Yes", 30, client_ref="tap") == first
        for changed in ((open_market, "No", 30), (open_market, "Yes", 31), (other, "Yes", 30)):
            with pytest.raises(bets.ClientRefReused):
                bet(changed[0], user, changed[1], changed[2], client_ref="tap")


def test_bet_without_stake_is_refused_in_production(transactional_db: None) -> None:
    open_market, user = market(), member(balance=100)
    with database.in_production():
        with nothing_moved(), pytest.raises(IntegrityError, match="has no stake in the ledger"):
            orm_bet(open_market, user)
        assert bet(open_market, user).amount == 100


# --- many at once ----------------------------------------------------------------------------------------------------


def test_bets_at_once_never_stake_more_than_the_balance(transactional_db: None) -> None:
    open_market, user = market(), member(balance=100)
    answers = at_once(*[lambda: bet(open_market, user, "Yes", 40)] * 4)
    assert sorted(type(answer).__name__ for answer in answers) == ["Bet"] * 2 + ["InsufficientFunds"] * 2
    assert CustomUser.objects.get().balance == 20


def test_client_ref_used_at_once_places_one_bet(transactional_db: None) -> None:
    open_market, user = market(), member(balance=100)
    answers = at_once(*[lambda: bet(open_market, user, "Yes", 40, client_ref="tap")] * 4)
    assert len({answer.pk for answer in answers}) == Bet.objects.count() == 1
    assert CustomUser.objects.get().balance == 60


def test_bets_of_two_members_do_not_wait_for_each_other(transactional_db: None) -> None:
    open_market, first, second = market(), member(balance=10), member(balance=10)
    bet(open_market, first, "Yes", 1)  # This opens the account of the pool.
    with transaction.atomic():
        # given: another member's bet that is not committed yet
        placed = orm_bet(open_market, first, "Yes", 2)
        journal.post(
            [Entry(f"stake:{placed.pk}", journal.wallet(first.pk), journal.pool(open_market.pk), Decimal(2))], at=AT
        )
        # when, then: the second member's bet is placed at the same time
        assert at_once(lambda: bet(open_market, second, "No", 3).amount) == [3]


def test_bet_locks_the_market_before_the_wallet_like_a_settlement(transactional_db: None) -> None:
    open_market, user = market(), member(balance=10)
    with transaction.atomic():
        # given: a settlement holds the lock on the market, and the member bets on it
        Market.objects.select_for_update(no_key=True).get()
        placed = begin(lambda: bet(open_market, user, "Yes", 4))
        wait_until_one_waits()
        # when: the settlement pays into the wallet
        journal.post([Entry("wallet:1", "opening", journal.wallet(user.pk), Decimal(1))], at=AT)

    # then: neither session ended in a deadlock
    assert placed.result(timeout=30).amount == 4
    assert CustomUser.objects.get().balance == 7
