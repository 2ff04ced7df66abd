"""The console: a market is made there with the outcomes that were typed, and decided after a question."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from markets.models import Market
from payments.models import Settlement
from payments.tests.builders import bet, market, member, nothing_moved, operator, orm_bet, settled_market

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


# --- deciding --------------------------------------------------------------------------------------------------------


def decide(console: Client, *chosen: Market, **form: str) -> Any:
    """Send the list's action; with `decision` and `sure` it is the answer to the question that the action asks."""
    ids = [str(one.pk) for one in chosen]
    return console.post("/admin/markets/market/", {"action": "decide", "_selected_action": ids, **form}, follow=True)


def test_the_action_asks_before_it_decides(console: Client) -> None:
    made = market(outcomes=("Home", "<b>Away</b>"))
    orm_bet(made, member(), "Home", "10.50")
    with nothing_moved():
        for form in ({}, {"decision": "win:Home"}, {"sure": "on"}):
            page = decide(console, made, **form).content.decode()
            assert 'value="win:Home"' in page and 'value="void:postponed"' in page
            assert "KES 10.50" in page and "<b>Away</b>" not in page and "&lt;b&gt;Away" in page


def test_a_market_is_resolved_in_the_console(console: Client, queued: Any) -> None:
    made = market(outcomes=("2:1", "1:2"))
    orm_bet(made, member(), "2:1", 100)

    page = decide(console, made, decision="win:2:1", sure="on")

    run = Settlement.objects.get()
    made.refresh_from_db()
    assert f"Market {made.pk} is decided." in page.content.decode()
    assert (made.status, made.resolved_outcome, run.rule) == ("RESOLVED", "2:1", "WINNER")
    assert run.resolved_by is not None and run.resolved_by.is_staff
    assert queued() == [("payments.settlement_tasks.settle_market", str(run.public_id), [made.pk])]


def test_a_market_is_voided_in_the_console(console: Client) -> None:
    made = market()
    decide(console, made, decision="void:postponed", sure="on")
    assert Settlement.objects.values_list("rule", "reason", "market").get() == ("VOID", "postponed", made.pk)


@pytest.mark.parametrize("decision", ["win:Maybe", "win:", "void:because", "void:", "nonsense", "win"])
def test_a_decision_that_means_nothing_decides_nothing(console: Client, queued: Any, decision: str) -> None:
    made = market()
    with nothing_moved():
        page = decide(console, made, decision=decision, sure="on")
    assert page.status_code == 200 and "Nothing was decided." in page.content.decode()
    assert queued() == []


def test_markets_are_decided_one_by_one_and_once(console: Client) -> None:
    first, second = market(), market()
    with nothing_moved():
        page = decide(console, first, second, decision="win:Yes", sure="on")
        assert "Choose one market" in page.content.decode()
    decide(console, first, decision="win:Yes", sure="on")
    with nothing_moved():
        page = decide(console, first, decision="win:No", sure="on")
        assert "its outcome has been declared. Nothing was decided." in page.content.decode()


def test_staff_who_may_only_look_decide_nothing(db: None) -> None:
    made, looker = market(), operator()
    looker.user_permissions.add(Permission.objects.get(codename="view_market"))
    client = Client(raise_request_exception=False)
    client.force_login(looker)
    with nothing_moved():
        assert decide(client, made, decision="win:Yes", sure="on").status_code in (200, 403)
