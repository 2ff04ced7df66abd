"""Money in doubt: requests whose result is not known."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db.models import Max

from payments.models import Attempt


@dataclass(frozen=True)
class InDoubt:
    """Money of which we do not know where it is: one payout in doubt, or held with a request whose fate is open."""

    transaction_id: int
    market_id: int | None
    external_ref: str
    amount: Decimal
    status: str
    since: datetime
    last_asked_at: datetime | None
    next_question_at: datetime | None
    words: str


def in_doubt(market_id: int | None = None, *, limit: int | None = None) -> list[InDoubt]:
    """The money in doubt, oldest first: of one market, or all of it; the first `limit`. Amounts in shillings."""
    doubtful = Attempt.objects.filter(state=Attempt.State.IN_DOUBT).select_related("transaction__settlement")
    if market_id is not None:
        doubtful = doubtful.filter(transaction__settlement__market=market_id)
    return [
        InDoubt(
            transaction_id=attempt.transaction_id,
            market_id=attempt.transaction.settlement.market_id if attempt.transaction.settlement else None,
            external_ref=attempt.transaction.external_ref,
            amount=attempt.amount,
            status=attempt.transaction.status,
            since=attempt.first_sent_at or attempt.opened_at,
            last_asked_at=attempt.last_asked_at,
            next_question_at=attempt.next_query_at,
            words=attempt.result_words,
        )
        for attempt in doubtful.annotate(last_asked_at=Max("queries__asked_at")).order_by("first_sent_at", "pk")[:limit]
    ]
