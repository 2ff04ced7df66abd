"""Own affairs: staff may not decide about their own stake, debt or dispute."""

import pytest

from payments import own_affairs
from payments.models import Dispute, Recovery
from testing import builders
from testing.builders import AT, actor, member, operator


def test_person_with_a_stake_is_refused_and_others_are_not(db: None) -> None:
    market, staff = builders.market(), operator()
    builders.orm_bet(market, staff, "Yes", 10)
    with pytest.raises(own_affairs.StakeInMarket, match="Another member of staff must decide"):
        own_affairs.refuse_stakeholders(market, actor(staff))
    own_affairs.refuse_stakeholders(market, actor(operator()))
    own_affairs.refuse_stakeholders(market, actor())


def test_person_who_owes_is_refused_and_others_are_not(db: None) -> None:
    staff, other = operator(), member()
    recoveries = [Recovery(user=person, amount=5, created_at=AT) for person in (other, staff)]
    with pytest.raises(own_affairs.OwnDebt, match="Another member of staff must decide"):
        own_affairs.refuse_own_debt(recoveries, actor(staff))
    own_affairs.refuse_own_debt(recoveries, actor(operator()))
    own_affairs.refuse_own_debt(recoveries, actor())


def test_person_who_opened_a_dispute_is_refused_and_others_are_not(db: None) -> None:
    staff = operator()
    with pytest.raises(own_affairs.OwnDispute, match="Another member of staff must decide"):
        own_affairs.refuse_own_dispute(Dispute(user=staff), actor(staff))
    own_affairs.refuse_own_dispute(Dispute(user=staff), actor(operator()))
