"""Cache of previews: a change of any input makes a cached preview old."""

import dataclasses
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from payments.ledger import debt_decisions
from payments.models import Recovery
from payments.policy import Policy
from payments.settlement import division, preview, preview_cache
from payments.settlement.decision import Decision, Evidence
from testing import builders, console_scenes
from testing.console_scenes import market_of_two


@pytest.fixture
def by_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every preview to a worker, as for a market with many bets."""
    monkeypatch.setattr(preview_cache, "BETS_COMPUTED_IN_REQUEST", 0)


def test_change_of_any_input_makes_a_kept_preview_old(db: None, by_a_worker: None, at: datetime) -> None:
    market, decision, rules = market_of_two(), Decision("WINNER", {"Yes": Decimal(100)}), builders.policy()

    def current(policy: Policy = rules, when: datetime = at) -> bool:
        market.refresh_from_db()
        (kept,) = preview_cache.previews(market, [decision], at=when, policy=policy)
        return kept.current

    assert not current()
    preview_cache.compute(market, decision, at=at, policy=rules)
    assert current()
    assert current(when=at + timedelta(hours=1))
    # The date (because of the tariff), the policy and the fee.
    assert not current(when=at + timedelta(days=1))
    assert not current(policy=builders.policy(min_amount=200))
    builders.changed_terms(market, at=at, platform_fee_pct=Decimal(7))
    assert not current()
    preview_cache.compute(market, decision, at=at, policy=rules)
    assert current()
    # A debt changes the preview only after the decision to set it off.
    console_scenes.owing(at, [("Faith Naliaka", 285)])
    assert current()
    debt_decisions.decide_set_off(
        market_id=Recovery.objects.get().settlement.market_id, pct=50, by=console_scenes.ACTOR, at=at
    )  # type: ignore[union-attr]
    assert not current()
    preview_cache.compute(market, decision, at=at, policy=rules)
    assert current()
    # A bet in another market does not change the preview.
    builders.orm_bet(builders.market(), builders.member(), "No", 1)
    assert current()
    builders.orm_bet(market, builders.member(), "No", 1)
    assert not current()


def test_preview_kept_by_another_version_is_not_read(
    db: None, by_a_worker: None, at: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, decision = market_of_two(), Decision("WINNER", {"Yes": Decimal(100)})
    preview_cache.compute(market, decision, at=at, policy=builders.policy())
    monkeypatch.setattr(preview_cache, "VERSION", 3)
    (kept,) = preview_cache.previews(market, [decision], at=at, policy=builders.policy())
    assert kept.preview is None


# If the fields or the figures for the same bets change, VERSION must increase. Otherwise old cached previews are read.
FIELDS_OF_VERSION_2 = {
    preview.Preview: (
        "market_id", "rule", "weights", "figures", "outcomes", "largest", "charges", "float_needed", "float_available",
        "float_at", "notes", "equation",
    ),
    preview.Figures: ("division", "members", "preview_hash"),
    preview.MemberNote: ("reason", "what", "count", "amount", "members"),
    division.Division: (
        "bet_count", "last_bet_id", "stakes", "pool", "winning_pool", "fee", "net", "refund", "funds", "late_count",
        "late_refund",
    ),
}  # fmt: skip


def test_changed_fields_of_a_kept_preview_need_a_higher_version() -> None:
    fields = {kept: tuple(field.name for field in dataclasses.fields(kept)) for kept in FIELDS_OF_VERSION_2}
    assert (preview_cache.VERSION, fields) == (2, FIELDS_OF_VERSION_2), (
        "Increase preview_cache.VERSION, then update this test."
    )


def test_reason_and_evidence_do_not_change_the_kept_preview(db: None, by_a_worker: None, at: datetime) -> None:
    market, rules = market_of_two(), builders.policy()
    preview_cache.compute(market, Decision("VOID", {}), at=at, policy=rules)

    with_reason = Decision("VOID", {}, reason="error", evidence=Evidence(note="Typed twice."))
    (kept,) = preview_cache.previews(market, [with_reason], at=at, policy=rules)

    assert kept.current
    assert kept.preview is not None


def test_close_time_changes_the_kept_preview(db: None, by_a_worker: None, at: datetime) -> None:
    market, rules = market_of_two(), builders.policy()
    preview_cache.compute(market, Decision("VOID", {}), at=at, policy=rules)

    earlier = Decision("VOID", {}, effective_close_at=at - timedelta(hours=1))
    (kept,) = preview_cache.previews(market, [earlier], at=at, policy=rules)

    assert kept.preview is None
