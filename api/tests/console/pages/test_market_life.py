"""Tests of the pages that create and change markets, and that suspend, resume and close them."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from markets.models import Market
from testing import builders, console_scenes
from testing.builders import bet, market, member, nothing_moved
from testing.console_scenes import client_of, page_text, submit
from users.models import AuditEntry, Proposal

NEW = {
    "question": "Who wins the derby?",
    "outcomes": "Gor Mahia\r\nAFC Leopards\r\n\r\nDraw",
    "end_date": "2099-12-01T18:00",
    "platform_fee_pct": "4.5",
    "source": "fkf.co.ke",
    "description": "Ninety minutes.",
    "category": "Football",
}


def changed_form(of: Market, **changes: str) -> dict[str, str]:
    of.refresh_from_db()
    form = {
        "question": of.question,
        "outcomes": "\n".join(of.outcome_names),
        "end_date": "2099-12-31T23:59",
        "platform_fee_pct": f"{of.platform_fee_pct}",
        "source": of.source,
        "description": of.description,
        "reason": "A typing error.",
        "terms_version": str(of.terms_version),
    }
    return form | changes


def test_form_begins_with_yes_and_no_and_the_fee_of_the_setting(console: Client) -> None:
    page = page_text(console.get("/admin/markets/create/"))
    assert ">Yes\nNo</textarea>" in page
    assert 'value="5.00"' in page
    assert "Close (Nairobi time)" in page


def test_created_market_opens_on_its_page(console: Client) -> None:
    answer = console.post("/admin/markets/create/", NEW)
    made = Market.objects.get()
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/admin/markets/{made.pk}/")
    assert made.outcome_names == ("Gor Mahia", "AFC Leopards", "Draw")
    assert made.end_date == datetime(2099, 12, 1, 15, tzinfo=UTC)
    assert (made.platform_fee_pct, made.source, made.category) == (Decimal("4.5"), "fkf.co.ke", "Football")
    assert AuditEntry.objects.order_by("-number")[0].action == "market.create"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"outcomes": "Yes\nYеs"}, "Use Latin letters"),
        ({"outcomes": "Yes\nYES"}, "look alike"),
        ({"question": "Who\u200b wins?"}, "a character that nobody sees"),
        ({"end_date": "2020-12-01T18:00"}, "The close must lie in the future."),
        ({"end_date": "soon"}, "That is not a date and time."),
        ({"platform_fee_pct": "five"}, "Type a percentage such as 5 or 4.50."),
        ({"platform_fee_pct": "101"}, "A percentage from 0 to 100"),
    ],
)
def test_wrong_field_has_its_problem_beside_it(console: Client, changes: dict[str, str], problem: str) -> None:
    answer = console.post("/admin/markets/create/", NEW | changes)
    page = page_text(answer)
    (field,) = changes
    assert answer.status_code == 409
    assert problem in page.partition(f'id="problem_{field}">')[2].partition("</span>")[0]
    assert "Please correct the marked fields." in page
    assert "Gor Mahia" in page or "outcomes" in changes  # The form keeps its answers.
    assert Market.objects.count() == 0


def test_terms_without_bets_are_changed_and_their_versions_shown(console: Client) -> None:
    rain = market()
    page = submit(console, f"/admin/markets/{rain.pk}/change/", **changed_form(rain, question="Will it snow?"))
    assert "Version 2 of the terms is in force." in page
    assert "Versions of the terms" in page
    assert "<s>Will it rain tomorrow?</s>" in page
    rain.refresh_from_db()
    assert (rain.question, rain.end_date) == ("Will it snow?", builders.FAR)


def test_change_of_terms_that_moved_meanwhile_is_refused(console: Client) -> None:
    rain = market()
    form = changed_form(rain, question="Will it snow?")
    builders.changed_terms(rain, source="meteo.go.ke")
    page = submit(console, f"/admin/markets/{rain.pk}/change/", **form)
    assert "have changed since you opened the page" in page
    rain.refresh_from_db()
    assert rain.question == "Will it rain tomorrow?"


def test_change_of_a_market_with_bets_is_approved_on_its_page(console: Client) -> None:
    # given
    rain = market()
    bet(rain, member(100), at=timezone.now())
    form = {name: value for name, value in changed_form(rain, platform_fee_pct="4").items() if name != "outcomes"}

    # when
    page = submit(console, f"/admin/markets/{rain.pk}/change/", **form)

    # then
    assert "waits for another person" in page
    made = Proposal.objects.get()
    approver = client_of(console_scenes.staff("approver"))
    shown = page_text(approver.get(f"/admin/proposals/{made.pk}/"))
    assert "Platform fee: 5.00 % → 4.00 %" in shown
    after = submit(approver, f"/admin/proposals/{made.pk}/", hash=made.hash, typed="approve")
    rain.refresh_from_db()
    assert "Version 2 of the terms is in force" in after
    assert (rain.terms_version, rain.platform_fee_pct) == (2, Decimal(4))


def test_form_for_a_market_with_bets_leaves_out_its_outcomes(console: Client) -> None:
    rain = market()
    bet(rain, member(100), at=timezone.now())
    page = page_text(console.get(f"/admin/markets/{rain.pk}/change/"))
    assert 'name="outcomes"' not in page
    assert "another person must approve" in page


def test_buttons_follow_the_state_of_the_market(console: Client) -> None:
    rain = market()
    path = f"/admin/markets/{rain.pk}/"

    def buttons() -> set[str]:
        page = page_text(console.get(path))
        words = ("Change the terms", "Suspend betting", "Resume betting", "Close now", "Suspend sending")
        return {word for word in words if f"{word}…" in page}

    def act(name: str) -> str:
        return submit(console, f"{path}{name}/", reason="News.")

    assert buttons() == {"Change the terms", "Suspend betting", "Close now"}
    assert "Betting is suspended since" in act("suspend-betting")
    assert buttons() == {"Change the terms", "Resume betting", "Close now"}
    act("resume-betting")
    assert "closed and waits for its outcome" in act("close")
    assert buttons() == set()
    assert "Closed for good" in page_text(console.get(path))


def test_notice_is_on_the_page_and_stops_other_acts(console: Client) -> None:
    rain = market()
    placed = bet(rain, member(100), at=timezone.now())
    builders.changed_terms(rain, at=timezone.now(), platform_fee_pct=Decimal(4))
    page = page_text(console.get(f"/admin/markets/{rain.pk}/"))
    assert "members may take back the stakes" in page
    assert "Close now…" not in page
    with nothing_moved():
        refused = submit(console, f"/admin/markets/{rain.pk}/close/", reason="News.")
    assert "may only be voided" in refused
    assert placed.terms_version == 1


def test_sending_of_the_market_is_suspended_and_resumed(console: Client) -> None:
    payout = builders.payout(285, at=timezone.now())
    path = f"/admin/markets/{payout.settlement.market_id}/"  # type: ignore[union-attr]
    page = submit(console, f"{path}suspend-sending/", reason="Check.")
    assert "a person, who suspended the sending of its market" in page
    assert "Resume sending…" in page
    assert "are sent again" in submit(console, f"{path}resume-sending/", reason="Good.")


def test_market_that_does_not_exist_is_not_found(console: Client) -> None:
    answers: list[Any] = [console.get(f"/admin/markets/{pk}/change/") for pk in (99_999, 2**70)]
    assert [answer.status_code for answer in answers] == [404, 404]
