"""Tests of api/rest/decisions.py: the answer of each call, and refused calls that move nothing."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from markets.models import Market
from payments import settlement_tasks, wiring
from payments.models import FloatReading, Recovery, Settlement, Transaction
from testing.builders import bearer, market, member, nothing_moved, operator, orm_bet, resolve, settle
from testing.payout_steps import READ_TIMEOUT, sent
from testing.rest import UNREADABLE_BODIES, assert_refused, post
from users.models import AuditEntry, Proposal

ADMIN = "/api/markets/admin/"
MONEY = "/api/payments/admin/"
PREVIEW = ADMIN + "settlement-preview/{}/"
POSTS = {
    ADMIN + "approve/": {"proposal_id": 1, "preview_hash": "0" * 64},
    ADMIN + "reject/": {"proposal_id": 1, "reason": "No."},
    ADMIN + "withdraw/": {"market_id": 1, "reason": "No."},
    ADMIN + "scratch/": {"market_id": 1, "outcome": "Yes", "reason": "No."},
    ADMIN + "undo/": {"market_id": 1, "reason": "No."},
    MONEY + "recoveries/set-off/": {"recovery_id": 1, "pct": 50},
    MONEY + "recoveries/write-off/": {"recovery_id": 1, "reason": "No."},
}
GETS = [PREVIEW.format(1), MONEY + "recoveries/", MONEY + "undo-costs/"]
Queued = Callable[[], list[tuple[str, str, list[Any]]]]


@pytest.fixture
def api() -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def staff(db: None) -> dict[str, str]:
    return bearer(operator())


def guides() -> Market:
    """Create the market of the guide: 100 on Yes, 200 on No, a fee of 5 %."""
    guides_market = market()
    orm_bet(guides_market, member(), "Yes", 100)
    orm_bet(guides_market, member(), "No", 200)
    return guides_market


# --- permissions and bodies ------------------------------------------------------------------------------------------


def test_untrusted_caller_gets_401_and_member_403_on_every_call(db: None, api: Client) -> None:
    headers = bearer(member())
    with nothing_moved():
        for path, body in POSTS.items():
            assert_refused(post(api, path, body), 401, "not_authenticated")
            assert_refused(post(api, path, body, headers), 403, "forbidden")
        for path in GETS:
            assert_refused(api.get(path), 401, "not_authenticated")
            assert_refused(api.get(path, headers=headers), 403, "forbidden")


def test_body_that_is_not_an_object_answers_400(staff: dict[str, str], api: Client) -> None:
    for path in POSTS:
        for body in UNREADABLE_BODIES.values():
            assert post(api, path, body, staff).status_code == 400


@pytest.mark.parametrize("path", POSTS)
def test_wrong_field_is_refused_by_its_name(staff: dict[str, str], api: Client, path: str) -> None:
    right = POSTS[path]
    for change in ({"extra": 1}, *({name: value} for name in right for value in (None, [], True))):
        answer = post(api, path, {**right, **change}, staff)
        assert_refused(answer, 400, "invalid")
        assert set(change) == set(answer.json()["details"])


def test_unknown_rows_answer_404(staff: dict[str, str], api: Client) -> None:
    codes = {
        "approve/": "proposal_not_found",
        "reject/": "proposal_not_found",
        "withdraw/": "market_not_found",
        "scratch/": "market_not_found",
        "undo/": "market_not_found",
        "set-off/": "recovery_not_found",
        "write-off/": "recovery_not_found",
    }
    with nothing_moved():
        for path, body in POSTS.items():
            (code,) = [code for end, code in codes.items() if path.endswith(end)]
            assert_refused(post(api, path, body, staff), 404, code)
        assert_refused(api.get(PREVIEW.format(2**63), headers=staff), 404, "not_found")


# --- preview ---------------------------------------------------------------------------------------------------------


def test_preview_of_the_guides_market_has_the_guides_numbers(staff: dict[str, str], api: Client) -> None:
    # given
    guides_market = guides()
    FloatReading.objects.create(source="balance", amount=250, read_at=timezone.now() - timedelta(seconds=90))

    # when
    answer = api.get(PREVIEW.format(guides_market.pk), {"outcome": "Yes"}, headers=staff)

    # then
    assert answer.status_code == 200
    (shown,) = answer.json()["previews"]
    assert (shown["pool"], shown["winning_pool"], shown["platform_fee"], shown["net_pool"], shown["winners"]) == (
        "300.00",
        "100.00",
        "15.00",
        "285.00",
        1,
    )
    assert shown["dividends"] == [{"outcome": "Yes", "staked": "100.00", "fund": "285.00", "per_shilling": "2.850000"}]
    assert shown["payouts"] == {
        "total": "285.00",
        "by_mpesa": "285.00",
        "payments": 1,
        "to_wallet": "0.00",
        "set_off": "0.00",
    }
    assert (shown["charges"], shown["float"]["needed"], shown["float"]["available"]) == ("5.00", "290.00", "250.00")
    assert shown["float"]["enough"] is False
    assert 90 <= shown["float"]["age_seconds"] < 600
    assert len(shown["preview_hash"]) == 64


def test_preview_without_an_outcome_shows_every_outcome_and_void(staff: dict[str, str], api: Client) -> None:
    shown = api.get(PREVIEW.format(guides().pk), headers=staff).json()["previews"]
    assert [(each["rule"], each["weights"]) for each in shown] == [
        ("WINNER", {"Yes": "100"}),
        ("WINNER", {"No": "100"}),
        ("VOID", {}),
    ]


def test_preview_of_joint_winners_and_of_a_void(staff: dict[str, str], api: Client) -> None:
    guides_market = guides()
    joint = api.get(
        PREVIEW.format(guides_market.pk), {"weights": "Yes:50, No:50", "rule": "JOINT"}, headers=staff
    ).json()
    void = api.get(PREVIEW.format(guides_market.pk), {"void": "true"}, headers=staff).json()
    assert joint["previews"][0]["weights"] == {"Yes": "50", "No": "50"}
    assert void["previews"][0]["refunds"]["whole_pool"] is True


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"outcome": "Maybe"}, "unknown_outcome"),
        ({"outcome": "Yes", "void": "true"}, "invalid"),
        ({"weights": "Yes:50,No:50"}, "invalid"),
        ({"weights": "Yes", "rule": "JOINT"}, "invalid"),
        ({"weights": "Yes:x", "rule": "JOINT"}, "invalid"),
        ({"weights": "Yes:60,No:50", "rule": "SPLIT"}, "bad_weights"),
        ({"rule": "WINNER", "weights": "Yes:100"}, "invalid"),
        ({"outcom": "Yes"}, "invalid"),
        ({"outcome": "\x00"}, "invalid"),
        ({"effective_close_at": "yesterday"}, "invalid"),
    ],
)
def test_preview_of_an_impossible_decision_answers_400(
    staff: dict[str, str], api: Client, query: dict[str, str], code: str
) -> None:
    assert_refused(api.get(PREVIEW.format(guides().pk), query, headers=staff), 400, code)


def test_preview_of_a_resolved_market_answers_409(staff: dict[str, str], api: Client) -> None:
    guides_market = guides()
    resolve(guides_market)
    assert_refused(api.get(PREVIEW.format(guides_market.pk), headers=staff), 409, "market_already_resolved")


# --- resolve ---------------------------------------------------------------------------------------------------------


def test_resolve_takes_all_optional_fields(staff: dict[str, str], api: Client) -> None:
    # given
    guides_market = guides()
    closed = (timezone.now() - timedelta(hours=1)).isoformat()
    query = {"weights": "Yes:50,No:50", "rule": "JOINT", "effective_close_at": closed}
    seen = api.get(PREVIEW.format(guides_market.pk), query, headers=staff).json()["previews"][0]

    # when
    body = {
        "market_id": guides_market.pk,
        "weights": {"Yes": 50, "No": "50"},
        "rule": "JOINT",
        "evidence_url": "https://example.com/result",
        "evidence_note": "A dead heat.",
        "effective_close_at": closed,
        "preview_hash": seen["preview_hash"],
    }
    answer = post(api, ADMIN + "resolve/", body, staff)

    # then
    assert (answer.status_code, answer.json()["status"], answer.json()["outcome"]) == (200, "resolved", None)
    settlement = Settlement.objects.get()
    assert (settlement.rule, settlement.weights, settlement.evidence_note) == (
        "JOINT",
        {"Yes": "50", "No": "50"},
        "A dead heat.",
    )
    assert AuditEntry.objects.get().source == "127.0.0.1"


@pytest.mark.parametrize(
    ("change", "code", "status"),
    [
        ({"outcome": "Yes", "weights": {"Yes": 100}, "rule": "JOINT"}, "invalid", 400),
        ({"outcome": None}, "invalid", 400),
        ({"weights": {"Yes": 100}}, "invalid", 400),
        ({"rule": "JOINT", "outcome": "Yes"}, "invalid", 400),
        ({"weights": {"Yes": 50, "No": 49.99}, "rule": "SPLIT"}, "bad_weights", 400),
        ({"weights": {"Yes": "1e2"}, "rule": "SPLIT"}, "invalid", 400),
        ({"weights": {}, "rule": "SPLIT"}, "invalid", 400),
        ({"weights": {"Yes": True}, "rule": "SPLIT"}, "invalid", 400),
        ({"outcome": "Yes", "evidence_url": "javascript:alert(1)"}, "invalid", 400),
        ({"outcome": "Yes", "evidence_url": "ftp://example.com/"}, "invalid", 400),
        ({"outcome": "Yes", "evidence_note": "x" * 1001}, "invalid", 400),
        ({"outcome": "Yes", "effective_close_at": "2999-01-01T00:00:00Z"}, "bad_close_time", 400),
        ({"outcome": "Yes", "effective_close_at": 5}, "invalid", 400),
        ({"outcome": "Yes", "preview_hash": "0" * 64}, "preview_moved", 409),
    ],
)
def test_resolve_with_contradictory_fields_is_refused(
    staff: dict[str, str], api: Client, change: dict[str, Any], code: str, status: int
) -> None:
    guides_market = guides()
    with nothing_moved():
        assert_refused(post(api, ADMIN + "resolve/", {"market_id": guides_market.pk, **change}, staff), status, code)


def test_second_person_approves_a_proposal(api: Client, staff: dict[str, str], settings: Any, queued: Queued) -> None:
    # given
    settings.RESOLVE_APPROVAL_ABOVE = Decimal(299)
    guides_market, second = guides(), bearer(operator())

    # when
    answer = post(api, ADMIN + "resolve/", {"market_id": guides_market.pk, "outcome": "Yes"}, staff)

    # then
    proposed = answer.json()
    assert answer.status_code == 202
    assert queued() == []
    assert proposed == {
        "status": "proposed",
        "proposal_id": Proposal.objects.get().pk,
        "market_id": guides_market.pk,
        "kind": "RESOLVE",
        "preview_hash": Proposal.objects.get().hash,
    }
    approval = {"proposal_id": proposed["proposal_id"], "preview_hash": proposed["preview_hash"]}
    with nothing_moved():
        assert_refused(post(api, ADMIN + "approve/", approval, staff), 403, "proposer_cannot_approve")
        assert_refused(
            post(api, ADMIN + "void/", {"market_id": guides_market.pk, "reason": "error"}, second),
            409,
            "proposal_waits",
        )

    # when
    answer = post(api, ADMIN + "approve/", approval, second)

    # then
    settlement = Settlement.objects.get()
    assert answer.json() == {
        "status": "resolved",
        "market_id": guides_market.pk,
        "outcome": "Yes",
        "settlement_task_id": str(settlement.public_id),
    }
    assert queued() == [("payments.settlement_tasks.settle_market", str(settlement.public_id), [guides_market.pk])]


def test_bettor_cannot_resolve_and_proposer_can_cancel(api: Client, staff: dict[str, str], settings: Any) -> None:
    settings.RESOLVE_APPROVAL_ABOVE = Decimal(0)
    guides_market, punter = guides(), operator()
    orm_bet(guides_market, punter, "Yes", 1)
    assert_refused(
        post(api, ADMIN + "resolve/", {"market_id": guides_market.pk, "outcome": "Yes"}, bearer(punter)),
        403,
        "stake_in_market",
    )
    proposed = post(api, ADMIN + "resolve/", {"market_id": guides_market.pk, "outcome": "Yes"}, staff).json()

    answer = post(api, ADMIN + "reject/", {"proposal_id": proposed["proposal_id"], "reason": "Not yet."}, staff)

    assert answer.json() == {
        "status": "rejected",
        "proposal_id": proposed["proposal_id"],
        "market_id": guides_market.pk,
    }
    guides_market.refresh_from_db()
    assert guides_market.status == "OPEN"


# --- hold, withdraw, scratch, undo -----------------------------------------------------------------------------------


def test_held_result_is_provisional_until_its_release(api: Client, staff: dict[str, str], settings: Any) -> None:
    # given
    settings.SETTLEMENT_HOLD_MINUTES = ((Decimal(0), 30),)
    guides_market, user = market(), member()
    orm_bet(guides_market, user, "Yes", 100)
    assert post(api, ADMIN + "resolve/", {"market_id": guides_market.pk, "outcome": "Yes"}, staff).status_code == 200
    settlement_tasks.settle_market(guides_market.pk)

    # then
    assert api.get(f"/api/markets/{guides_market.pk}/").json()["provisional"] is True
    (shown,) = api.get(f"/api/markets/{guides_market.pk}/bets/", headers=bearer(user)).json()["bets"]
    assert (shown["result"], shown["provisional"]) == ("WON", True)

    # when
    answer = post(api, ADMIN + "withdraw/", {"market_id": guides_market.pk, "reason": "Typed wrong."}, staff)
    settlement_tasks.undo_market(guides_market.pk)

    # then
    assert answer.json() == {"status": "withdrawn", "market_id": guides_market.pk, "undoing": True}
    assert api.get(f"/api/markets/{guides_market.pk}/").json()["status"] == "CLOSED"

    # when: the next result is released at once
    settings.SETTLEMENT_HOLD_MINUTES = ()
    wiring.policy.cache_clear()
    post(api, ADMIN + "resolve/", {"market_id": guides_market.pk, "outcome": "Yes"}, staff)
    settlement_tasks.settle_market(guides_market.pk)

    # then
    assert api.get(f"/api/markets/{guides_market.pk}/").json()["provisional"] is False
    withdrawal = {"market_id": guides_market.pk, "reason": "Late."}
    with nothing_moved():
        assert_refused(post(api, ADMIN + "withdraw/", withdrawal, staff), 409, "already_released")


def test_scratched_outcome_leaves_the_pool_and_is_scratched_once(api: Client, staff: dict[str, str]) -> None:
    guides_market, user = market(("A", "B", "C")), member()
    orm_bet(guides_market, user, "C", 50)
    body = {"market_id": guides_market.pk, "outcome": "C", "reason": "Did not start."}

    answer = post(api, ADMIN + "scratch/", body, staff)
    settlement_tasks.settle_market(guides_market.pk)

    assert answer.json()["status"] == "scratched"
    shown = api.get(f"/api/markets/{guides_market.pk}/").json()
    assert (shown["status"], shown["pool"]) == ("OPEN", "0.00")
    assert shown["outcomes"][2] == {"name": "C", "staked": "50.00", "bets": 1, "scratched": True}
    with nothing_moved():
        assert_refused(post(api, ADMIN + "scratch/", body, staff), 400, "unknown_outcome")
        last = {"market_id": guides_market.pk, "outcome": "B", "reason": "Nor did it."}
        assert_refused(post(api, ADMIN + "scratch/", last, staff), 409, "too_few_outcomes")


def test_undo_makes_debts_of_sent_payouts(api: Client, staff: dict[str, str], queued: Queued) -> None:
    # given: a payout that M-Pesa may have carried
    guides_market = guides()
    resolve(guides_market)
    settle(guides_market)
    sent(Transaction.objects.get(), READ_TIMEOUT)

    # when
    answer = post(api, ADMIN + "undo/", {"market_id": guides_market.pk, "reason": "It was No."}, staff)

    # then
    assert answer.json() == {"status": "undoing", "market_id": guides_market.pk}
    assert [(name, arguments) for name, _, arguments in queued()] == [
        ("payments.settlement_tasks.undo_market", [guides_market.pk])
    ]
    settlement_tasks.settle_resolved_markets()  # No worker got the message, so the sweep undoes the market.
    (owed,) = api.get(MONEY + f"recoveries/?market_id={guides_market.pk}", headers=staff).json()["recoveries"]
    assert (owed["amount"], owed["outstanding"], owed["decision"], owed["market_id"]) == (
        "285.00",
        "285.00",
        "OPEN",
        guides_market.pk,
    )
    assert Recovery.objects.get().user.phone_number not in str(owed)

    # when
    set_off = post(api, MONEY + "recoveries/set-off/", {"recovery_id": owed["id"], "pct": 40}, staff).json()
    written_off = post(
        api, MONEY + "recoveries/write-off/", {"market_id": guides_market.pk, "reason": "Ours."}, staff
    ).json()

    # then
    assert (set_off["status"], set_off["recoveries"][0]["pct"]) == ("set_off", 40)
    assert (written_off["status"], written_off["recoveries"][0]["outstanding"]) == ("written_off", "0.00")
    costs = api.get(MONEY + "undo-costs/", headers=staff).json()
    assert costs["by_market"] == [
        {
            "market_id": guides_market.pk,
            "undone": 1,
            "wrongly_paid": "285.00",
            "recovered": "0.00",
            "written_off": "285.00",
            "outstanding": "0.00",
            "charges": "0.00",
        }
    ]
    assert [cost["undone"] for cost in costs["by_operator"]] == [1]
    with nothing_moved():
        assert_refused(
            post(api, ADMIN + "undo/", {"market_id": guides_market.pk, "reason": "Again."}, staff), 409, "not_undoable"
        )
        both = {"recovery_id": owed["id"], "market_id": guides_market.pk, "pct": 5}
        assert_refused(post(api, MONEY + "recoveries/set-off/", both, staff), 400, "invalid")
        none = {"recovery_id": owed["id"], "reason": "Again."}
        assert_refused(post(api, MONEY + "recoveries/write-off/", none, staff), 409, "nothing_owed")
