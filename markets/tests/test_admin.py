"""Tests of markets/admin.py: markets, their terms and bets can be read in Records, but not written."""

import pytest
from django.test import Client

from testing.builders import bet, changed_terms, market, member, nothing_moved, operator, settled_market

NEW = {"question": "Who wins?", "platform_fee_pct": "5.00", "end_date_0": "2026-12-01", "end_date_1": "18:00:00"}


@pytest.fixture
def console(db: None) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(operator(is_superuser=True))
    return client


@pytest.mark.parametrize("page", ["market/", "market/?status__exact=OPEN", "market/?q=rain", "terms/"])
def test_pages_of_records_open(console: Client, page: str) -> None:
    settled_market([(member(), "Yes", 100), (member(), "No", 100)])
    changed_terms(market(), question="Will it snow?")
    assert console.get(f"/admin/markets/{page}").status_code == 200


@pytest.mark.parametrize("kind", ["market", "terms", "bet"])
def test_record_can_be_read_but_not_written(console: Client, kind: str) -> None:
    """Before, an operator's form changed the close of a market without a trace."""
    placed = bet(market(), member(balance=100))
    changed = changed_terms(market(), question="Will it snow?")
    row = {"market": placed.market_id, "terms": changed.terms.order_by("-pk")[0].pk, "bet": placed.pk}[kind]
    page = f"/admin/markets/{kind}"
    with nothing_moved():
        assert console.get(f"{page}/{row}/change/").status_code == 200
        assert console.get(f"{page}/add/").status_code == 403
        assert console.post(f"{page}/add/", NEW).status_code == 403
        assert console.post(f"{page}/{row}/change/", NEW).status_code == 403
        assert console.post(f"{page}/{row}/delete/", {"post": "yes"}).status_code == 403
