"""The list of money in doubt: requests with an unknown result."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db.models import Max

from payments.models import Attempt

UNCONFIRMED = "Staff decided that it was paid. M-Pesa has not confirmed the receipt yet."


@dataclass(frozen=True)
class InDoubt:
    """One request in doubt, with the amount, status and market of its payout, and the times of its queries."""

    transaction_id: int
    market_id: int | None
    external_ref: str
    amount: Decimal
    status: str
    since: datetime
    last_asked_at: datetime | None
    next_query_at: datetime | None
    result_text: str


def in_doubt(market_id: int | None = None, *, limit: int | None = None) -> list[InDoubt]:
    """Return at most `limit` requests in doubt of one market or of all, the oldest first. Amounts in shillings.

    A request that staff decided as paid counts as in doubt until M-Pesa confirms it.
    """
    listed = Attempt.objects.in_doubt() | Attempt.objects.unconfirmed()
    attempts = listed.select_related("transaction__settlement")
    if market_id is not None:
        attempts = attempts.filter(transaction__settlement__market=market_id)
    return [
        InDoubt(
            transaction_id=attempt.transaction_id,
            market_id=attempt.transaction.settlement.market_id if attempt.transaction.settlement else None,
            external_ref=attempt.transaction.external_ref,
            amount=attempt.amount,
            status=attempt.transaction.status,
            since=attempt.first_sent_at or attempt.opened_at,
            last_asked_at=attempt.last_asked_at,
            next_query_at=attempt.next_query_at,
            result_text=UNCONFIRMED if attempt.decision == Attempt.Decision.PAID else attempt.result_words,
        )
        for attempt in attempts.annotate(last_asked_at=Max("queries__asked_at")).order_by("first_sent_at", "pk")[:limit]
    ]
