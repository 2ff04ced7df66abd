"""Failed payouts together: why they failed, in words with advice, and sending many again after a look at it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Case, CharField, Count, Exists, OuterRef, Q, QuerySet, Subquery, Sum, Value, When
from django.db.models.functions import Coalesce

from payments.ledger import journal
from payments.models import Attempt, Transaction
from payments.mpesa import result_codes
from payments.payouts.operations import actions
from users import audit

AT_ONCE = 500
# What a payout without any attempt, or one that failed without a code, is grouped under.
NO_CODE = "none"
BLOCKED = {
    "open": "a request of it is open: its fate is not known yet",
    "claimed": "a message claims that it was paid after all: we are asking",
    "withdrawal": "a withdrawal goes back to the wallet by itself and is not sent again",
}


@dataclass(frozen=True)
class Reason:
    """The failed payouts of one result code: how many, how much, what the code means and what to do."""

    code: str
    count: int
    amount: Decimal
    words: str
    advice: str
    retry_helps: bool


@dataclass(frozen=True)
class Plan:
    """What a bulk retry would do now. `transaction_ids` are those to send; `skipped` maps a reason to a number."""

    transaction_ids: list[int]
    amount: Decimal
    skipped: dict[str, int]
    beyond: int


@dataclass(frozen=True)
class Outcome:
    """What a bulk retry did: the ids sent back to be paid, and why the others were not."""

    retried: list[int]
    skipped: dict[str, int]


def reasons() -> list[Reason]:
    """Every failed payout by its last result code, the most frequent first. Amounts in shillings."""
    rows = with_code(failed()).values_list("code").annotate(count=Count("pk"), total=Sum("amount")).order_by("-count")
    return [
        Reason(code, count, total, *words_of(code))
        for code, count, total in rows
    ]  # fmt: skip


def words_of(code: str) -> tuple[str, str, bool]:
    """What a code means, what to do about it, and whether sending again may help."""
    if code in ("", NO_CODE):
        return "No code was given; the payout's page says what happened.", "Look at one, then retry.", True
    meaning = result_codes.MEANING.get(code)
    if meaning is None:
        return "M-Pesa refused the request with this code.", "Look at one payout's timeline, then retry.", True
    return meaning.words, meaning.advice, meaning.retry_helps


def failed() -> QuerySet[Transaction]:
    return Transaction.objects.filter(status=Transaction.Status.FAILED)


def with_code(payouts: QuerySet[Transaction]) -> QuerySet[Any]:
    """Payouts with the result code of their last attempt as `code`."""
    last = Attempt.objects.filter(transaction=OuterRef("pk")).order_by("-number").values("result_code")[:1]
    code = Coalesce(Subquery(last), Value(""), output_field=CharField())
    return payouts.annotate(last_code=code).annotate(
        code=Case(When(last_code="", then=Value(NO_CODE)), default="last_code", output_field=CharField())
    )


def chosen(*, code: str = "", market_id: int | None = None, since: datetime | None = None) -> QuerySet[Any]:
    """The failed payouts that a bulk retry is about: of one code, one market, or failed since a moment."""
    payouts: QuerySet[Any] = failed()
    if code:
        payouts = with_code(payouts).filter(code=code)
    if market_id is not None:
        payouts = payouts.filter(settlement__market=market_id)
    return payouts.filter(failed_at__gte=since) if since is not None else payouts


def plan(payouts: QuerySet[Transaction]) -> Plan:
    """What sending these again would do, without doing it: at most AT_ONCE, and the rules of a single retry."""
    attempts = Attempt.objects.filter(transaction=OuterRef("pk"))
    blocked = Case(
        When(~Q(type=Transaction.Type.PAYOUT), then=Value("withdrawal")),
        When(Exists(attempts.filter(state__in=Attempt.OPEN)), then=Value("open")),
        When(Exists(attempts.filter(next_query_at__isnull=False)), then=Value("claimed")),
        default=Value(""),
        output_field=CharField(),
    )
    rows = list(payouts.annotate(blocked=blocked).order_by("pk").values_list("pk", "amount", "blocked")[: 20 * AT_ONCE])
    free = [(pk, amount) for pk, amount, why in rows if not why]
    return Plan(
        transaction_ids=[pk for pk, _ in free[:AT_ONCE]],
        amount=sum((amount for _, amount in free[:AT_ONCE]), journal.ZERO),
        skipped=dict(Counter(BLOCKED[why] for _, _, why in rows if why)),
        beyond=max(0, len(free) - AT_ONCE),
    )


def retry_each(*, transaction_ids: Iterable[int], by: audit.Actor, at: datetime) -> Outcome:
    """Send these again, each in a transaction of its own; what can no longer be retried is passed over and told.

    Locks: as interventions.retry, one payout after the other.
    """
    retried: list[int] = []
    skipped: Counter[str] = Counter()
    for transaction_id in transaction_ids:
        try:
            retried.append(actions.retry(transaction_id=transaction_id, by=by, at=at).pk)
        except actions.PayoutNotRetryable:
            skipped["it has changed since the look, or money of it may be on its way"] += 1
        except actions.TransactionNotFound:
            skipped["it is not there"] += 1
    return Outcome(retried, dict(skipped))
