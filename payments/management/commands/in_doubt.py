"""The command `python manage.py in_doubt`, which lists the money in doubt."""

from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand

from payments import wiring
from payments.models import Breaker
from payments.payouts.evidence import orphans
from payments.payouts.operations import in_doubt


class Command(BaseCommand):
    help = "List the payouts in doubt with amount, age and status queries, and the reasons why sending is paused."

    def handle(self, *args: Any, **options: Any) -> None:
        at = wiring.now()
        payouts = in_doubt.in_doubt()
        for payout in payouts:
            last_asked = f"last asked {_age(payout.last_asked_at, at)} ago" if payout.last_asked_at else "not asked yet"
            self.stdout.write(
                f"transaction {payout.transaction_id} of market {payout.market_id}: KES {payout.amount:,.2f}, "
                f"{payout.status}, in doubt for {_age(payout.since, at)}, {last_asked}, "
                f"next query {_when(payout.next_query_at, at)}. {payout.result_text}".rstrip()
            )
        total = sum(payout.amount for payout in payouts)
        self.stdout.write(f"{len(payouts)} payout{'' if len(payouts) == 1 else 's'} in doubt, KES {total:,.2f}.")
        for orphan in orphans.unclaimed(limit=1_000):
            amount = f"KES {orphan.amount:,.2f}" if orphan.amount else "amount not known yet"
            place = "in suspense" if orphan.state == orphan.State.SUSPENSE else "waits for its payout"
            self.stdout.write(
                f"request {orphan}, which our books do not have: {amount}, "
                f"receipt {orphan.receipt or 'not known yet'}, {place}, "
                f"first reported {_age(orphan.first_seen_at, at)} ago"
            )
        for breaker in Breaker.objects.filter(opened_at__isnull=False).order_by("opened_at"):
            age = _age(breaker.opened_at or at, at)
            self.stdout.write(f"Sending is paused ({breaker.cause}) for {age}: {breaker.reason}")


def _age(then: datetime, at: datetime) -> str:
    return str(at - then).partition(".")[0]


def _when(then: datetime | None, at: datetime) -> str:
    if then is None:
        return "not planned"
    return "is due" if then <= at else f"in {_age(at, then)}"
