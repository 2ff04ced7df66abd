"""`python manage.py limbo`: the money of which we do not know where it is."""

from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from payments.models import Breaker
from payments.payouts.operations import in_doubt


class Command(BaseCommand):
    help = "List the payouts in doubt: amount, age, last question asked, next one due; and what pauses the sending."

    def handle(self, *args: Any, **options: Any) -> None:
        at = timezone.now()
        found = in_doubt.in_doubt()
        for one in found:
            self.stdout.write(
                f"transaction {one.transaction_id} of market {one.market_id}: KES {one.amount:,.2f}, {one.status}, "
                f"in doubt for {_ago(one.since, at)}, "
                + (f"last asked {_ago(one.last_asked_at, at)} ago, " if one.last_asked_at else "not asked yet, ")
                + f"next question {_when(one.next_question_at, at)}. {one.words}".rstrip()
            )
        total = sum(one.amount for one in found)
        self.stdout.write(f"{len(found)} payouts in limbo, KES {total:,.2f}.")
        for breaker in Breaker.objects.filter(opened_at__isnull=False).order_by("opened_at"):
            age = _ago(breaker.opened_at or at, at)
            self.stdout.write(f"Sending is paused ({breaker.cause}) for {age}: {breaker.reason}")


def _ago(then: datetime, at: datetime) -> str:
    return str(at - then).partition(".")[0]


def _when(then: datetime | None, at: datetime) -> str:
    if then is None:
        return "not planned"
    return "is due" if then <= at else f"in {_ago(at, then)}"
