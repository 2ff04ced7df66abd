"""Failed payouts by reason, with advice, and the preview of their bulk retry."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Case, CharField, Count, Exists, OuterRef, Q, QuerySet, Subquery, Sum, Value, When
from django.db.models.functions import Coalesce

from payments.ledger import journal
from payments.models import Attempt, Transaction
from payments.mpesa import result_codes
from payments.payouts import eligibility
from users import audit

AT_ONCE = 500
# The group of payouts without an attempt, or whose last attempt has no code.
NO_CODE = "none"
BLOCKED = {
    "open": "a request of the payout has an unknown result",
    "stopped": "its settlement is undone or stopped, or its payouts are within their hold",
    "unasked": "it may have left before a restore of the database, and M-Pesa is being asked",
    "number": "the member's number has changed, so two people must re-issue the payout",
    "reported": "a message reports that the payout was paid after all, and we are asking M-Pesa",
    "own": "it is your own payout, so another member of staff must retry it",
    "withdrawal": "a withdrawal returns to the wallet automatically and is not sent again",
}
CHANGED = "a retry of it is refused; its page shows the reason"

# `Transaction.receiver` in SQL.
RECEIVER = Case(When(~Q(reissued_to=""), then="reissued_to"), default="phone_number")


@dataclass(frozen=True)
class Reason:
    """The failed payouts of one result code: their number and amount, the code's meaning, and advice."""

    code: str
    count: int
    amount: Decimal
    words: str
    advice: str
    retry_helps: bool


@dataclass(frozen=True)
class Plan:
    """A preview of a bulk retry: the payouts to send, and the number of payouts skipped for each reason.

    `beyond` is the number of further payouts that are sent in the background.
    """

    transaction_ids: list[int]
    amount: Decimal
    skipped: dict[str, int]
    beyond: int


def reasons() -> list[Reason]:
    """Return the failed payouts by their last result code, the most frequent code first. Amounts in shillings."""
    rows = with_code(failed()).values_list("code").annotate(count=Count("pk"), total=Sum("amount")).order_by("-count")
    return [
        Reason(code, count, total, *words_of(code))
        for code, count, total in rows
    ]  # fmt: skip


def words_of(code: str) -> tuple[str, str, bool]:
    """Return a code's meaning, the advice, and True if a retry may help."""
    if code in ("", NO_CODE):
        return "No code was given. The payout's page shows what happened.", "Check one payout, then retry.", True
    meaning = result_codes.MEANING.get(code)
    if meaning is None:
        return "M-Pesa refused the request with this code.", "Check one payout's timeline, then retry.", True
    return meaning.words, meaning.advice, meaning.retry_helps


def failed() -> QuerySet[Transaction]:
    """Return all failed transactions."""
    return Transaction.objects.filter(status=Transaction.Status.FAILED)


def with_code(payouts: QuerySet[Transaction]) -> QuerySet[Any]:
    """Annotate payouts with the result code of their last attempt as `code`."""
    last = Attempt.objects.filter(transaction=OuterRef("pk")).order_by("-number").values("result_code")[:1]
    code = Coalesce(Subquery(last), Value(""), output_field=CharField())
    return payouts.annotate(last_code=code).annotate(
        code=Case(When(last_code="", then=Value(NO_CODE)), default="last_code", output_field=CharField())
    )


def chosen(*, code: str = "", market_id: int | None = None, since: datetime | None = None) -> QuerySet[Any]:
    """Return failed payouts for a bulk retry. Each argument that is given narrows the choice.

    `code` is the result code of the last attempt; `since` is the earliest time of the failure.
    """
    payouts: QuerySet[Any] = failed()
    if code:
        payouts = with_code(payouts).filter(code=code)
    if market_id is not None:
        payouts = payouts.filter(settlement__market=market_id)
    return payouts.filter(failed_at__gte=since) if since is not None else payouts


def plan(payouts: QuerySet[Transaction], *, by: audit.Actor, at: datetime) -> Plan:
    """Preview a person's bulk retry, by the rules of a single retry. The first AT_ONCE payouts are sent at once."""
    attempts = Attempt.objects.filter(transaction=OuterRef("pk"))
    blocked = Case(
        When(~Q(type=Transaction.Type.PAYOUT), then=Value("withdrawal")),
        When(user=by.user_id or 0, then=Value("own")),
        When(Exists(attempts.filter(state__in=Attempt.OPEN)), then=Value("open")),
        When(Exists(attempts.filter(next_query_at__isnull=False)), then=Value("reported")),
        When(eligibility.stopped(at), then=Value("stopped")),
        When(eligibility.unasked(), then=Value("unasked")),
        When(~Q(user__phone_number=RECEIVER), then=Value("number")),
        default=Value(""),
        output_field=CharField(),
    )
    rows = list(payouts.annotate(blocked=blocked).order_by("pk").values_list("pk", "amount", "blocked")[: 20 * AT_ONCE])
    free = [(pk, amount) for pk, amount, block in rows if not block]
    return Plan(
        transaction_ids=[pk for pk, _ in free[:AT_ONCE]],
        amount=sum((amount for _, amount in free[:AT_ONCE]), journal.ZERO),
        skipped=dict(Counter(BLOCKED[block] for _, _, block in rows if block)),
        beyond=max(0, len(free) - AT_ONCE),
    )
