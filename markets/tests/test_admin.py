"""The admin: a market is made there with the outcomes that were typed; what members bet on stays as they saw it."""

import pytest
from django.test import Client

from markets.models import Market
from testing.builders import bet, market, member, nothing_moved, operator, settled_market

NEW = {"question": "Who wins?", "platform_fee_pct": "5.00", "end_date_0": "2026-12-01", "end_date_1": "18:00:00"}


@pytest.fixture
def console(db: None) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(operator(is_superuser=True))
    return client


def outcomes_form(*names: str) -> dict[str, str]:
    form = {"outcomes-TOTAL_FORMS": str(len(names)), "outcomes-INITIAL_FORMS": "0"}
    return form | {f"outcomes-{place}-name": name for place, name in enumerate(names)}


@pytest.mark.parametrize(
    ("typed", "made"),
    [
        ((), ("Yes", "No")),
        (("Home", "Away", "Draw"), ("Home", "Away", "Draw")),
        (("Yes", "No"), ("Yes", "No")),
    ],
)
def test_a_market_made_in_the_console_has_the_outcomes_that_were_typed(
    console: Client, typed: tuple[str, ...], made: tuple[str, ...]
) -> None:
    answer = console.post("/admin/markets/market/add/", NEW | outcomes_form(*typed))
    assert answer.status_code == 302
    assert Market.objects.get().outcome_names == made


@pytest.mark.parametrize("page", ["", "add/", "?status__exact=OPEN", "?q=rain"])
def test_the_pages_of_markets_open(console: Client, page: str) -> None:
    settled_market([(member(), "Yes", 100), (member(), "No", 100)])
    assert console.get(f"/admin/markets/market/{page}").status_code == 200


def test_a_bet_is_read_in_the_console_and_not_touched(console: Client) -> None:
    placed = bet(market(), member(balance=100))
    page = f"/admin/markets/bet/{placed.pk}"
    with nothing_moved():
        assert console.get("/admin/markets/bet/?q=2547").status_code == 200
        assert console.get(f"{page}/change/").status_code == 200
        assert console.get("/admin/markets/bet/add/").status_code == 403
        assert console.post(f"{page}/change/", {"amount": "1"}).status_code == 403
        assert console.post(f"{page}/delete/", {"post": "yes"}).status_code == 403


def test_what_members_bet_on_and_what_settlement_writes_is_not_typed_in_the_console(console: Client) -> None:
    made = market(question="Will it rain?")
    page = f"/admin/markets/market/{made.pk}"
    with nothing_moved():
        assert console.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
        form = NEW | {
            "description": "In Nairobi.",
            "platform_fee_pct": "50",
            "status": "SETTLED",
            "resolved_outcome": "Yes",
        }
        answer = console.post(f"{page}/change/", form | outcomes_form())
    made.refresh_from_db()
    assert answer.status_code == 302
    assert (made.question, made.description, made.platform_fee_pct) == ("Will it rain?", "In Nairobi.", 5)
    assert (made.status, made.resolved_outcome) == ("OPEN", None)
