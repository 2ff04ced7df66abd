"""Tests of api/rest/lifecycle.py: staff create and change markets, suspend, resume and close them over REST."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient as Client

from markets.models import Market
from payments import wiring
from testing import builders
from testing.builders import bearer, bet, market, member, operator
from users.models import AuditEntry

Post = Callable[..., Any]
NEW = {"question": "Who wins?", "end_date": "2099-12-01T18:00:00+03:00"}


@pytest.fixture
def post(db: None) -> Post:
    headers = bearer(operator())

    def send(call: str, body: dict[str, Any]) -> Any:
        return Client().post(f"/api/markets/admin/{call}/", body, format="json", headers=headers)

    return send


def test_market_is_created_with_yes_and_no_and_the_fee_of_the_setting(post: Post) -> None:
    answer = post("create", NEW)
    made = Market.objects.get()
    assert answer.status_code == 201
    assert answer.json() == {
        "status": "created",
        "market_id": made.pk,
        "terms_version": 1,
        "end_date": "2099-12-01T15:00:00Z",
    }
    assert (made.outcome_names, made.platform_fee_pct, made.status) == (("Yes", "No"), 5, "OPEN")
    assert AuditEntry.objects.get().action == "market.create"


def test_market_is_created_with_all_its_terms(post: Post) -> None:
    terms = {"description": "Ninety minutes.\nNo extra time.", "source": "fkf.co.ke", "category": "Football"}
    body = {**NEW, **terms, "outcomes": ["Gor Mahia", "AFC Leopards", "Draw"], "platform_fee_pct": "0"}
    assert post("create", body).status_code == 201
    made = Market.objects.get()
    assert made.outcome_names == ("Gor Mahia", "AFC Leopards", "Draw")
    assert (made.description, made.source, made.category, made.platform_fee_pct) == (*terms.values(), 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"question": "Who\u200b wins?"}, "question"),
        ({"question": 7}, "question"),
        ({"end_date": "2099-12-01T18:00:00"}, "end_date"),
        ({"end_date": "2020-12-01T18:00:00Z"}, "end_date"),
        ({"end_date": "99999-12-01T18:00:00Z"}, "end_date"),
        ({"outcomes": ["Yes", "Yеs"]}, "outcomes"),
        ({"outcomes": ["Yes"]}, "outcomes"),
        ({"outcomes": "Yes"}, "outcomes"),
        ({"platform_fee_pct": 100.5}, "platform_fee_pct"),
        ({"platform_fee_pct": "101"}, "platform_fee_pct"),
        ({"description": "a\x07b"}, "description"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_body_that_misleads_is_refused_at_its_field(post: Post, changes: dict[str, Any], field: str) -> None:
    answer = post("create", {**NEW, **changes})
    assert answer.status_code == 400
    assert field in answer.json()["details"]
    assert Market.objects.count() == 0


def test_terms_without_bets_are_changed_and_shown(post: Post) -> None:
    made = post("create", NEW).json()["market_id"]
    body = {"market_id": made, "terms_version": 1, "reason": "Typing error.", "platform_fee_pct": "4"}
    assert post("change", body).json() == {
        "status": "changed",
        "market_id": made,
        "terms_version": 2,
        "changes": [{"field": "platform_fee_pct", "before": "5.00 %", "after": "4.00 %"}],
    }
    moved = post("change", {**body, "platform_fee_pct": "3"})
    assert (moved.status_code, moved.json()["code"]) == (409, "terms_moved")
    assert post("change", {**body, "terms_version": 2}).json()["status"] == "unchanged"
    assert post("change", {**body, "market_id": made + 1}).status_code == 404


def test_change_of_a_market_with_bets_waits_for_another_person(post: Post) -> None:
    """Before, an operator moved the close of a finished market, and a friend bet on the known winner."""
    # given
    made = Market.objects.get(pk=post("create", NEW).json()["market_id"])
    bet(made, member(100), at=wiring.now())
    body = {"market_id": made.pk, "terms_version": 1, "reason": "A longer market."}
    assert post("change", {**body, "outcomes": ["Home", "Away"]}).json()["code"] == "bad_terms"

    # when
    answer = post("change", {**body, "end_date": "2099-12-02T18:00:00+03:00"})

    # then
    assert (answer.status_code, answer.json()["status"], answer.json()["act"]) == (202, "proposed", "market.change")
    again = post("change", {**body, "platform_fee_pct": 50})
    assert (again.status_code, again.json()["code"]) == (409, "proposal_waits")
    made.refresh_from_db()
    assert (made.terms_version, made.betting_suspended_at is not None) == (1, True)

    # when: another person approves over REST
    approval = {name: answer.json()[name] for name in ("proposal_id", "preview_hash")}
    assert post("approve", approval).json()["code"] == "proposer_cannot_approve"
    approved = Client().post("/api/markets/admin/approve/", approval, format="json", headers=bearer(operator()))

    # then
    made.refresh_from_db()
    assert approved.json()["status"] == "approved"
    assert (made.terms_version, made.end_date.day) == (2, 2)
    assert made.take_back_until is not None


def test_betting_is_suspended_resumed_and_closed(post: Post) -> None:
    made, at = market(), wiring.now()
    body = {"market_id": made.pk, "reason": "News."}
    assert post("suspend-betting", body).json()["status"] == "suspended"
    assert Client().get(f"/api/markets/{made.pk}/").json()["betting_suspended"] is True
    assert post("resume-betting", body).json()["status"] == "resumed"
    assert post("resume-betting", body).json()["code"] == "betting_not_suspended"
    bet(made, member(100), at=at)
    assert post("close", body).json()["status"] == "closed"
    assert (post("close", body).status_code, post("close", body).json()["code"]) == (409, "market_not_open")


def test_sending_of_one_market_is_suspended_and_resumed(post: Post) -> None:
    payout = builders.payout(285)
    body = {"market_id": payout.settlement.market_id, "reason": "Check."}  # type: ignore[union-attr]
    assert post("suspend-sending", body).json() == {"status": "suspended", "market_id": body["market_id"]}
    assert post("resume-sending", body).json()["status"] == "resumed"
    assert post("resume-sending", body).json()["code"] == "sending_not_suspended"
    assert post("suspend-sending", {"market_id": market().pk, "reason": "Check."}).json()["code"] == "nothing_to_send"


@pytest.mark.parametrize("call", ["suspend-betting", "resume-betting", "close", "suspend-sending", "resume-sending"])
def test_act_on_a_market_needs_a_reason_and_a_market(post: Post, call: str) -> None:
    assert "reason" in post(call, {"market_id": market().pk}).json()["details"]
    assert post(call, {"market_id": 9_999_999, "reason": "None."}).json()["code"] == "market_not_found"
