"""Decisions: checks of a decision, and the moment after which a bet is late."""

from datetime import timedelta
from decimal import Decimal

import pytest

from markets import parimutuel
from markets.models import Market
from payments.settlement import proposals
from payments.settlement.decision import VOID_REASONS, BadCloseTime, Decision, Evidence, UnknownReason
from testing import builders
from testing.builders import AT
from users.models import Proposal

YES = {"Yes": Decimal(100)}


@pytest.mark.parametrize("reason", VOID_REASONS)
def test_void_with_a_known_reason_is_accepted(reason: str) -> None:
    Decision("VOID", {}, reason).check(at=AT)


@pytest.mark.parametrize(
    "decision", [Decision("VOID", {}), Decision("VOID", {}, "because"), Decision("WINNER", YES, "error")]
)
def test_reason_of_another_kind_is_refused(decision: Decision) -> None:
    with pytest.raises(UnknownReason, match="for a void market only"):
        decision.check(at=AT)


def test_close_time_may_be_now_but_not_later() -> None:
    Decision("WINNER", YES, effective_close_at=AT).check(at=AT)
    with pytest.raises(BadCloseTime):
        Decision("WINNER", YES, effective_close_at=AT + timedelta(microseconds=1)).check(at=AT)


def test_weights_must_sum_to_100_over_outcomes_of_the_market(db: None) -> None:
    market = builders.market()
    Decision("WINNER", YES).check_weights(market)
    with pytest.raises(parimutuel.BadWeights):
        Decision("JOINT", {"Yes": Decimal(50), "No": Decimal(49)}).check_weights(market)
    with pytest.raises(parimutuel.UnknownOutcome):
        Decision("WINNER", {"Maybe": Decimal(100)}).check_weights(market)


def test_close_time_of_the_decision_comes_before_that_of_the_market() -> None:
    market, later = Market(effective_close_at=AT), AT + timedelta(hours=1)
    assert Decision("WINNER", YES).closes_at(market) == AT
    assert Decision("WINNER", YES, effective_close_at=later).closes_at(market) == later
    assert Decision("WINNER", YES).closes_at(Market()) is None


def test_proposal_gives_back_the_decision_that_it_was_made_of() -> None:
    proposal = Proposal(
        payload={
            "rule": "JOINT",
            "weights": {"Yes": "33.3", "No": "66.7"},
            "evidence_url": "https://example.com",
            "evidence_note": "2 : 1",
            "effective_close_at": AT.isoformat(),
        }
    )
    assert proposals.decision_of(proposal) == Decision(
        "JOINT",
        {"Yes": Decimal("33.3"), "No": Decimal("66.7")},
        evidence=Evidence("https://example.com", "2 : 1"),
        effective_close_at=AT,
    )
