"""Tests of a change of terms as members see it: the notice, and the stake taken back over REST."""

import uuid
from decimal import Decimal

import pytest
from rest_framework.test import APIClient as Client

from markets.models import Bet, Market
from payments import market_tasks, wiring
from testing import builders
from testing.builders import bearer, bet, market, member, nothing_moved
from users.models import Notice


@pytest.fixture
def api() -> Client:
    return Client()


def changed(rain: Market) -> None:
    builders.changed_terms(rain, at=wiring.now(), platform_fee_pct=Decimal("4.5"), description="At Dagoretti.")


def path(of: Bet) -> str:
    return f"/api/markets/{of.market_id}/bets/{of.public_id}/take-back/"


def test_market_shows_the_notice_with_its_differences(db: None, api: Client) -> None:
    rain = market()
    bet(rain, member(100), at=wiring.now())
    changed(rain)
    body = api.get(f"/api/markets/{rain.pk}/").json()
    assert (body["terms_version"], body["betting_suspended"]) == (2, True)
    assert body["notice"]["reason"] == "A typing error."
    assert body["notice"]["changes"] == [
        {"field": "description", "before": "", "after": "At Dagoretti."},
        {"field": "platform_fee_pct", "before": "5.00 %", "after": "4.50 %"},
    ]


def test_member_takes_a_stake_back_once(db: None, api: Client) -> None:
    # given
    rain, user = market(), member(100)
    placed = bet(rain, user, amount=60, at=wiring.now())
    changed(rain)

    # when
    answers = [api.post(path(placed), {}, format="json", headers=bearer(user)) for _ in range(2)]

    # then
    assert [answer.status_code for answer in answers] == [200, 200]
    body = answers[0].json()
    assert (body["balance"], body["bet"]["result"], body["bet"]["payout"]) == ("100.00", "REFUNDED", "60.00")
    assert body["bet"]["taken_back_at"] is not None
    assert api.get(f"/api/markets/{rain.pk}/").json()["pool"] == "0.00"


def test_stake_is_not_taken_back_without_notice_or_by_others(db: None, api: Client) -> None:
    rain, user, other = market(), member(100), member()
    placed = bet(rain, user, at=wiring.now())
    keys, others = bearer(user), bearer(other)
    with nothing_moved():
        answers = [
            api.post(path(placed), {}, format="json", headers=keys),
            api.post(path(placed), {}, format="json", headers=others),
            api.post(path(placed).replace(str(placed.public_id), str(uuid.uuid4())), {}, format="json", headers=keys),
            api.post(path(placed), {}, format="json"),
        ]
    codes = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert codes == [
        (409, "take_back_closed"),
        (404, "bet_not_found"),
        (404, "bet_not_found"),
        (401, "not_authenticated"),
    ]


def test_bet_during_a_notice_is_refused_over_rest(db: None, api: Client) -> None:
    rain, user = market(), member(100)
    bet(rain, user, amount=10, at=wiring.now())
    changed(rain)
    answer = api.post(
        f"/api/markets/{rain.pk}/bets/", {"outcome": "Yes", "amount": "5"}, format="json", headers=bearer(user)
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "market_not_open")
    assert "suspended" in answer.json()["message"]


def test_each_member_with_a_stake_gets_one_notice(db: None) -> None:
    # given: one member has two bets, and one has taken the stake back
    rain, first, second, gone = market(), member(100), member(100), member(100)
    bet(rain, first, amount=10, at=wiring.now())
    bet(rain, first, "No", amount=10, at=wiring.now())
    bet(rain, second, amount=10, at=wiring.now())
    left = bet(rain, gone, amount=10, at=wiring.now())
    changed(rain)
    Client().post(path(left), {}, format="json", headers=bearer(gone))

    # when
    market_tasks.tell_members_of_new_terms()
    market_tasks.tell_members_of_new_terms()

    # then
    notices = Notice.objects.filter(kind="TERMS").order_by("user_id")
    assert [notice.user_id for notice in notices] == [first.pk, second.pk]
    assert "Platform fee: 5.00 % → 4.50 %" in notices[0].text
    assert "take back the stakes" in notices[0].text
