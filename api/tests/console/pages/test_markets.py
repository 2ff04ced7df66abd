"""Tests of the market pages: scratched outcomes, undone settlements, waiting payouts, refreshes."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.conf import Settings
from django.db import transaction
from django.test import Client
from django.utils import timezone

from payments.models import Transaction
from payments.payouts import breakers
from payments.settlement import approvals, failures, resolutions, undo
from testing import builders, console_scenes
from testing.builders import actor, policy
from testing.console_scenes import page_text, submit
from testing.settlement_steps import anything
from users import proposals


def shown(console: Client, path: str) -> str:
    """Return a page's text with single spaces."""
    return " ".join(page_text(console.get(path)).split())


def test_scratched_outcome_is_marked_on_every_page_of_the_market(console: Client) -> None:
    at = timezone.now()
    market = builders.market(["A", "B", "C"])
    for outcome, amount in (("A", 300), ("B", 100), ("C", 600)):
        builders.bet(market, builders.member(balance=amount), outcome, amount, at=at)
    resolutions.scratch(market_id=market.pk, outcome="C", reason="", by=actor(), at=at, policy=policy())

    page = shown(console, f"/admin/markets/{market.pk}/")
    assert "KES 300.00 · 75.0 %" in page
    assert "KES 100.00 · 25.0 %" in page
    assert "Its stakes (1 bet) are going back to the wallets." in page
    builders.settle(market, at=at)
    assert "Its stakes (1 bet) went back to the wallets." in shown(console, f"/admin/markets/{market.pk}/")
    assert "C was scratched" in shown(console, f"/admin/markets/{market.pk}/resolve/")
    listed = shown(console, "/admin/markets/")
    assert "KES 400.00" in listed
    assert "KES 1,000.00" not in listed


@pytest.mark.broken_books
def test_scratch_that_found_wrong_books_is_withdrawn_on_its_page(console: Client) -> None:
    # given
    at = timezone.now()
    market = builders.market(["A", "B", "C"])
    builders.bet(market, builders.member(balance=600), "C", 600, at=at)
    resolutions.scratch(market_id=market.pk, outcome="C", reason="", by=actor(), at=at, policy=policy())
    assert "Withdraw the scratch" not in shown(console, f"/admin/markets/{market.pk}/")
    failures.record(market.pk, "Its bets sum to 600.00, its pool account holds 600.01.")

    # when
    page = shown(console, f"/admin/markets/{market.pk}/")
    assert "The stakes on C are not given back yet: Its bets sum to 600.00" in page
    assert "Withdraw the scratch…" in page
    assert "C may win again." in shown(console, f"/admin/markets/{market.pk}/withdraw/")
    done = submit(console, f"/admin/markets/{market.pk}/withdraw/", reason="The pool is wrong.", typed="withdraw")

    # then
    assert "The scratch of C is withdrawn." in done
    assert market.running_outcomes == ("A", "B", "C")


def test_undone_market_waits_for_a_decision_and_shows_its_undo(console: Client) -> None:
    # given: the market's planned end is in 2099
    at = timezone.now()
    first = console_scenes.staff(full_name="Grace First")
    second = console_scenes.staff(full_name="Peter Second")
    market = builders.market(fee_pct=0, question="Did Gor Mahia win?")
    builders.bet(market, builders.member(balance=285), "Yes", 285, at=at)
    builders.resolve(market, "Yes", at=at, by=first)
    builders.settle(market, at=at)
    (payout,) = Transaction.objects.filter(settlement__market=market)
    console_scenes.pay(payout, at, "SKG7ABC001", after=0)

    # when
    rules = policy(approval_above=Decimal(0))
    proposed = undo.undo(market_id=market.pk, reason="The referee's report.", by=actor(first), at=at, policy=rules)
    assert isinstance(proposed, proposals.Proposed)
    assert "no payout of this market is sent" in shown(console, f"/admin/markets/{market.pk}/")
    proposals.approve(
        proposal_id=proposed.proposal_id,
        preview_hash=proposed.preview_hash,
        by=actor(second),
        at=at,
        holds=anything,
        acts=approvals.procedures(rules),
    )
    assert "undoing" in shown(console, "/admin/markets/")
    undoing = shown(console, f"/admin/markets/{market.pk}/")
    assert "Settlement that is being undone" in undoing
    assert "Certificate" not in undoing
    undo.carry_out(market_id=market.pk, at=at, policy=rules, keep_going=lambda: True)

    # then
    page = shown(console, f"/admin/markets/{market.pk}/")
    assert "Undone settlement" in page
    assert f"Undone by {first}, approved by {second}" in page
    assert "The referee's report." in page
    assert f"Yes wins, by {first}" in page
    assert "KES 285.00 by 1 member; KES 0.00 recovered, KES 0.00 written off." in page
    assert "The market takes no bets and waits for a decision." in page
    assert "Takes bets until" not in page
    assert "Planned end" in page
    assert "market to resolve" in shown(console, "/admin/")
    approved = f"{second}, who approved the proposal of {first}"
    assert approved in shown(console, "/admin/audit/?action=market.undo")
    assert "Did Gor Mahia win?" in shown(console, "/admin/markets/?show=due")
    assert "A decision now closes it" not in shown(console, f"/admin/markets/{market.pk}/resolve/")


def test_expected_end_names_the_causes_of_a_wait(console: Client) -> None:
    at = timezone.now()
    payout = builders.payout(285, at=at)
    assert payout.settlement is not None
    market_id = payout.settlement.market_id
    assert "no payout was paid in the last minute" in shown(console, f"/admin/markets/{market_id}/")
    with transaction.atomic():
        breakers.trip(breakers.Cause.NO_FLOAT, reason="1", at=at, policy=policy())
    breakers.switch_off(reason="Odd.", by=actor(), at=at + timedelta(seconds=1))
    page = shown(console, f"/admin/markets/{market_id}/")
    assert "Waits for a higher M-Pesa float; a person, who stopped all sending." in page


def test_page_names_the_person_who_approved_a_resolution(console: Client) -> None:
    at = timezone.now()
    first, second = console_scenes.staff(full_name="Grace First"), console_scenes.staff(full_name="Peter Second")
    market = console_scenes.market_of_two()
    rules = policy(approval_above=Decimal(0))
    made = builders.resolve(market, "Yes", by=first, at=at, policy=rules)
    proposals.approve(
        proposal_id=made.proposal_id,
        preview_hash=made.preview_hash,
        by=actor(second),
        at=at,
        holds=anything,
        acts=approvals.procedures(rules),
    )
    page = shown(console, f"/admin/markets/{market.pk}/")
    assert f"Yes wins, proposed by {first}, approved by {second}" in page


def test_live_page_answers_304_until_something_changes(console: Client) -> None:
    # given
    payout = builders.payout(285, at=timezone.now() - timedelta(hours=1))
    assert payout.settlement is not None
    path = f"/admin/markets/{payout.settlement.market_id}/"
    first = console.get(path, headers={"X-Fragment": "1"})
    body = page_text(first)
    assert "<html" not in body
    assert body.lstrip().startswith("<section")
    assert first.headers["X-Refresh"] == "2"
    asked: dict[str, Any] = {"X-Fragment": "1", "If-None-Match": first.headers["ETag"]}

    # when, then
    assert console.get(path, headers=asked).status_code == 304
    breakers.switch_off(reason="Odd.", by=actor(), at=timezone.now())
    changed = console.get(path, headers=asked)
    assert changed.status_code == 200
    assert "stopped all sending" in page_text(changed)


def test_live_page_needs_the_same_permission(db: None, settings: Settings) -> None:
    settings.PROFILE = "production"
    payout = builders.payout(285)
    assert payout.settlement is not None
    path = f"/admin/markets/{payout.settlement.market_id}/"
    assert console_scenes.client_of(builders.operator()).get(path, headers={"X-Fragment": "1"}).status_code == 403
    assert Client().get(path, headers={"X-Fragment": "1"}).status_code == 302
