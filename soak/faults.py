"""Thousands of payouts through a simulator that has all its faults, each equally often.

No process is killed here. Each failed payout is retried again and again. A payout that a person would have to
investigate becomes HELD. At the end our book and the simulator's book are compared, receipt by receipt.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from payments.mpesa.simulator.faults import FAULTS
from soak.kills import DIVIDEND, MARKET
from testing.figures import Figure, Progress, hand_over
from testing.running import Running, running

SETTINGS = {
    "PAYOUT_TPS": "100",
    "SWEEP_EVERY_SECONDS": "1",
    "PAYOUT_QUERY_AFTER": "2",
    "PAYOUT_QUERY_GAP": "2",
    "PAYOUT_RETRY_AFTER": "1",
    "PAYOUT_RESEND_HORIZON": "120",
    "PAYOUT_REVIEW_AFTER": "300",
    "BREAKER_LONGEST_PAUSE": "2",
}
PAYOUTS = "payments_transaction WHERE destination = 'mpesa'"
BY_STATUS = f"SELECT status, count(*) FROM {PAYOUTS} GROUP BY 1 ORDER BY 1"  # noqa: S608
HELD_SILENTLY = f"SELECT count(*) FROM {PAYOUTS} AND status = 'HELD' AND reason = ''"  # noqa: S608
OURS = (
    "SELECT originator_conversation_id, amount::int, phone_number, receipt FROM payments_attempt WHERE state = 'PAID'"
    " ORDER BY 1"
)
MOST_HELD = 0.01


def run(*, winners: int, each: float, at_most_seconds: float, seed: int) -> list[Figure]:
    """Pay `winners` payouts while each fault happens to the share `each` of the requests. Return the figures."""
    with tempfile.TemporaryDirectory() as directory, running(Path(directory), **SETTINGS) as system:
        rate = str(each * len(FAULTS))
        system.start_simulator(
            "--callback-delay", "0.2", "--latency", "0.05", "--seed", str(seed), "--fault-rate", rate
        )
        system.start_web()
        system.start_worker()
        system.log_in()
        system.manage("shell", typed=MARKET.format(winners=winners))
        system.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})
        seconds = _retry_until_final(system, winners, at_most_seconds)
        return _compared(system, winners, each, seconds)


def _retry_until_final(system: Running, winners: int, at_most_seconds: float) -> float:
    """Retry failed payouts until all are completed or held, or until the time limit. Return the seconds."""
    progress = Progress("faults", winners)
    counts: dict[str, int] = {}
    while progress.seconds < at_most_seconds and sum(map(counts.get, ("COMPLETED", "HELD"), (0, 0))) < winners:
        counts = dict(system.sql(BY_STATUS))
        if counts.get("FAILED"):
            system.post("/api/markets/admin/retry-failed-payouts/", {"hours": 24})
        progress.at(counts.get("COMPLETED", 0), ", ".join(f"{status} {count}" for status, count in counts.items()))
        time.sleep(0.5)
    return progress.seconds


def _compared(system: Running, winners: int, each: float, seconds: float) -> list[Figure]:
    book: dict[str, Any] = system.book()
    counts = dict(system.sql(BY_STATUS))
    completed, held = counts.get("COMPLETED", 0), counts.get("HELD", 0)
    ((silent,),) = system.sql(HELD_SILENTLY)
    provider = sorted(
        (p["ocid"], p["amount"], p["phone"], p["receipt"]) for p in book["payments"] if p["state"] == "paid"
    )
    ours = system.sql(OURS)
    differences = len(set(provider) ^ set(ours))
    ((requests,),) = system.sql("SELECT count(*) FROM payments_attempt")
    ((questions,),) = system.sql("SELECT count(*) FROM payments_statusquery")
    closed = system.manage("reconcile").strip().rpartition("\n")[2]
    return [
        Figure(
            f"{winners:,} payouts, every fault of the simulator at {each:.0%}",
            "all payouts completed, or under 1 % held with a reason",
            f"{completed:,} completed, {held} held ({silent} without a reason), {winners - completed - held} "
            f"unfinished after {seconds:.0f} s, by {requests:,} requests and {questions:,} questions",
            completed + held == winners and silent == 0 and held < MOST_HELD * winners,
        ),
        Figure(
            "The provider's book and ours, after the faults",
            "the same payments, receipt by receipt; nobody paid twice",
            f"{differences} differences, {len(book['double_paid'])} paid twice; the provider paid "
            f"{book['totals']['paid_total']:,} shillings for {len(ours):,} dividends of {DIVIDEND}",
            differences == 0 and not book["double_paid"] and book["totals"]["paid_total"] == len(ours) * DIVIDEND,
        ),
        Figure("The books after the faults", "every invariant holds", closed, closed.startswith("The books close")),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--winners", type=int, default=2_000)
    parser.add_argument("--each", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    hand_over(run(winners=options.winners, each=options.each, at_most_seconds=options.seconds, seed=options.seed))
