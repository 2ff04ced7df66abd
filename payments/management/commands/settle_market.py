"""`python manage.py settle_market MARKET`: settle a resolved market in the foreground."""

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from markets import locks
from payments import wiring
from payments.settlement import settling, status

SECONDS_BETWEEN_LINES = 1.0


class Command(BaseCommand):
    help = (
        "Settle a resolved market in the foreground, with a line of progress each second. Workers may settle markets "
        "at the same time. You may stop the command and start it again at any moment."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("market_id", type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        market_id = options["market_id"]
        while not self._settled(market_id):
            self._say_progress(market_id)
        self._say_progress(market_id)
        wiring.nudge(wiring.SEND_DUE_PAYOUTS)

    def _settled(self, market_id: int) -> bool:
        """Settle for a second. Return True if the market is settled."""
        until = time.monotonic() + SECONDS_BETWEEN_LINES
        try:
            progress = settling.settle(
                market_id=market_id,
                at=wiring.now(),
                clock=wiring.now,
                policy=wiring.policy(),
                keep_going=lambda: time.monotonic() < until,
            )
        except locks.MarketNotFound as error:
            raise CommandError(str(error)) from error
        if not progress.found:
            raise CommandError(f"Market {market_id} has nothing to settle: it is not resolved, or is settled already.")
        return progress.settled

    def _say_progress(self, market_id: int) -> None:
        progress = status.settlement_progress(market_id)
        self.stdout.write(
            f"Market {market_id}: {progress.bets_done:,} of {progress.bets_total:,} bets divided, "
            f"{progress.members_done:,} members booked."
        )
