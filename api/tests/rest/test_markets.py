"""Markets over REST: anyone reads them, a member bets from the wallet, and nothing odd moves money."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.test import Client

from markets.models import Bet, Market
from testing.builders import bearer, bet, market, member, nothing_moved, orm_bet, settled_market, transfers
from testing.rest import UNREADABLE_BODIES, assert_refused, post


@pytest.fixture
def api() -> Client:
    """A caller that sees a 500 as an answer, as the world does, rather than as the exception behind it."""
    return Client(raise_request_exception=False)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_market_is_read_with_its_pool_by_anyone(db: None, api: Client) -> None:
    made = market(outcomes=("Home", "Away", "Draw"), question="Who wins?", end_date="2026-02-17", category="Football")
    orm_bet(made, member(), "Home", "10.50")
    orm_bet(made, member(), "Home", "1")
    orm_bet(made, member(), "Draw", "2000")

    answer = api.get(f"/api/markets/{made.pk}/")

    assert answer.status_code == 200
    body = answer.json()
    assert datetime.fromisoformat(body.pop("end_date")) == datetime(2026, 2, 17, 20, 59, 59, 999999, tzinfo=UTC)
    assert body == {
        "id": made.pk,
        "question": "Who wins?",
        "description": "",
        "category": "Football",
        "status": "OPEN",
        "platform_fee_pct": "5.00",
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


def test_a_settled_market_says_what_won(db: None, api: Client) -> None:
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    body = api.get(f"/api/markets/{made.pk}/").json()
    assert (body["status"], body["resolved_outcome"], body["pool"]) == ("SETTLED", "Yes", "300.00")
    assert body["settled_at"] == "2026-02-16T07:30:00Z"


def test_markets_are_listed_newest_first_a_hundred_at_a_time(db: None, api: Client) -> None:
    Market.objects.bulk_create(Market(question=f"{number}?", end_date="2026-02-17") for number in range(103))
    ids = sorted(Market.objects.values_list("pk", flat=True), reverse=True)

    first = [found["id"] for found in api.get("/api/markets/").json()["markets"]]
    rest = [found["id"] for found in api.get(f"/api/markets/?before={first[-1]}").json()["markets"]]

    assert first + rest == ids
    assert len(first) == 100


def test_markets_are_listed_by_status(db: None, api: Client) -> None:
    settled = settled_market([(member(), "Yes", 1)])
    opened = market()
    assert [found["id"] for found in api.get("/api/markets/?status=OPEN").json()["markets"]] == [opened.pk]
    assert [found["id"] for found in api.get("/api/markets/?status=SETTLED").json()["markets"]] == [settled.pk]
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
def test_a_query_that_means_nothing_is_refused(db: None, api: Client, query: str) -> None:
    assert_refused(api.get(f"/api/markets/?{query}"), 400, "invalid")


@pytest.mark.parametrize("market_id", ["0", "999999", str(2**63), "9" * 30])
def test_a_market_that_is_not_there_is_404(db: None, api: Client, market_id: str) -> None:
    assert_refused(api.get(f"/api/markets/{market_id}/"), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/api/markets/one/", "/api/markets/-1/", "/api/markets", "/api/market/", "/nothing", "/api/markets/%00/"]
)
def test_what_is_no_address_is_404_in_the_same_envelope(db: None, api: Client, path: str) -> None:
    assert_refused(api.get(path), 404, "not_found")


def test_a_method_that_a_route_does_not_know_is_405(db: None, api: Client) -> None:
    made = market()
    headers = bearer(member())
    assert_refused(post(api, f"/api/markets/{made.pk}/", {}, headers), 405, "method_not_allowed")
    assert_refused(api.delete(f"/api/markets/{made.pk}/bets/", headers=headers), 405, "method_not_allowed")


# --- betting ---------------------------------------------------------------------------------------------------------


def test_a_bet_is_placed_from_the_wallet(db: None, api: Client) -> None:
    made, user = market(), member(balance="100.50")

    answer = post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": "60.25"}, bearer(user))

    placed = Bet.objects.get()
    assert answer.status_code == 201
    assert answer.json()["balance"] == "40.25"
    body = answer.json()["bet"]
    assert datetime.fromisoformat(body.pop("placed_at")) == placed.placed_at
    assert body == {
        "id": str(placed.public_id),
        "market_id": made.pk,
        "outcome": "Yes",
        "amount": "60.25",
        "result": "PENDING",
        "payout": "0.00",
        "provisional": False,
    }
    assert transfers(code="stake") == [(f"stake:{placed.pk}", f"wallet:{user.pk}", f"pool:{made.pk}", Decimal("60.25"))]
    user.refresh_from_db()
    assert user.balance == Decimal("40.25")


@pytest.mark.parametrize(
    ("typed", "amount"),
    [("100", "100.00"), ('"100"', "100.00"), ("99.5", "99.50"), ('"0.01"', "0.01"), ("1.00", "1.00"), ("007.10", None)],
)
def test_an_amount_is_a_number_or_a_text_with_two_decimals(
    db: None, api: Client, typed: str, amount: str | None
) -> None:
    made, user = market(), member(balance=100)
    answer = post(api, f"/api/markets/{made.pk}/bets/", f'{{"outcome": "Yes", "amount": {typed}}}', bearer(user))
    if amount is None:  # 007 is no JSON number.
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
def test_a_bad_amount_is_refused_and_nothing_moves(db: None, api: Client, amount: str) -> None:
    made, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{made.pk}/bets/", f'{{"outcome": "Yes", "amount": {amount}}}', headers)
        assert_refused(answer, 400, "invalid")


@pytest.mark.parametrize("outcome", ['"yes"', '"Maybe"', '""', '" "', "1", "true", "null", "[]", '"' + "x" * 121 + '"'])
def test_an_outcome_the_market_has_not_is_refused_and_nothing_moves(db: None, api: Client, outcome: str) -> None:
    made, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{made.pk}/bets/", f'{{"outcome": {outcome}, "amount": 5}}', headers)
        assert answer.status_code == 400
        assert answer.json()["code"] in ("invalid", "unknown_outcome")


@pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES)
def test_a_body_that_cannot_be_read_is_refused_and_nothing_moves(db: None, api: Client, body: bytes) -> None:
    made, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        assert_refused(post(api, f"/api/markets/{made.pk}/bets/", body, headers), 400, "invalid")


def test_a_field_that_is_not_known_is_refused_by_name(db: None, api: Client) -> None:
    made, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 5, "ammount": 50}, headers)
    assert_refused(answer, 400, "invalid")
    assert answer.json()["details"] == {"ammount": ["This field is not known here."]}


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]
)
def test_a_body_that_is_not_json_is_415(db: None, api: Client, content_type: str) -> None:
    made, user = market(), member(balance=1_000)
    headers = bearer(user)
    with nothing_moved():
        answer = api.post(f"/api/markets/{made.pk}/bets/", b"outcome=Yes&amount=5", content_type, headers=headers)
        assert_refused(answer, 415, "not_json")


def test_nobody_bets_without_a_token(db: None, api: Client) -> None:
    made = market()
    path = f"/api/markets/{made.pk}/bets/"
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


def test_more_than_the_wallet_holds_is_refused(db: None, api: Client) -> None:
    made, user = market(), member(balance="99.99")
    headers = bearer(user)
    with nothing_moved():
        answer = post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 100}, headers)
        assert_refused(answer, 409, "insufficient_funds")
    assert post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 99.99}, headers).status_code == 201


def test_a_market_that_is_over_takes_no_bet(db: None, api: Client) -> None:
    user = member(balance=100)
    headers = bearer(user)
    ended, settled = market(end_date="2020-01-01"), settled_market([(member(), "Yes", 1)])
    with nothing_moved():
        for made in (ended, settled):
            answer = post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers)
            assert_refused(answer, 409, "market_not_open")
        answer = post(api, "/api/markets/999999/bets/", {"outcome": "Yes", "amount": 5}, headers)
        assert_refused(answer, 404, "not_found")


def test_an_idempotency_key_places_one_bet(db: None, api: Client) -> None:
    # given
    made, user = market(), member(balance=100)
    path, headers = f"/api/markets/{made.pk}/bets/", {**bearer(user), "Idempotency-Key": "tap-1"}
    first = post(api, path, {"outcome": "Yes", "amount": 30}, headers)

    # when: the same again, with the market closed meanwhile and the amount written otherwise
    Market.objects.update(status="CLOSED")
    with nothing_moved():
        again = post(api, path, {"outcome": "Yes", "amount": "30.00"}, headers)
        other = post(api, path, {"outcome": "No", "amount": 30}, headers)

    # then
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert_refused(other, 409, "idempotency_key_reused")


def test_two_members_may_use_the_same_idempotency_key(db: None, api: Client) -> None:
    made = market()
    for user in (member(balance=10), member(balance=10)):
        headers = {**bearer(user), "Idempotency-Key": "tap-1"}
        assert post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers).status_code == 201


def test_without_a_key_each_post_is_a_bet(db: None, api: Client) -> None:
    made, user = market(), member(balance=100)
    headers = bearer(user)
    for balance in ("95.00", "90.00"):
        answer = post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers)
        assert (answer.status_code, answer.json()["balance"]) == (201, balance)
    assert Bet.objects.count() == 2


@pytest.mark.parametrize("key", ["x" * 81, "tab\there", "\x7f"])
def test_an_idempotency_key_is_at_most_80_printable_characters(db: None, api: Client, key: str) -> None:
    made, user = market(), member(balance=100)
    headers = {**bearer(user), "Idempotency-Key": key}
    with nothing_moved():
        answer = post(api, f"/api/markets/{made.pk}/bets/", {"outcome": "Yes", "amount": 5}, headers)
        assert_refused(answer, 400, "invalid")


def test_a_member_sees_their_own_bets_only(db: None, api: Client) -> None:
    made, other = market(), market()
    mine, theirs = member(balance=100), member(balance=100)
    placed = [bet(made, mine, "Yes", 10), bet(made, mine, "No", "2.50")]
    bet(made, theirs, "Yes", 50)
    bet(other, mine, "Yes", 7)

    answer = api.get(f"/api/markets/{made.pk}/bets/", headers=bearer(mine))

    assert [(found["id"], found["amount"]) for found in answer.json()["bets"]] == [
        (str(placed[1].public_id), "2.50"),
        (str(placed[0].public_id), "10.00"),
    ]
    assert json.dumps(answer.json()).count("Yes") == 1
    assert_refused(api.get("/api/markets/999999/bets/", headers=bearer(mine)), 404, "not_found")
