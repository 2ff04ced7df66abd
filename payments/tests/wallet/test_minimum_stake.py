"""Tests of the minimum stake of the law, which payments/wallet/bets.py reads from the dated table."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from payments.policy import Policy
from payments.wallet import bets
from testing.builders import AT, market, member
from users import audit, figures

pytestmark = pytest.mark.django_db(transaction=True)


def place(amount: str, policy: Policy | None, *, at: datetime = AT) -> bets.Placed:
    return bets.place(
        user_id=member(balance=500).pk,
        market_id=market().pk,
        outcome="Yes",
        amount=Decimal(amount),
        client_ref=None,
        at=at,
        policy=policy,
    )


def test_stake_below_the_legal_minimum_is_refused_in_production(policy: Policy) -> None:
    production = replace(policy, legal_limits=True)
    with pytest.raises(bets.StakeTooSmall, match="20 shillings"):
        place("19.99", production)
    assert place("20", production).new


def test_stake_below_the_legal_minimum_is_accepted_outside_production(policy: Policy) -> None:
    assert place("0.01", policy).new


def test_new_minimum_binds_from_its_date_and_not_before(policy: Policy) -> None:
    production, change_at = replace(policy, legal_limits=True), AT + timedelta(days=1)
    with transaction.atomic():
        figures.set_value(figures.Change("minimum_stake", "50", change_at, "A new law"), by=audit.MACHINE, at=AT)
    assert place("49", production, at=change_at - timedelta(microseconds=1)).new
    with pytest.raises(bets.StakeTooSmall):
        place("49", production, at=change_at)


def test_minimum_stake_costs_a_bet_no_statement_of_its_own(policy: Policy) -> None:
    with CaptureQueriesContext(connection) as statements:
        place("100", replace(policy, legal_limits=True))
    about_figures = [query["sql"] for query in statements if "users_figure" in query["sql"]]
    assert len(about_figures) == 1
    assert "markets_market" in about_figures[0]
