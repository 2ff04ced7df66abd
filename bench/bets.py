"""Benchmark of bets on one market at the same time.

The members who place these bets do not wait for each other.
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import django

from bench.figures import Measured, Row, alternated, hand_over, median_ratio
from testing.figures import Progress

STAKE = Decimal(10)


class Bench:
    """Members with money, and open markets."""

    def __init__(self, members: int) -> None:
        from bench import winners
        from users.models import CustomUser

        made = winners.members(members, Decimal(1_000_000))
        self.members = list(CustomUser.objects.filter(pk__in=[m.pk for m in made]).values_list("pk", flat=True))

    def bets(self, count: int, threads: int, markets: int) -> float:
        """Place `count` bets from `threads` threads on `markets` markets, and return the number of bets a second."""
        from django.db import connections
        from django.utils import timezone

        from bench import winners
        from payments.wallet import bets as wallet_bets

        ids = [winners.market().pk for _ in range(markets)]
        share = count // threads

        def bet(thread: int) -> None:
            for number in range(share):
                member = self.members[(thread * share + number) % len(self.members)]
                wallet_bets.place(
                    user_id=member, market_id=ids[(thread + number) % markets], outcome="Yes", amount=STAKE,
                    client_ref=None, at=timezone.now(),
                )  # fmt: skip
            connections.close_all()

        began = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(bet, range(threads)))
        return share * threads / (time.monotonic() - began)


def main(arguments: list[str]) -> None:
    """Compare one hot market with many markets, and report the row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args(arguments).full
    django.setup()
    times, count, threads = (7, 4_000, 8) if full else (3, 800, 8)
    bench, progress = Bench(count), Progress("bets", 2 * times)

    def measure(thread_count: int, markets: int) -> float:
        progress.at(0)
        return bench.bets(count, thread_count, markets)

    rates = alternated(
        {
            "one market": lambda: measure(threads, 1),
            "many markets": lambda: measure(threads, threads * 8),
            "alone": lambda: measure(1, 1),
        },
        times,
    )
    middle = {name: statistics.median(values) for name, values in rates.items()}
    hand_over(
        Measured(
            [
                Row(
                    "",
                    f"bets a second on one hot market, {threads} threads of one process",
                    f"{middle['one market']:,.0f}/s",
                    f"on {threads * 8} markets {middle['many markets']:,.0f}/s",
                    median_ratio(rates["one market"], rates["many markets"]),
                    how_far=f"one thread alone {middle['alone']:,.0f}/s; bets on one market update no common row",
                )
            ]
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
