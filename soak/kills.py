"""Thousands of payouts while a process is killed every few seconds.

The victims are web, worker, beat, PostgreSQL, Redis, or all of them. The simulator is never killed, because it stands
for M-Pesa. A supervisor starts dead processes again. Nothing else repairs the system.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg2

from testing.figures import Figure, Progress, hand_over
from testing.running import until
from testing.supervised import Servers, Supervised

VICTIMS = ("web", "worker", "beat", "PostgreSQL", "Redis", "all of them")
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 5.0
LONGEST_RECOVERY_SECONDS = 30.0
DIVIDEND = 190  # Each winner stakes 100. The loser stakes as much as all winners. The fee is 5 % of the pool.
SETTINGS = {
    "PAYOUT_TPS": "200",
    "SWEEP_EVERY_SECONDS": "1",
    "PAYOUT_QUERY_AFTER": "5",
    "PAYOUT_QUERY_GAP": "5",
    "PAYOUT_RETRY_AFTER": "1",
    "BREAKER_LONGEST_PAUSE": "5",
}
MARKET = """
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="Will it rain tomorrow?", end_date="2026-02-17", platform_fee_pct=5)
users = CustomUser.objects.bulk_create(
    [CustomUser(phone_number=f"25470{{number:07d}}", password="!") for number in range(100, 100 + {winners} + 1)]
)
Bet.objects.bulk_create([Bet(user=user, market=market, outcome="Yes", amount=100) for user in users[:-1]])
Bet.objects.create(user=users[-1], market=market, outcome="No", amount={winners} * 100)
"""
PAID = "SELECT count(*) FROM payments_transaction WHERE destination = 'mpesa' AND status = 'COMPLETED'"
POSTED = "SELECT count(*) FROM payments_attempt"
OURS = "SELECT originator_conversation_id, amount::int, phone_number, receipt, lower(state) FROM payments_attempt"


def run(*, winners: int, at_most_seconds: float, seed: int) -> list[Figure]:
    """Pay `winners` payouts during random kills, and return the figures about the books and the recovery.

    Raises: AssertionError, if a killed process cannot be started again, or if the payouts are not paid in time.
    """
    with tempfile.TemporaryDirectory() as directory:
        # If root starts the servers, they run as another user, who must be able to enter this directory.
        Path(directory).chmod(0o711)
        servers = Servers(Path(directory))
        logs = Path(directory) / "logs"
        logs.mkdir()
        system = Supervised(logs, servers.urls["DATABASE_URL"], {**servers.urls, **SETTINGS})
        try:
            return _Run(system, servers, winners, random.Random(seed)).figures(at_most_seconds)  # noqa: S311
        finally:
            system.stop_all()
            servers.stop()


class _Run:
    def __init__(self, system: Supervised, servers: Servers, winners: int, chance: random.Random) -> None:
        self.system, self.servers, self.winners, self.chance = system, servers, winners, chance
        self.kills: Counter[str] = Counter()
        self.longest_recovery = 0.0

    def figures(self, at_most_seconds: float) -> list[Figure]:
        system = self.system
        system.manage("migrate", "--verbosity", "0")
        system.start_simulator("--callback-delay", "0.2")
        for name in ("web", "beat", "worker"):
            self._start(name)
        system.log_in()
        system.manage("shell", typed=MARKET.format(winners=self.winners))
        system.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})
        seconds = self._pay(at_most_seconds)
        return self._figures(seconds)

    def _pay(self, at_most_seconds: float) -> float:
        """Kill processes until all payouts are paid or until the time limit. Then wait for the last payouts.

        Returns the seconds before that wait.
        """
        progress = Progress("kills", self.winners)
        victims: list[str] = []
        while (paid := self._count(PAID)) < self.winners and progress.seconds < at_most_seconds:
            progress.at(paid, f"{self.kills.total()} kills")
            # Each victim is killed once before any victim is killed again, so a short run also kills all victims.
            victims = victims or self.chance.sample(VICTIMS, len(VICTIMS))
            next_kill = time.monotonic() + self.chance.uniform(SHORTEST_PAUSE, LONGEST_PAUSE)
            self._kill(victims.pop())
            time.sleep(max(0.0, next_kill - time.monotonic()))
        until(self._at_rest, "the last payouts", lambda: self.system.log("worker")[-4000:])
        return progress.seconds

    def _at_rest(self) -> bool:
        self._restart_dead()
        return self._count(PAID) == self.winners

    def _kill(self, victim: str) -> None:
        """Kill a victim with -9, start it again, and wait for the next request. Keep the longest recovery time."""
        self.kills[victim] += 1
        posted = self._count(POSTED)
        everything = victim == "all of them"
        for name in ("web", "worker", "beat"):
            if everything or name == victim:
                self.system.kill(name)
        if everything or victim == "PostgreSQL":
            self.servers.crash_postgres()
        if everything or victim == "Redis":
            self.servers.lose_redis()
        self.servers.restart()
        self._restart_dead()
        recovering = time.monotonic()
        while (
            self._count(POSTED) == posted < self.winners
            and time.monotonic() - recovering < 4 * LONGEST_RECOVERY_SECONDS
        ):
            time.sleep(0.05)
        self.longest_recovery = max(self.longest_recovery, time.monotonic() - recovering)

    def _restart_dead(self) -> None:
        for name in self.system.names_of_ended():
            self.system.kill_rest_of(name)
        for name in ("web", "beat", "worker"):
            if not self.system.runs(name):
                self._start(name)

    def _start(self, name: str) -> None:
        start = {"web": self.system.start_web, "beat": self.system.start_beat, "worker": self.system.start_worker}
        start[name]()

    def _count(self, statement: str) -> int:
        try:
            ((count,),) = self.system.sql(statement)
        except psycopg2.OperationalError:
            return 0
        return int(count)

    def _figures(self, seconds: float) -> list[Figure]:
        book: dict[str, Any] = self.system.book()
        provider = sorted((p["ocid"], p["amount"], p["phone"], p["receipt"], p["state"]) for p in book["payments"])
        ours = sorted(self.system.sql(OURS))
        paid, double = self._count(PAID), len(book["double_paid"])
        agree = [row for row in ours if row[-1] == "paid"] == [row for row in provider if row[-1] == "paid"]
        total = book["totals"]["paid_total"]
        closed = self.system.manage("reconcile").strip().rpartition("\n")[2]
        struck = ", ".join(f"{name} {count}" for name, count in self.kills.most_common())
        recovered = self.longest_recovery
        return [
            Figure(
                f"{self.winners:,} payouts while a process is killed (-9) every few seconds",
                "0 lost, 0 paid twice, all paid in the end",
                f"{self.winners - paid} lost, {double} paid twice, in {seconds:.0f} s; "
                f"{self.kills.total()} kills: {struck}",
                paid == self.winners and double == 0,
            ),
            Figure(
                "The provider's book and ours",
                "the same payments, receipt by receipt",
                f"{'the same' if agree else 'different'}; the provider paid {total:,} shillings",
                agree and total == self.winners * DIVIDEND,
            ),
            Figure("The books after the kills", "every invariant holds", closed, closed.startswith("The books close")),
            Figure(
                "Longest time from the restart after a kill to the next request",
                f"at most {LONGEST_RECOVERY_SECONDS:.0f} s",
                f"{recovered:.1f} s",
                recovered <= LONGEST_RECOVERY_SECONDS,
            ),
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--winners", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1_200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    hand_over(run(winners=options.winners, at_most_seconds=options.seconds, seed=options.seed))
