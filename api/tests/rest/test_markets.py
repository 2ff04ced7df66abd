"""Tests of api/rest/markets.py: anyone reads markets, members bet, and wrong input moves no money."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.test import Client

from markets.models import Bet, Market, Outcome
from testing.builders import AT, bearer, bet, market, member, nothing_moved, orm_bet, settled_market, transfers
from testing.rest import UNREADABLE_BODIES, assert_refused, post


@pytest.fixture
def api() -> Client:
    """A client that returns a 500 answer instead of raising the exception."""
    return Client(raise_request_exception=False)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_anyone_reads_a_market_with_its_pools(db: None, api: Client) -> None:
    game = market(outcomes=("Home", "Away", "Draw"), question="Who wins?", end_date="2026-02-17", category="Football")
    orm_bet(game, member(), "Home", "10.50")
    orm_bet(game, member(), "Home", "1")
    orm_bet(game, member(), "Draw", "2000")

    answer = api.get(f"/api/markets/{game.pk}/")

    assert answer.status_code == 200
    body = answer.json()
    assert datetime.fromisoformat(body.pop("end_date")) == datetime(2026, 2, 17, 20, 59, 59, 999999, tzinfo=UTC)
    assert body == {
        "id": game.pk,
        "question": "Who wins?",
        "description": "",
        "source": "",
        "category": "Football",
        "status": "OPEN",
        "platform_fee_pct": "5.00",
        "terms_version": 1,
        "betting_suspended": False,
        "notice": None,
        "pool": "2011.50",
        "outcomes": [
            {"name": "Home", "staked": "11.50", "bets": 2, "scratched": False},
            {"name": "Away", "staked": "0.00", "bets": 0, "scratched": False},
            {"name": "Draw", "staked": "2000.00", "bets": 1, "scratched": False},
        ],
        "resolved_outcome": None,
        "resolved_at": None,
        "settled_at": None,
        "provisional": False,
    }


def test_settled_market_shows_its_winning_outcome(db: None, api: Client) -> None:
    game = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    body = api.get(f"/api/markets/{game.pk}/").json()
    assert (body["status"], body["resolved_outcome"], body["pool"]) == ("SETTLED", "Yes", "300.00")
    assert body["settled_at"] == "2026-02-16T07:30:00Z"


def test_markets_are_listed_newest_first_100_per_page(db: None, api: Client) -> None:
    Market.objects.bulk_create(Market(question=f"{number}?", end_date="2026-02-17") for number in range(103))
    ids = sorted(Market.objects.values_list("pk", flat=True), reverse=True)

    first = [listed["id"] for listed in api.get("/api/markets/").json()["markets"]]
    rest = [listed["id"] for listed in api.get(f"/api/markets/?before={first[-1]}").json()["markets"]]

    assert first + rest == ids
    assert len(first) == 100


def test_markets_are_listed_by_status(db: None, api: Client) -> None:
    settled = settled_market([(member(), "Yes", 1)])
    opened = market()
    assert [listed["id"] for listed in api.get("/api/markets/?status=OPEN").json()["markets"]] == [opened.pk]
    assert [listed["id"] for listed in api.get("/api/markets/?status=SETTLED").json()["markets"]] == [settled.pk]
    assert api.get("/api/markets/?status=VOID").json() == {"markets": []}


@pytest.mark.parametrize(
    "query",
    [
        "before=%00",
        "before=-1",
        "before=",
        "before=1_0",
        "before=%D9%A1",
        "before=1.5",
        f"before={2**63}",
        "before=" + "9" * 5_000,
        "status=open",
        "status=",
        "status=%00",
        "status=%ff",
    ],
)
def test_list_with_a_wrong_query_answers_400(db: None, api: Client, query: str) -> None:
    assert_refused(api.get(f"/api/markets/?{query}"), 400, "invalid")


@pytest.mark.parametrize("market_id", ["0", "999999", str(2**63), "9" * 30])
def test_unknown_market_answers_404(db: None, api: Client, market_id: str) -> None:
    assert_refused(api.get(f"/api/markets/{market_id}/"), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/api/markets/one/", "/api/markets/-1/", "/api/markets", "/api/market/", "/nothing", "/api/markets/%00/"]
)
def test_unknown_path_answers_404_in_the_same_envelope(db: None, api: Client, path: str) -> None:
    assert_refused(api.get(path), 404, "not_found")


def test_wrong_method_answers_405(db: None, api: Client) -> None:
    game = market()
    headers = bearer(member())
    assert_refused(post(api, f"/api/markets/{game.pk}/", {}, headers), 405, "method_not_allowed")
    assert_refused(api.delete(f"/api/markets/{game.pk}/bets/", headers=headers), 405, "method_not_allowed")


# --- betting ---------------------------------------------------------------------------------------------------------


def test_bet_is_paid_from_the_wallet(db: None, api: Client) -> None:
    game, user = market(), member(balance="100.50")

    answer = post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": "60.25"}, bearer(user))

    placed = Bet.objects.get()
    assert answer.status_code == 201
    assert answer.json()["balance"] == "40.25"
    body = answer.json()["bet"]
    assert datetime.fromisoformat(body.pop("placed_at")) == placed.placed_at
    assert body == {
        "id": str(placed.public_id),
        "market_id": game.pk,
        "outcome": "Yes",
        "amount": "60.25",
        "result": "PENDING",
        "payout": "0.00",
        "terms_version": 1,
        "taken_back_at": None,
        "provisional": False,
    }
    assert transfers(code="stake") == [(f"stake:{placed.pk}", f"wallet:{user.pk}", f"pool:{game.pk}", Decimal("60.25"))]
    user.refresh_from_db()
    assert user.balance == Decimal("40.25")


@pytest.mark.parametrize(
    ("typed", "amount"),
    [("100", "100.00"), ('"100"', "100.00"), ("99.5", "99.50"), ('"0.01"', "0.01"), ("1.00", "1.00"), ("007.10", None)],
)
def test_amount_may_be_a_number_or_text_with_two_decimals(
    db: None, api: Client, typed: str, amount: str | None
) -> None:
    game, user = market(), member(balance=100)
    answer = post(api, f"/api/markets/{game.pk}/bets/", f'{{"outcome": "Yes", "amount": {typed}}}', bearer(user))
    if amount is None:  # 007 is not a JSON number.
        assert_refused(answer, 400, "invalid")
    else:
        assert (answer.status_code, answer.json()["bet"]["amount"]) == (201, amount)


@pytest.mark.parametrize(
    "amount",
    [
        "-1",
        "0",
        "-0",
        "0.00",
        "0.001",
        "99.999",
        "1e3",
        "1e-3",
        "1e400",
        "NaN",
        "Infinity",
        '"NaN"',
        '"Infinity"',
        '"1e3"',
        '"1_000"',
        "1_000",
        '" 100 "',
        '"100\\n"',
        '"+5"',
        '"-5"',
        '"1,000"',
        '"٠١٠٠"',
        '"\\uff11\\uff10"',
        '"0x10"',
        '""',
        "true",
        "false",
        "null",
        "[]",
        "[5]",
        "{}",
        '{"amount": 5}',
        "100000000.01",
        "1000000000000",
        str(2**63),
        str(-(2**63)),
        "9" * 40,
    ],
)
def test_wrong_amount_is_refused_and_nothing_moves(db: None, api: Client, amount: str) -> None:
    game, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{game.pk}/bets/", f'{{"outcome": "Yes", "amount": {amount}}}', headers)
        assert_refused(answer, 400, "invalid")


@pytest.mark.parametrize("outcome", ['"yes"', '"Maybe"', '""', '" "', "1", "true", "null", "[]", '"' + "x" * 121 + '"'])
def test_unknown_outcome_is_refused_and_nothing_moves(db: None, api: Client, outcome: str) -> None:
    game, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{game.pk}/bets/", f'{{"outcome": {outcome}, "amount": 5}}', headers)
        assert answer.status_code == 400
        assert answer.json()["code"] in ("invalid", "unknown_outcome")


@pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES)
def test_unreadable_body_is_refused_and_nothing_moves(db: None, api: Client, body: bytes) -> None:
    game, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        assert_refused(post(api, f"/api/markets/{game.pk}/bets/", body, headers), 400, "invalid")


def test_unknown_field_is_refused_by_its_name(db: None, api: Client) -> None:
    game, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 5, "ammount": 50}, headers)
    assert_refused(answer, 400, "invalid")
    assert answer.json()["details"] == {"ammount": ["This call has no such field. Check the spelling."]}


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]
)
def test_body_that_is_not_json_answers_415(db: None, api: Client, content_type: str) -> None:
    game, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = api.post(f"/api/markets/{game.pk}/bets/", b"outcome=Yes&amount=5", content_type, headers=headers)
        assert_refused(answer, 415, "not_json")


def test_bet_without_a_valid_token_answers_401(db: None, api: Client) -> None:
    game = market()
    path = f"/api/markets/{game.pk}/bets/"
    body = {"outcome": "Yes", "amount": 5}
    with nothing_moved():
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic eDp5"},
        ):
            assert_refused(post(api, path, body, headers), 401, "not_authenticated")
            assert_refused(api.get(path, headers=headers), 401, "not_authenticated")
    assert post(api, path, body)["WWW-Authenticate"] == "Bearer"


def test_bet_larger_than_the_wallet_is_refused(db: None, api: Client) -> None:
    game, user = market(), member(balance="99.99")
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 100}, headers)
        assert_refused(answer, 409, "insufficient_funds")
    assert post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 99.99}, headers).status_code == 201


def test_bet_on_an_ended_or_settled_market_is_refused(db: None, api: Client) -> None:
    user = member(balance=100)
    headers = bearer(user)
    ended, settled = market(end_date="2020-01-01"), settled_market([(member(), "Yes", 1)])
    with nothing_moved():
        for game in (ended, settled):
            answer = post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers)
            assert_refused(answer, 409, "market_not_open")
        answer = post(api, "/api/markets/999999/bets/", {"outcome": "Yes", "amount": 5}, headers)
        assert_refused(answer, 404, "not_found")


def test_repeated_post_with_same_idempotency_key_places_one_bet(db: None, api: Client) -> None:
    # given
    game, user = market(), member(balance=100)
    path, headers = f"/api/markets/{game.pk}/bets/", {**bearer(user), "Idempotency-Key": "tap-1"}
    first = post(api, path, {"outcome": "Yes", "amount": 30}, headers)

    # when: the same bet is posted again, after the market closed and with the amount in another form
    Market.objects.update(status="CLOSED")
    with nothing_moved():
        again = post(api, path, {"outcome": "Yes", "amount": "30.00"}, headers)
        other = post(api, path, {"outcome": "No", "amount": 30}, headers)

    # then
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert_refused(other, 409, "idempotency_key_reused")


def test_two_members_may_use_the_same_idempotency_key(db: None, api: Client) -> None:
    game = market()
    for user in (member(balance=10), member(balance=10)):
        headers = {**bearer(user), "Idempotency-Key": "tap-1"}
        assert post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers).status_code == 201


def test_each_post_without_a_key_places_a_bet(db: None, api: Client) -> None:
    game, user = market(), member(balance=100)
    headers = bearer(user)
    for balance in ("95.00", "90.00"):
        answer = post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers)
        assert (answer.status_code, answer.json()["balance"]) == (201, balance)
    assert Bet.objects.count() == 2


@pytest.mark.parametrize("key", ["x" * 81, "tab\there", "\x7f"])
def test_idempotency_key_over_80_or_unprintable_is_refused(db: None, api: Client, key: str) -> None:
    game, user = market(), member(balance=100)
    headers = {**bearer(user), "Idempotency-Key": key}
    with nothing_moved():
        answer = post(api, f"/api/markets/{game.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers)
        assert_refused(answer, 400, "invalid")


def test_member_sees_only_their_own_bets(db: None, api: Client) -> None:
    game, other = market(), market()
    amina, brian = member(balance=100), member(balance=100)
    placed = [bet(game, amina, "Yes", 10), bet(game, amina, "No", "2.50")]
    bet(game, brian, "Yes", 50)
    bet(other, amina, "Yes", 7)

    answer = api.get(f"/api/markets/{game.pk}/bets/", headers=bearer(amina))

    assert [(listed["id"], listed["amount"]) for listed in answer.json()["bets"]] == [
        (str(placed[1].public_id), "2.50"),
        (str(placed[0].public_id), "10.00"),
    ]
    assert json.dumps(answer.json()).count("Yes") == 1
    assert_refused(api.get("/api/markets/999999/bets/", headers=bearer(amina)), 404, "not_found")


def test_scratched_outcome_is_marked_and_not_in_the_pool(db: None, api: Client) -> None:
    game = market(outcomes=("Home", "Away", "Draw"))
    orm_bet(game, member(), "Home", 10)
    orm_bet(game, member(), "Draw", 70)
    Outcome.objects.filter(market=game, name="Draw").update(scratched_at=AT)
    body = api.get(f"/api/markets/{game.pk}/").json()
    assert body["pool"] == "10.00"
    assert [(outcome["name"], outcome["scratched"]) for outcome in body["outcomes"]] == [
        ("Home", False),
        ("Away", False),
        ("Draw", True),
    ]
