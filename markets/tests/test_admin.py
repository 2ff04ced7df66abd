"""Tests of markets/admin.py: new markets get the typed outcomes; forms cannot change bets and settled columns."""

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
    ("typed", "stored"),
    [
        ((), ("Yes", "No")),
        (("Home", "Away", "Draw"), ("Home", "Away", "Draw")),
        (("Yes", "No"), ("Yes", "No")),
    ],
)
def test_market_from_the_form_gets_the_typed_outcomes(
    console: Client, typed: tuple[str, ...], stored: tuple[str, ...]
) -> None:
    answer = console.post("/admin/markets/market/add/", NEW | outcomes_form(*typed))
    assert answer.status_code == 302
    assert Market.objects.get().outcome_names == stored


@pytest.mark.parametrize("page", ["", "add/", "?status__exact=OPEN", "?q=rain"])
def test_pages_of_markets_open(console: Client, page: str) -> None:
    settled_market([(member(), "Yes", 100), (member(), "No", 100)])
    assert console.get(f"/admin/markets/market/{page}").status_code == 200


def test_bet_can_be_read_but_not_changed(console: Client) -> None:
    placed = bet(market(), member(balance=100))
    page = f"/admin/markets/bet/{placed.pk}"
    with nothing_moved():
        assert console.get("/admin/markets/bet/?q=2547").status_code == 200
        assert console.get(f"{page}/change/").status_code == 200
        assert console.get("/admin/markets/bet/add/").status_code == 403
        assert console.post(f"{page}/change/", {"amount": "1"}).status_code == 403
        assert console.post(f"{page}/delete/", {"post": "yes"}).status_code == 403


def test_form_changes_only_the_description_of_a_market(console: Client) -> None:
    rain = market(question="Will it rain?")
    page = f"/admin/markets/market/{rain.pk}"
    with nothing_moved():
        assert console.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
        form = NEW | {
            "description": "In Nairobi.",
            "platform_fee_pct": "50",
            "status": "SETTLED",
            "resolved_outcome": "Yes",
        }
        answer = console.post(f"{page}/change/", form | outcomes_form())
    rain.refresh_from_db()
    assert answer.status_code == 302
    assert (rain.question, rain.description, rain.platform_fee_pct) == ("Will it rain?", "In Nairobi.", 5)
    assert (rain.status, rain.resolved_outcome) == ("OPEN", None)
