"""Tests of the resolution pages: preview, several winners, void, and figures that a worker computes."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.test import Client
from django.utils import timezone

from markets.models import NAIROBI, Market
from payments import monitoring_tasks
from payments.models import Settlement
from payments.payouts import float_balance
from payments.settlement import preview_cache
from testing import builders, console_scenes
from testing.console_scenes import client_of, hidden_value, market_of_two, page_text, step_two_form, submit
from users.models import AuditEntry


def test_market_is_resolved_as_previewed(console: Client, queued: Any) -> None:
    # given
    market = market_of_two()
    float_balance.note(Decimal(100), at=timezone.now())

    # when, then: opening the pages and typing the wrong word decide nothing
    with builders.nothing_moved():
        page = page_text(console.get(f"/admin/markets/{market.pk}/resolve/"))
        assert page.count(" wins…") == 2
        assert "Void…" in page
        assert "KES 285.00" in page
        assert "KES 15.00" in page
        assert "2.8500" in page
        assert "short" in page
        form = step_two_form(console, market)
        assert "the winner" not in submit(
            console, f"/admin/markets/{market.pk}/resolve/decide/", **form | {"typed": "yes"}
        )

    # when
    page = submit(
        console, f"/admin/markets/{market.pk}/resolve/decide/", **form, evidence_url="https://meteo.go.ke/rain"
    )

    # then
    settlement = Settlement.objects.get()
    assert f"Market {market.pk} is decided." in page
    assert (settlement.rule, settlement.evidence_url, settlement.evidence_note) == (
        "WINNER",
        "https://meteo.go.ke/rain",
        "Kenya Met.",
    )
    assert queued() == [("payments.settlement_tasks.settle_market", str(settlement.public_id), [market.pk])]
    assert AuditEntry.objects.filter(action="market.resolve", actor__full_name="Grace Wambui").count() == 1
    assert console.get(f"/admin/markets/{market.pk}/resolve/").status_code == 404


def test_decision_on_changed_figures_is_refused(console: Client) -> None:
    market = market_of_two()
    form = step_two_form(console, market)
    builders.bet(market, builders.member(balance=50), "No", 50)
    with builders.nothing_moved():
        page = submit(console, f"/admin/markets/{market.pk}/resolve/decide/", **form)
    assert "The numbers have moved since that preview. Nothing was decided." in page
    assert "No money was moved" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evidence_url": "javascript:alert(1)"}, "must begin with https"),
        ({"evidence_note": ""}, "Official result in words: please fill this in"),
        ({"ended": "soon"}, "That is not a date and time"),
        ({"ended": "2099-01-01T10:00"}, "must not lie in the future"),
        ({"hash": "0" * 64}, "The numbers have moved"),
        ({"typed": "No"}, "Type “Yes” exactly"),
        ({"proof": "0000"}, "That is not your PIN"),
    ],
)
def test_missing_or_invalid_answer_decides_nothing(console: Client, change: dict[str, str], words: str) -> None:
    market = market_of_two()
    form = step_two_form(console, market)
    with builders.nothing_moved():
        assert words in submit(console, f"/admin/markets/{market.pk}/resolve/decide/", **form | change)


@pytest.mark.parametrize("decision", ["", "win:", "win:Maybe", "maybe:Yes"])
def test_unknown_decision_leads_back_to_step_one(console: Client, decision: str) -> None:
    market = market_of_two()
    answer = console.get(f"/admin/markets/{market.pk}/resolve/decide/", {"decision": decision})
    assert answer.headers["Location"] == f"/admin/markets/{market.pk}/resolve/"


def test_late_bets_are_previewed_and_refunded(console: Client) -> None:
    market = market_of_two()
    Market.objects.filter(pk=market.pk).update(end_date=timezone.now() - timedelta(hours=1))
    ended = (builders.AT - timedelta(minutes=1)).astimezone(NAIROBI).strftime("%Y-%m-%dT%H:%M")
    form = step_two_form(console, market, ended=ended)
    page = page_text(
        console.get(f"/admin/markets/{market.pk}/resolve/decide/", {"decision": "win:Yes", "ended": ended})
    )
    assert "2 of them late" in page
    assert "KES 300.00 refunded" in page
    submit(console, f"/admin/markets/{market.pk}/resolve/decide/", **form)
    assert Settlement.objects.get().effective_close_at == datetime.fromisoformat(ended).replace(tzinfo=NAIROBI)


def test_market_is_voided_with_a_reason(console: Client) -> None:
    market = market_of_two()
    form = step_two_form(console, market, "void:")
    with builders.nothing_moved():
        assert "Void because: please fill this in" in submit(
            console, f"/admin/markets/{market.pk}/resolve/decide/", **form
        )
    submit(console, f"/admin/markets/{market.pk}/resolve/decide/", **form | {"reason": "postponed"})
    assert Settlement.objects.values_list("rule", "reason").get() == ("VOID", "postponed")


def market_of_three() -> Market:
    market = builders.market(["A", "B", "C"], fee_pct=0)
    for outcome, amount in (("A", 100), ("B", 300), ("C", 200)):
        builders.orm_bet(market, builders.member(), outcome, amount)
    return market


@pytest.mark.parametrize(
    ("kind", "rule", "dividends"),
    [("joint", "JOINT", {"A": 200, "B": 400}), ("split", "SPLIT", {"A": 300, "B": 300})],
)
def test_market_is_resolved_with_weights_of_several_winners(
    console: Client, kind: str, rule: str, dividends: dict[str, int]
) -> None:
    # given
    market = market_of_three()
    assert "Joint winners or a split…" in page_text(console.get(f"/admin/markets/{market.pk}/resolve/"))
    asked = {"kind": kind, "weight_0": "50", "weight_1": "50", "weight_2": ""}

    # when
    with builders.nothing_moved():
        answer = console.get(f"/admin/markets/{market.pk}/resolve/share/", asked, follow=True)
        page = page_text(answer)
    assert "Step 2 of 3" in page
    assert "A 50 %, B 50 %" in page
    form = {"hash": hidden_value(page, "hash"), "evidence_note": "A tie."}
    form["decision"] = parse_qs(answer.request["QUERY_STRING"])["decision"][0]
    done = submit(console, f"/admin/markets/{market.pk}/resolve/decide/", **form, typed=kind)

    # then
    assert f"Market {market.pk} is decided." in done
    settlement = Settlement.objects.get()
    assert (settlement.rule, settlement.weights) == (rule, {"A": "50", "B": "50"})
    builders.settle(market, at=timezone.now())
    assert dict(market.bets.filter(result="WON").values_list("outcome", "payout")) == dividends


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (("60", "50", ""), "sum to 100"),
        (("100", "", ""), "at least two outcomes"),
        (("50", "-50", "100"), "A weight is a percentage"),
        (("fifty", "50", ""), "A weight is a percentage"),
        (("0", "100", ""), "positive numbers"),
    ],
)
def test_invalid_weights_are_refused(console: Client, weights: tuple[str, ...], words: str) -> None:
    market = market_of_three()
    asked = {"kind": "joint"} | {f"weight_{place}": weight for place, weight in enumerate(weights)}
    answer = console.get(f"/admin/markets/{market.pk}/resolve/share/", asked)
    assert answer.status_code == 200
    assert words in page_text(answer)


@pytest.mark.parametrize(
    "decision", ["joint:", "joint:{}", "split:[1]", 'joint:{"A": 50}', "joint:" + "[" * 30_000, 'split:{"X": 100}']
)
def test_unknown_weights_lead_back_to_step_one(console: Client, decision: str) -> None:
    market = market_of_three()
    answer = console.post(f"/admin/markets/{market.pk}/resolve/decide/", {"decision": decision})
    assert answer.headers["Location"] == f"/admin/markets/{market.pk}/resolve/"


@pytest.fixture
def by_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker compute every preview, as for a market with very many bets."""
    monkeypatch.setattr(preview_cache, "BETS_COMPUTED_IN_REQUEST", 0)


def run_worker(queued: Any) -> int:
    """Compute the previews that the page has requested from a worker. Return their number."""
    asked = [arguments for name, _, arguments in queued() if name == "payments.overview_tasks.look"]
    for arguments in asked:
        monitoring_tasks.compute_preview(*arguments)
    return len(asked)


def test_worker_computes_the_figures_of_many_bets(console: Client, by_a_worker: None, queued: Any) -> None:
    # given
    market = market_of_two()
    choose = f"/admin/markets/{market.pk}/resolve/"
    decide = f"{choose}decide/"
    page = page_text(console.get(choose))
    assert page.count("being computed") == 3
    assert "A worker is reading all bets" in page
    assert "data-again" in page
    assert "The figures are being computed" in page_text(console.get(decide, {"decision": "win:Yes"}))
    console.get(choose)

    # when: the page has been opened twice, but has requested each of the three previews once
    assert run_worker(queued) == 3

    # then
    page = page_text(console.get(choose))
    assert "being computed" not in page
    assert "No bet has arrived since" in page
    assert "data-again" not in page
    assert "KES 285.00" in page
    form = step_two_form(console, market)

    # when: a bet arrives
    builders.bet(market, builders.member(balance=50), "No", 50)
    page = page_text(console.get(choose))
    assert "New bets arrived after these figures were computed" in page
    assert "data-again" in page
    assert "A decision on these figures is refused" in page_text(console.get(decide, {"decision": "win:Yes"}))
    with builders.nothing_moved():
        assert "The numbers have moved" in submit(console, decide, **form)

    # then: the refused POST has computed new figures, so the next form is accepted
    form = step_two_form(console, market)
    assert f"Market {market.pk} is decided." in submit(console, decide, **form)


def test_kept_preview_shows_the_latest_float(console: Client) -> None:
    market = market_of_two()
    path = f"/admin/markets/{market.pk}/resolve/decide/"
    assert "the float is not known yet" in page_text(console.get(path, {"decision": "win:Yes"}))
    float_balance.note(Decimal(12), at=timezone.now())
    assert "KES 12.00 available" in page_text(console.get(path, {"decision": "win:Yes"}))


def test_person_with_a_bet_in_the_market_is_refused(db: None) -> None:
    market, person = market_of_two(), console_scenes.staff("operator", balance=10)
    builders.bet(market, person, "Yes", 10)
    client = client_of(person)
    assert "You have a bet in this market" in page_text(client.get(f"/admin/markets/{market.pk}/resolve/"))
    form = step_two_form(client, market)
    with builders.nothing_moved():
        assert "No money was moved" in submit(client, f"/admin/markets/{market.pk}/resolve/decide/", **form)
