"""Plan of a large win: the days on which its tranches leave, by M-Pesa's limit of the day."""

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from payments.ledger import journal
from payments.models import Transaction
from payments.payouts import day_limit
from payments.policy import Policy

# A page lists this many days. The plan's end is always exact.
DAYS_SHOWN = 14


@dataclass(frozen=True)
class Day:
    """The tranches that leave on one day: their number and their amount in shillings."""

    day: date
    count: int
    amount: Decimal


@dataclass(frozen=True)
class Plan:
    """The plan of one member's M-Pesa payouts of a settlement, if nothing else stops them.

    `days` has the first DAYS_SHOWN days, and `ends_on` is the last day of all. Other payouts of the member may move the
    plan to later days.
    """

    tranches: int
    amount: Decimal
    waiting: int
    days: list[Day]
    ends_on: date | None


def of_payout(payout: Transaction, *, at: datetime, policy: Policy) -> Plan | None:
    """Return the plan of the win to which a payout belongs, or None if the win has one tranche only."""
    if payout.settlement is None or payout.destination != Transaction.Destination.MPESA:
        return None
    tranches = Transaction.objects.filter(
        settlement=payout.settlement_id, user=payout.user_id, type=payout.type, destination=payout.destination
    )
    rows = list(tranches.order_by("due_at", "pk").values_list("amount", "status"))
    if len(rows) < 2:
        return None
    pending = [amount for amount, status in rows if status == Transaction.Status.PENDING]
    begins_at = max(at, payout.settlement.release_at or at)
    sent = day_limit.sent_on(day_limit.day_of(begins_at), [payout.user_id]).get(payout.user_id, journal.ZERO)
    planned = day_limit.plan(pending, sent_today=sent, at=begins_at, limit=policy.day_limit)
    by_day: dict[date, list[Decimal]] = {}
    for day, amount in zip(planned, pending, strict=True):
        by_day.setdefault(day, []).append(amount)
    days = [Day(day, len(amounts), sum(amounts, journal.ZERO)) for day, amounts in sorted(by_day.items())]
    return Plan(
        tranches=len(rows),
        amount=sum((amount for amount, _ in rows), journal.ZERO),
        waiting=len(pending),
        days=days[:DAYS_SHOWN],
        ends_on=max(planned, default=None),
    )
