"""Decisions about a market: the rule, the weights and the evidence as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from markets import parimutuel
from markets.models import Market
from users.refusal import Refusal

# Reasons to void a market, each with its words for people.
VOID_REASONS = {
    "cancelled": "the event was cancelled",
    "postponed": "the event was postponed",
    "ambiguous": "the question has no clear answer",
    "no_result": "there was no result",
    "error": "the market was set up wrongly",
}


class UnknownReason(Refusal):
    """A void decision needs one of VOID_REASONS, and any other decision must have no reason."""


class BadCloseTime(Refusal):
    """The stated end of the event lies in the future, but the event must have ended before a decision."""


@dataclass(frozen=True)
class Evidence:
    """Public evidence of a decision: the address of a page and a note. The system never opens the page."""

    url: str = ""
    note: str = ""


@dataclass(frozen=True)
class Decision:
    """One decision about a market, as a preview, a proposal and a resolution take it.

    `reason` is for a void market only. Bets placed after `effective_close_at` get their stakes back. If it is None, the
    market's own `effective_close_at` applies.
    Units: weights are percentages that sum to 100, empty for VOID.
    """

    rule: parimutuel.Rule
    weights: Mapping[str, Decimal]
    reason: str = ""
    evidence: Evidence = Evidence()
    effective_close_at: datetime | None = None

    def check(self, *, at: datetime) -> None:
        """Refuse a decision that no market could take at `at`.

        Raises: UnknownReason; BadCloseTime.
        """
        if (self.rule == "VOID") != (self.reason in VOID_REASONS):
            raise UnknownReason(f"reason must be one of {', '.join(VOID_REASONS)}, for a void market only.")
        if self.effective_close_at is not None and self.effective_close_at > at:
            raise BadCloseTime("effective_close_at must not lie in the future. Nothing was decided.")

    def check_weights(self, market: Market) -> None:
        """Refuse weights that cannot resolve this market.

        Raises: parimutuel.UnknownOutcome; parimutuel.BadWeights.
        """
        parimutuel.check_weights(self.rule, self.weights, market.running_outcomes)

    def closes_at(self, market: Market) -> datetime | None:
        """Return the moment after which bets on the market are late; None if no bet is late."""
        return self.effective_close_at or market.effective_close_at

    def weights_as_text(self) -> dict[str, str]:
        """Return the weights as text, as table rows and JSON hold them."""
        return {outcome: str(weight) for outcome, weight in self.weights.items()}
