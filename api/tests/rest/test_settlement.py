"""Tests of api/rest/settlement.py: permissions, the answer of each call, and refused calls that move nothing."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from markets.models import Market
from payments import settlement_tasks, wiring
from payments.models import Settlement, Transaction
from payments.mpesa import gateway_errors
from payments.payouts.operations import failures
from payments.payouts.sending import claims, responses
from payments.settlement import settling
from testing.builders import (
    AT,
    bearer,
    bet,
    market,
    member,
    nothing_moved,
    operator,
    orm_bet,
    payout,
    policy,
    resolve,
    settle,
    settled_market,
)
from testing.payout_steps import READ_TIMEOUT, sent
from testing.rest import UNREADABLE_BODIES, assert_refused, post

SETTLE = "payments.settlement_tasks.settle_market"
RESOLVE = "/api/markets/admin/resolve/"
VOID = "/api/markets/admin/void/"
STATUS = "/api/markets/admin/settlement-status/{}/"
RETRY = ["/api/markets/admin/retry-payout/", "/api/payments/admin/retry-payout/"]
RETRY_FAILED = ["/api/markets/admin/retry-failed-payouts/", "/api/payments/admin/retry-failed-payouts/"]
POSTS = [RESOLVE, VOID, *RETRY, *RETRY_FAILED]


@pytest.fixture
def api() -> Client:
    """A client that returns a 500 answer instead of raising the exception."""
    return Client(raise_request_exception=False)


def failed_payout(amount: int = 285, *, at: Any = AT) -> Transaction:
    """Create a payout that M-Pesa definitely refused."""
    failed = payout(amount, at=at)
    (claim,) = claims.claim(at=at, policy=policy(), addresses=wiring.addresses(), limit=1, transaction_id=failed.pk)
    refused = gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
    responses.record(claim, refused, at=at, policy=policy())
    failed.refresh_from_db()
    assert failed.status == "FAILED"
    return failed


# --- permissions and bodies ------------------------------------------------------------------------------------------


def test_url_names_of_the_guide_reverse_to_the_markets_paths() -> None:
    assert reverse("resolve_market") == RESOLVE
    assert reverse("settlement_status", args=[1]) == STATUS.format(1)
    assert reverse("retry_payout") == RETRY[0]
    assert reverse("retry_failed_payouts") == RETRY_FAILED[0]


@pytest.mark.parametrize("path", POSTS)
def test_untrusted_caller_gets_401_and_member_403_on_every_call(db: None, api: Client, path: str) -> None:
    # given: a correct body
    opened, failed = market(), failed_payout()
    orm_bet(opened, member())
    headers = bearer(member())
    body = {"market_id": opened.pk, "outcome": "Yes", "transaction_id": failed.pk}

    with nothing_moved():
        for nobody in ({}, {"Authorization": "Bearer yourtoken"}, {"Authorization": "Token yourtoken"}):
            assert_refused(post(api, path, body, nobody), 401, "not_authenticated")
        assert_refused(post(api, path, body, headers), 403, "forbidden")
        assert_refused(post(api, path, b"[" * 100, headers), 403, "forbidden")


def test_settlement_status_is_for_staff_only(db: None, api: Client) -> None:
    game = market()
    assert_refused(api.get(STATUS.format(game.pk)), 401, "not_authenticated")
    assert_refused(api.get(STATUS.format(game.pk), headers=bearer(member())), 403, "forbidden")


def test_suspended_staff_get_401(db: None, api: Client) -> None:
    game, user = market(), operator()
    headers = bearer(user)
    user.is_active = False
    user.save()
    with nothing_moved():
        assert_refused(post(api, RESOLVE, {"market_id": game.pk, "outcome": "Yes"}, headers), 401, "not_authenticated")


def test_console_session_without_a_token_gets_401(db: None, api: Client) -> None:
    game = market()
    api.force_login(operator(is_superuser=True))
    with nothing_moved():
        assert_refused(post(api, RESOLVE, {"market_id": game.pk, "outcome": "Yes"}), 401, "not_authenticated")


@pytest.mark.parametrize("path", POSTS)
def test_unreadable_body_is_refused_on_every_call(db: None, api: Client, path: str) -> None:
    market()
    failed_payout()
    headers = bearer(operator())
    with nothing_moved():
        for name, body in UNREADABLE_BODIES.items():
            # An empty body is valid for a call whose fields all have defaults.
            if not (name == "nothing" and path in RETRY_FAILED):
                assert_refused(post(api, path, body, headers), 400, "invalid")


@pytest.mark.parametrize("path", POSTS)
def test_unknown_field_is_refused_by_its_name_on_every_call(db: None, api: Client, path: str) -> None:
    opened, failed = market(), failed_payout()
    bodies = {
        RESOLVE: {"market_id": opened.pk, "outcome": "Yes"},
        VOID: {"market_id": opened.pk, "reason": "cancelled"},
        **{path: {"transaction_id": failed.pk} for path in RETRY},
        **{path: {"hours": 720} for path in RETRY_FAILED},
    }
    headers = bearer(operator())
    with nothing_moved():
        answer = post(api, path, bodies[path] | {"dry_run": True}, headers)
        assert_refused(answer, 400, "invalid")
    assert answer.json()["details"] == {"dry_run": ["This call has no such field. Check the spelling."]}


@pytest.mark.parametrize("path", POSTS)
def test_get_of_a_call_that_writes_answers_405(db: None, api: Client, path: str) -> None:
    assert_refused(api.get(path, headers=bearer(operator())), 405, "method_not_allowed")


@pytest.mark.parametrize("path", POSTS)
def test_path_without_its_slash_answers_404_without_redirect(db: None, api: Client, path: str) -> None:
    assert_refused(post(api, path.rstrip("/"), {}, bearer(operator())), 404, "not_found")


@pytest.mark.parametrize("market_id", [1.0, 1.5, "1", True, None, [1], {"id": 1}, 0, -1, 2**63, 10**40, ""])
@pytest.mark.parametrize("path", [RESOLVE, VOID])
def test_market_id_that_is_not_a_positive_integer_is_refused(db: None, api: Client, path: str, market_id: Any) -> None:
    market()
    headers = bearer(operator())
    body = {"market_id": market_id} | ({"outcome": "Yes"} if path == RESOLVE else {"reason": "cancelled"})
    with nothing_moved():
        answer = post(api, path, body, headers)
        assert_refused(answer, 400, "invalid")
    assert market_id == 10**40 or list(answer.json()["details"]) == ["market_id"]


# --- resolve ---------------------------------------------------------------------------------------------------------


def test_resolve_declares_the_outcome_and_queues_the_settlement(db: None, api: Client, queued: Any) -> None:
    # given
    game, staff = market(), operator()
    orm_bet(game, member(), "Yes", 100)
    orm_bet(game, member(), "No", 200)

    # when
    answer = post(api, RESOLVE, {"market_id": game.pk, "outcome": "Yes"}, bearer(staff))

    # then
    settlement = Settlement.objects.get()
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "resolved",
        "market_id": game.pk,
        "outcome": "Yes",
        "settlement_task_id": str(settlement.public_id),
    }
    assert queued() == [(SETTLE, str(settlement.public_id), [game.pk])]
    game.refresh_from_db()
    assert (game.status, game.resolved_outcome, game.resolved_at) == ("RESOLVED", "Yes", settlement.resolved_at)
    assert (settlement.rule, settlement.weights, settlement.resolved_by, settlement.fee_pct) == (
        "WINNER",
        {"Yes": "100"},
        staff,
        5,
    )
    assert game.settled_at is None


def test_second_decision_about_a_resolved_market_is_refused(db: None, api: Client, queued: Any) -> None:
    game = market()
    headers = bearer(operator())
    post(api, RESOLVE, {"market_id": game.pk, "outcome": "Yes"}, headers)
    with nothing_moved():
        for outcome in ("Yes", "No"):
            answer = post(api, RESOLVE, {"market_id": game.pk, "outcome": outcome}, headers)
            assert_refused(answer, 409, "market_already_resolved")
        answer = post(api, VOID, {"market_id": game.pk, "reason": "error"}, headers)
        assert_refused(answer, 409, "market_already_resolved")
    assert len(queued()) == 1


def test_resolve_of_a_settled_market_is_refused(db: None, api: Client) -> None:
    game = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    headers = bearer(operator())
    with nothing_moved():
        answer = post(api, RESOLVE, {"market_id": game.pk, "outcome": "No"}, headers)
        assert_refused(answer, 409, "market_already_resolved")


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("Maybe", "unknown_outcome"),
        ("yes", "unknown_outcome"),
        ("Yes%", "unknown_outcome"),
        ("' OR 1=1", "unknown_outcome"),
        ("", "invalid"),
        ("x" * 121, "invalid"),
        (1, "invalid"),
        (True, "invalid"),
        (None, "invalid"),
        (["Yes"], "invalid"),
    ],
)
def test_resolve_with_an_unknown_outcome_is_refused(db: None, api: Client, outcome: Any, code: str) -> None:
    game = market()
    headers = bearer(operator())
    with nothing_moved():
        assert_refused(post(api, RESOLVE, {"market_id": game.pk, "outcome": outcome}, headers), 400, code)


def test_resolve_with_an_outcome_of_another_market_is_refused(db: None, api: Client) -> None:
    game = market()
    market(outcomes=("Home", "Away"))
    headers = bearer(operator())
    with nothing_moved():
        assert_refused(post(api, RESOLVE, {"market_id": game.pk, "outcome": "Home"}, headers), 400, "unknown_outcome")


@pytest.mark.parametrize("market_id", [999_999, 2**63 - 1])
def test_unknown_market_answers_404_on_every_call(db: None, api: Client, market_id: int) -> None:
    headers = bearer(operator())
    with nothing_moved():
        answer = post(api, RESOLVE, {"market_id": market_id, "outcome": "Yes"}, headers)
        assert_refused(answer, 404, "market_not_found")
        answer = post(api, VOID, {"market_id": market_id, "reason": "error"}, headers)
        assert_refused(answer, 404, "market_not_found")
        assert_refused(api.get(STATUS.format(market_id), headers=headers), 404, "not_found")
    assert_refused(api.get(STATUS.format(2**63), headers=headers), 404, "not_found")


def test_resolve_succeeds_and_the_sweep_settles_while_redis_is_down(db: None, api: Client, redis_down: None) -> None:
    # given
    game = market()
    orm_bet(game, member(), "Yes", 5)

    # when: the message cannot be published
    answer = post(api, RESOLVE, {"market_id": game.pk, "outcome": "Yes"}, bearer(operator()))

    # then
    assert answer.status_code == 200
    assert answer.json()["settlement_task_id"] == str(Settlement.objects.get().public_id)
    assert settling.to_settle(limit=10) == [game.pk]
    settlement_tasks.settle_resolved_markets()
    assert settling.to_settle(limit=10) == []
    assert Market.objects.get().status == "SETTLED"


# --- void ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["cancelled", "postponed", "ambiguous", "no_result", "error"])
def test_void_returns_every_stake_to_its_wallet(db: None, api: Client, queued: Any, reason: str) -> None:
    game, user = market(), member(balance=100)
    bet(game, user, "Yes", "60.40")

    answer = post(api, VOID, {"market_id": game.pk, "reason": reason}, bearer(operator()))
    settle(game)

    settlement = Settlement.objects.get()
    assert answer.json() == {
        "status": "void",
        "market_id": game.pk,
        "reason": reason,
        "settlement_task_id": str(settlement.public_id),
    }
    assert queued() == [(SETTLE, str(settlement.public_id), [game.pk])]
    user.refresh_from_db()
    assert (game.status, settlement.reason, user.balance) == ("VOID", reason, 100)


@pytest.mark.parametrize("reason", ["CANCELLED", "because", "", None, 1, ["error"]])
def test_void_with_an_unknown_reason_is_refused(db: None, api: Client, reason: Any) -> None:
    game = market()
    headers = bearer(operator())
    with nothing_moved():
        answer = post(api, VOID, {"market_id": game.pk, "reason": reason}, headers)
        assert_refused(answer, 400, "invalid")
    assert list(answer.json()["details"]) == ["reason"]


# --- settlement status -----------------------------------------------------------------------------------------------


def test_status_of_an_open_market_shows_its_pool_and_no_payouts(db: None, api: Client) -> None:
    game = market()
    orm_bet(game, member(), "Yes", "100.50")
    answer = api.get(STATUS.format(game.pk), headers=bearer(operator()))
    assert answer.status_code == 200
    assert answer.json() == {
        "market_id": game.pk,
        "status": "OPEN",
        "outcome": None,
        "resolved_at": None,
        "settled_at": None,
        "release_at": None,
        "pool": "100.50",
        "platform_fee": "0.00",
        "total_payouts": "0.00",
        "completed_payouts": "0.00",
        "failed_payouts": "0.00",
        "pending_payouts": "0.00",
        "in_doubt_payouts": "0.00",
        "held_payouts": "0.00",
        "payout_count": {"pending": 0, "processing": 0, "in_doubt": 0, "held": 0, "completed": 0, "failed": 0},
        "progress": {"bets_done": 0, "bets_total": 0, "members_done": 0},
        "in_doubt": [],
        "limbo": [],
    }


def test_status_of_a_settled_market_shows_amounts_by_state(db: None, api: Client) -> None:
    game = settled_market([(member(), "Yes", "100.10"), (member(), "No", 200)])
    answer = api.get(STATUS.format(game.pk), headers=bearer(operator())).json()
    assert answer["payout_count"] == {
        "pending": 1,
        "processing": 0,
        "in_doubt": 0,
        "held": 0,
        "completed": 1,
        "failed": 0,
    }
    # 5 % of 300.10 is 15.005, floored to the cent.
    assert {name: answer[name] for name in ("pool", "platform_fee", "total_payouts")} == {
        "pool": "300.10",
        "platform_fee": "15.00",
        "total_payouts": "285.10",
    }
    assert (answer["pending_payouts"], answer["completed_payouts"]) == ("285.00", "0.10")
    assert (answer["status"], answer["outcome"], answer["settled_at"]) == ("SETTLED", "Yes", "2026-02-16T07:30:00Z")


def test_status_of_a_resolved_market_shows_its_pool_before_settlement(db: None, api: Client) -> None:
    game = market()
    orm_bet(game, member(), "Yes", 7)
    resolve(game)
    answer = api.get(STATUS.format(game.pk), headers=bearer(operator())).json()
    assert (answer["status"], answer["outcome"], answer["pool"], answer["settled_at"]) == (
        "RESOLVED",
        "Yes",
        "7.00",
        None,
    )


def test_status_lists_payouts_in_doubt_under_the_new_and_the_old_key(db: None, api: Client) -> None:
    # given
    game = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    asked_for = Transaction.objects.get()
    sent(asked_for, READ_TIMEOUT)

    # when
    answer = api.get(STATUS.format(game.pk), headers=bearer(operator())).json()

    # then: the old key is kept for one version
    (payout_in_doubt,) = answer["in_doubt"]
    assert (payout_in_doubt["transaction_id"], payout_in_doubt["amount"]) == (asked_for.pk, "285.00")
    assert answer["limbo"] == answer["in_doubt"]


# --- retry -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RETRY)
def test_failed_payout_is_retried_under_both_prefixes(db: None, api: Client, queued: Any, path: str) -> None:
    failed = failed_payout()

    answer = post(api, path, {"transaction_id": failed.pk}, bearer(operator()))

    assert answer.status_code == 200
    assert answer.json() == {"status": "retried", "transaction_id": failed.pk, "new_status": "PENDING"}
    failed.refresh_from_db()
    assert failed.status == "PENDING"
    assert [(task, arguments) for task, _, arguments in queued()] == [
        ("payments.settlement_tasks.ask_about_doubts", []),
        ("payments.settlement_tasks.send_b2c_payout", [failed.pk]),
    ]


@pytest.mark.parametrize("path", RETRY)
def test_retry_of_a_payout_that_has_not_failed_is_refused(db: None, api: Client, queued: Any, path: str) -> None:
    pending = payout()
    game = settled_market([(member(), "Yes", 5)])
    to_wallet = Transaction.objects.get(settlement__market=game)
    headers = bearer(operator())
    with nothing_moved():
        for other in (pending, to_wallet):
            answer = post(api, path, {"transaction_id": other.pk}, headers)
            assert_refused(answer, 409, "payout_not_retryable")
        for unknown in (999_999, 2**63 - 1):
            answer = post(api, path, {"transaction_id": unknown}, headers)
            assert_refused(answer, 404, "transaction_not_found")
        for shape in (1.0, "1", True, None, 0, -1, 2**63):
            assert_refused(post(api, path, {"transaction_id": shape}, headers), 400, "invalid")
    assert queued() == []


def test_second_retry_of_a_payout_is_refused(db: None, api: Client) -> None:
    failed = failed_payout()
    headers = bearer(operator())
    assert post(api, RETRY[0], {"transaction_id": failed.pk}, headers).status_code == 200
    with nothing_moved():
        assert_refused(post(api, RETRY[1], {"transaction_id": failed.pk}, headers), 409, "payout_not_retryable")


@pytest.mark.parametrize("path", RETRY_FAILED)
def test_all_payouts_that_failed_within_the_hours_are_retried(db: None, api: Client, queued: Any, path: str) -> None:
    # given: payouts that failed two days ago, half an hour ago and now, and a pending one
    now = timezone.now()
    old = failed_payout(at=now - timedelta(hours=48))
    recent = [failed_payout(at=now - timedelta(minutes=30)), failed_payout(at=now)]
    payout()
    headers = bearer(operator())

    # when
    first = post(api, path, {}, headers)
    again = post(api, path, {"hours": 24}, headers)
    week = post(api, path, {"hours": 168}, headers)

    # then
    assert first.json() == {
        "status": "retried",
        "count": 2,
        "transaction_ids": [failed.pk for failed in recent],
        "skipped": 0,
    }
    assert again.json() == {"status": "retried", "count": 0, "transaction_ids": [], "skipped": 0}
    assert week.json()["transaction_ids"] == [old.pk]
    assert {task for task, _, _ in queued()} == {
        "payments.settlement_tasks.ask_about_doubts",
        "payments.settlement_tasks.send_due_payouts",
    }


def test_bulk_retry_answers_how_many_payouts_follow(
    db: None, api: Client, queued: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "AT_ONCE", 2)
    payouts = [failed_payout(at=timezone.now()) for _ in range(3)]
    answer = post(api, RETRY_FAILED[0], {}, bearer(operator())).json()
    assert answer == {
        "status": "retried",
        "count": 2,
        "transaction_ids": [failed.pk for failed in payouts[:2]],
        "skipped": 0,
        "remaining": 1,
    }
    assert "payments.settlement_tasks.continue_bulk_retries" in {task for task, _, _ in queued()}


@pytest.mark.parametrize("path", RETRY_FAILED)
@pytest.mark.parametrize("hours", [0, -1, 721, 1.5, 24.0, "24", True, None, [24], 2**63])
def test_hours_that_are_not_an_integer_from_1_to_720_are_refused(db: None, api: Client, path: str, hours: Any) -> None:
    failed_payout(at=timezone.now())
    headers = bearer(operator())
    with nothing_moved():
        assert_refused(post(api, path, {"hours": hours}, headers), 400, "invalid")
