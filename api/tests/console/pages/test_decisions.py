"""Tests of the pages for approving a proposal, withdrawing, undoing and scratching."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from markets.models import Market
from payments import wiring
from payments.models import Settlement
from payments.policy import Policy
from testing import builders, console_scenes
from testing.console_scenes import client_of, hidden_value, market_of_two, page_text, step_two_form, submit
from users.models import Proposal


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Require two people for a decision on a pool above 500 shillings."""
    two_people = builders.policy(approval_above=console_scenes.POLICY_WITH_APPROVAL.approval_above)
    monkeypatch.setattr(wiring, "policy", cached(two_people))
    return two_people


def cached(policy: Policy) -> Any:
    """Return a replacement for wiring.policy that has the method `cache_clear`, as a cached function has."""

    def read() -> Policy:
        return policy

    read.cache_clear = lambda: None  # type: ignore[attr-defined]
    return read


def propose(console: Client) -> tuple[Market, Proposal]:
    """Propose to resolve a market with a large pool. Return the market and the proposal."""
    market = market_of_two(900)
    page = submit(console, f"/admin/markets/{market.pk}/resolve/decide/", **step_two_form(console, market))
    proposal = Proposal.objects.get()
    assert f"/admin/proposals/{proposal.pk}/" in page
    return market, proposal


def test_second_person_approves_a_large_market_from_the_link(console: Client, large: Policy, queued: Any) -> None:
    # given
    market, proposal = propose(console)
    link = f"/admin/proposals/{proposal.pk}/"
    assert Settlement.objects.count() == 0
    assert "Grace Wambui" in page_text(console.get(link))
    assert "Approve" not in page_text(console.get(link))
    approver = client_of(console_scenes.staff("approver", full_name="Peter Second"))
    assert "decision to approve" in page_text(approver.get("/admin/"))
    assert f"/admin/markets/{market.pk}/" in page_text(approver.get("/admin/markets/?show=proposed"))
    page = page_text(approver.get(link))
    assert "Grace Wambui" in page
    assert "Kenya Met." in page
    assert "KES 950.00" in page

    # when, then
    with builders.nothing_moved():
        assert "Type “approve” exactly" in submit(approver, link, hash=hidden_value(page, "hash"), typed="yes")
        assert "not the hash" in submit(approver, link, hash="0" * 64, typed="approve")
    done = submit(approver, link, hash=hidden_value(page, "hash"), typed="approve")
    assert f"Approved. Market {market.pk} is decided" in done
    settlement = Settlement.objects.get()
    assert (settlement.resolved_by.full_name, settlement.approved_by.full_name) == ("Grace Wambui", "Peter Second")
    assert [name for name, _, _ in queued()] == ["payments.settlement_tasks.settle_market"]
    assert "approved" in page_text(approver.get(link))


def test_proposer_cannot_approve_but_can_withdraw(db: None, large: Policy) -> None:
    both = console_scenes.staff(full_name="Grace Both")
    client = client_of(both)
    _, proposal = propose(client)
    page = page_text(client.get(f"/admin/proposals/{proposal.pk}/"))
    assert "Another person must approve it" in page
    with builders.nothing_moved():
        refused = submit(client, f"/admin/proposals/{proposal.pk}/", hash=proposal.hash, typed="approve")
    assert "You proposed this. Another member of staff must approve it." in refused
    assert "is withdrawn. No money was moved." in submit(
        client, f"/admin/proposals/{proposal.pk}/reject/", reason="Typo."
    )
    proposal.refresh_from_db()
    assert (proposal.state, proposal.words) == ("WITHDRAWN", "Typo.")


def test_proposal_with_changed_figures_says_so(console: Client, large: Policy) -> None:
    market, proposal = propose(console)
    bet_after_reopening(market)
    approver = client_of(console_scenes.staff("approver"))
    page = page_text(approver.get(f"/admin/proposals/{proposal.pk}/"))
    assert "The figures have changed since the proposal" in page


def bet_after_reopening(market: Market) -> None:
    """Open a closed market, add a bet and close the market again."""
    Market.objects.filter(pk=market.pk).update(status="OPEN")
    builders.orm_bet(market, builders.member(), "No", 5)
    Market.objects.filter(pk=market.pk).update(status="CLOSED")


def test_resolution_is_withdrawn_before_its_division(console: Client) -> None:
    market = market_of_two()
    builders.resolve(market, "No", at=timezone.now())
    assert f"/admin/markets/{market.pk}/withdraw/" in page_text(console.get(f"/admin/markets/{market.pk}/"))
    page = submit(console, f"/admin/markets/{market.pk}/withdraw/", reason="The wrong outcome.", typed="withdraw")
    assert "is withdrawn. None of its payouts will be sent." in page
    market.refresh_from_db()
    assert market.status == "CLOSED"


def test_held_payouts_show_their_release_time_and_can_be_withdrawn(console: Client) -> None:
    market = market_of_two()
    at = timezone.now()
    held = builders.policy(holds=((Decimal(0), timedelta(minutes=30)),))
    builders.resolve(market, "Yes", at=at, policy=held)
    builders.settle(market, at=at, policy=held)
    page = page_text(console.get(f"/admin/markets/{market.pk}/"))
    assert "Payouts are held until" in page
    assert "withdraw/" in page
    assert "/undo/" not in page


def test_settlement_is_undone_and_the_page_shows_it(console: Client, queued: Any) -> None:
    market = market_of_two()
    builders.resolve(market, "No", at=timezone.now())
    builders.settle(market, at=timezone.now())
    page = page_text(console.get(f"/admin/markets/{market.pk}/"))
    assert f"/admin/markets/{market.pk}/undo/" in page
    assert f"/api/markets/{market.pk}/settlement/" in page
    with builders.nothing_moved():
        assert "becomes their debt to us" in page_text(console.get(f"/admin/markets/{market.pk}/undo/"))
        assert "Type “undo”" in submit(console, f"/admin/markets/{market.pk}/undo/", reason="Wrong.", typed="redo")
    assert "is being undone" in submit(console, f"/admin/markets/{market.pk}/undo/", reason="Wrong.", typed="undo")
    assert Settlement.objects.get().state == "UNDOING"
    assert "payments.settlement_tasks.undo_market" in [name for name, _, _ in queued()]
    assert "Settlement that is being undone" in page_text(console.get(f"/admin/markets/{market.pk}/"))


def test_outcome_is_scratched(console: Client, queued: Any) -> None:
    market = builders.market(["A", "B", "C"])
    builders.orm_bet(market, builders.member(), "C", 70)
    assert f"/admin/markets/{market.pk}/scratch/" in page_text(console.get(f"/admin/markets/{market.pk}/"))
    page = submit(console, f"/admin/markets/{market.pk}/scratch/", outcome="C", reason="Withdrew.", typed="scratch")
    assert "C is scratched" in page
    assert market.running_outcomes == ("A", "B")
    assert "scratch/" not in page_text(console.get(f"/admin/markets/{market.pk}/"))
