"""Settling a market of 1,000 to 1,000,000 bets, beside the cheapest way to write the same rows.

`python -m bench.settle [--full]`, on the database that `python -m bench` made. Twin markets have the same bets in the
same order, so each run settles a fresh one, and all of them must end in the same cents. A run is a process of its own;
what it costs in memory is its own too.
"""

import argparse
import json
import logging
import os
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import django
from django.db import connection

from bench.figures import Line, Measured, Row, at_least, at_most, hand_over, median_ratio
from testing.figures import say

TIMES = {1_000: 7, 10_000: 5, 100_000: 3, 1_000_000: 1}
ROW_BY_ROW = {1_000: 3, 10_000: 1}
WARM_UP = 30
KILLS = 5
BETTORS = 4
# Fires just before wallets are locked, as triggers of one kind do in the order of their names.
TIMED = """
CREATE FUNCTION bench_time_lock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('bench.locked_at', clock_timestamp()::text, false);
    RETURN NULL;
END $$;
CREATE TRIGGER transfer_is_timed AFTER INSERT ON payments_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION bench_time_lock();
"""
SINCE_LOCKED = "SELECT extract(epoch FROM clock_timestamp() - current_setting('bench.locked_at')::timestamptz)"
BETTING_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """One settlement in a process of its own: seconds, of which in the database; the longest that wallets were locked;
    the most memory its Python had, in MB; bytes of WAL; when it began, by the machine's monotonic clock;
    the seconds that the server's process for it was on a processor."""

    seconds: float
    in_database: float
    longest_lock: float
    memory_mb: float
    wal: int
    began: float
    cpu: float


# --- in a process of its own ------------------------------------------------------------------------------------------


def settle_one(market_id: int, warm_up: int | None) -> None:
    """Settle one market through the service and print what it cost.

    A small one first, where one is named: a worker that has been running has its connection, plans and catalog at hand.
    """
    from django.utils import timezone

    from bench import floor
    from payments import wiring
    from payments.settlement import settling
    from payments.settlement.pacing import paced

    spent, locked, wallets_wait = 0.0, [0.0], False

    def watch(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal spent, wallets_wait
        if wallets_wait:  # The statement after the one that locked wallets comes after the commit.
            with context["connection"].connection.cursor() as cursor:
                cursor.execute(SINCE_LOCKED)
                locked.append(float(cursor.fetchone()[0]))
        wallets_wait = "INSERT INTO payments_transfer" in sql
        began = time.perf_counter()
        try:
            return call(sql, params, many, context)
        finally:
            spent += time.perf_counter() - began

    policy = wiring.policy()
    if warm_up:
        settling.settle(market_id=warm_up, at=timezone.now(), policy=policy, keep_going=lambda: True)
    say("begun")
    wal, cpu, at = floor.wal_written(), floor.cpu_spent(), time.monotonic()
    with connection.execute_wrapper(watch):
        began = time.perf_counter()
        progress = settling.settle(
            market_id=market_id, at=timezone.now(), policy=policy, keep_going=paced(lambda: True)
        )
        seconds = time.perf_counter() - began
    cpu = floor.cpu_spent() - cpu
    if not progress.settled:
        raise SystemExit(f"Market {market_id} did not settle: {progress}.")
    status = Path("/proc/self/status").read_text()
    memory_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
    say(json.dumps(asdict(Run(seconds, spent, max(locked), memory_mb, floor.wal_written() - wal, at, cpu))))


def bet_on(markets: range, members: range) -> None:
    """Place bets through the service, one after another, until standard input is closed; then print when each began and
    how long it took, in seconds.
    """
    from django.utils import timezone

    from payments.wallet import bets as wallet_bets

    # A thread that waits for the end of standard input; it is gone when that has come.
    listening = threading.Thread(target=sys.stdin.read, daemon=True)
    listening.start()
    bets: list[tuple[float, float]] = []
    while listening.is_alive():
        began = time.monotonic()
        wallet_bets.place(
            user_id=secrets.choice(members),
            market_id=secrets.choice(markets),
            outcome="Yes",
            amount=Decimal(10),
            client_ref=None,
            at=timezone.now(),
        )
        bets.append((began, time.monotonic() - began))
        if len(bets) == 1:
            say("ready")
    say(json.dumps(bets))


def _spawn(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.settle", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- the runs ---------------------------------------------------------------------------------------------------------


def settled(market_id: int, warm_up: int) -> Run:
    """Resolve a market and settle it in a process of its own, after a small one that does not count."""
    from bench import floor

    resolve(warm_up)
    resolve(market_id)
    floor.rested()
    child = _spawn("--one", str(market_id), "--warm-up", str(warm_up))
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"Settling market {market_id} ended with {child.returncode}.")
    return Run(**json.loads(output.strip().splitlines()[-1]))


def resolve(market_id: int) -> None:
    from django.utils import timezone

    from payments import wiring
    from payments.settlement import resolutions
    from payments.settlement.decision import Decision
    from users import audit

    resolutions.resolve(
        market_id=market_id,
        decision=Decision("WINNER", {"Yes": Decimal(100)}),
        by=audit.MACHINE,
        at=timezone.now(),
        policy=wiring.policy(),
    )


def row_by_row(market_id: int) -> float:
    """What the ORM takes to write the same rows one by one, in seconds; nothing of it is kept."""
    from django.db import transaction
    from django.utils import timezone

    from markets.models import Bet
    from payments.ledger import journal
    from payments.models import Settlement, Transaction

    resolve(market_id)
    run = Settlement.objects.get(market=market_id)
    at = timezone.now()
    began = time.perf_counter()
    with transaction.atomic():
        bets = list(Bet.objects.filter(market=market_id).select_related("user"))
        pool = sum(bet.amount for bet in bets)
        won = sum(bet.amount for bet in bets if bet.outcome == "Yes")
        for bet in bets:
            if bet.outcome != "Yes":
                bet.result = "LOST"
                bet.save(update_fields=["result"])
                continue
            bet.result = "WON"
            bet.payout = (bet.amount * pool * Decimal("0.95") / won).quantize(Decimal("0.01"))
            bet.save(update_fields=["result", "payout"])
            due = Transaction.objects.create(
                user=bet.user, settlement=run, type="PAYOUT", amount=int(bet.payout), destination="mpesa",
                tranche=bet.pk % 32_768, external_ref=f"KASOKO-{market_id}-{bet.user_id}-{bet.pk}",
                phone_number=bet.user.phone_number, due_at=at,
            )  # fmt: skip
            accounts = (journal.pool(market_id), journal.PAYABLE)
            journal.post([journal.Entry(f"payout:{due.pk}", *accounts, due.amount, due.pk)], at=at)
        transaction.set_rollback(True)
    return time.perf_counter() - began


def digest(market_id: int) -> str:
    """All verdicts, dividends and transactions of a market, in the order of its bets, as one number."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT (SELECT md5(string_agg(result || payout, ',' ORDER BY id)) FROM markets_bet WHERE market_id = %(id)s)
                || (SELECT md5(string_agg(t.user_id || t.destination || t.tranche || t.amount || t.status, ','
                        ORDER BY t.user_id, t.destination, t.tranche))
                    FROM payments_transaction t JOIN payments_settlement s ON s.id = t.settlement_id
                    WHERE s.market_id = %(id)s)
                || (SELECT s.fee || ' of ' || s.pool FROM payments_settlement s WHERE s.market_id = %(id)s)
            """,
            {"id": market_id},
        )
        return str(cursor.fetchone()[0])


def cents_left(market_id: int) -> Decimal:
    """Dividends + fee − pool, and what the pool's account still holds, in shillings: their magnitudes' sum."""
    from payments.ledger import journal

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT abs((SELECT sum(payout) FROM markets_bet WHERE market_id = s.market_id) + s.fee - s.pool)"
            " FROM payments_settlement s WHERE s.market_id = %s",
            [market_id],
        )
        return Decimal(cursor.fetchone()[0]) + abs(journal.balance(journal.pool(market_id)))


def killed(market_id: int, expected_seconds: float) -> int:
    """Settle a market with kill -9 at random moments, then to its end; how often it was killed."""
    resolve(market_id)
    kills = 0
    for _ in range(KILLS):
        child = _spawn("--one", str(market_id))
        # It says so when it begins, however long Python took to get there.
        if child.stdout is None or child.stdout.readline() != "begun\n":
            raise SystemExit(f"Settling market {market_id} did not begin.")
        try:
            child.wait(expected_seconds / KILLS * secrets.SystemRandom().uniform(0.3, 1.0))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
        else:
            return kills
    child = _spawn("--one", str(market_id))
    child.communicate()
    if child.returncode:
        raise SystemExit(f"Market {market_id}, killed {kills} times, did not settle then.")
    return kills


@dataclass(frozen=True)
class Betting:
    """What was seen of betting in some stretch of time: bets a second, and the seconds each took, sorted."""

    per_second: float
    took: list[float]

    @classmethod
    def between(cls, bets: list[tuple[float, float]], began: float, ended: float) -> "Betting":
        took = sorted(seconds for at, seconds in bets if began <= at < ended)
        return cls(len(took) / (ended - began), took)

    @property
    def p99(self) -> float:
        return self.took[int(0.99 * len(self.took))]


def betting_beside(markets: list[int], members: range, work: Callable[[], Run]) -> tuple[Betting, Betting, Betting]:
    """Let BETTORS processes bet on markets all the time; what that was like before, during and after the work."""
    words = ("--bet", f"{markets[0]}:{markets[-1] + 1}:1", f"{members.start}:{members.stop}:{members.step}")
    children = [_spawn(*words) for _ in range(BETTORS)]
    for child in children:
        if child.stdout is None or child.stdout.readline() != "ready\n":
            raise SystemExit("A bettor could not bet.")
    time.sleep(BETTING_SECONDS)
    run = work()
    time.sleep(BETTING_SECONDS)
    bets = [(at, took) for child in children for at, took in json.loads(child.communicate()[0])]
    began, ended = run.began, run.began + run.seconds
    return (
        Betting.between(bets, began - BETTING_SECONDS, began),
        Betting.between(bets, began, ended),
        Betting.between(bets, ended, ended + BETTING_SECONDS),
    )


def main(*, full: bool) -> None:
    from bench import floor, population
    from bench.servers import server_directory

    place = server_directory(os.environ["KASOKO_BENCH_ROOT_URL"])
    floor.make_twins()
    with connection.cursor() as cursor:
        cursor.execute(TIMED)
    warm_ups = iter(population.gather(bets=WARM_UP, twins=sum(TIMES.values()) + 1, others=0).twins)
    sizes = [size for size in TIMES if full or size < 1_000_000]
    rows: list[Row] = []
    seen: dict[int, list[Run]] = {}
    floors: dict[int, list[floor.Cost]] = {}
    by_row: dict[int, float] = {}
    for size in sizes:
        last = size == sizes[-1]
        gathered = population.gather(bets=size, twins=TIMES[size] + ROW_BY_ROW.get(size, 0) + 2 * last)
        say(f"settle: {size:,} bets on each of {len(gathered.twins)} markets are there")
        twins = iter(gathered.twins)
        seen[size], floors[size] = [], []
        done = []
        for _ in range(TIMES[size]):
            market = next(twins)
            done.append(market)
            seen[size].append(settled(market, next(warm_ups)))
            floors[size].append(floor.measure(market, place))
            one, other = seen[size][-1], floors[size][-1]
            say(
                f"settle: {size:,} in {one.seconds:.3f} s, floor {other.seconds:.3f} s, ratio "
                f"{one.seconds / other.seconds:.2f}; WAL {one.wal / 1e6:.1f} over {other.wal / 1e6:.1f} MB; wallets "
                f"locked {one.longest_lock * 1000:.0f} ms; Python {one.memory_mb:.0f} MB"
            )
        for _ in range(ROW_BY_ROW.get(size, 0) if full or size < 10_000 else 0):
            by_row[size] = min(by_row.get(size, 1e9), row_by_row(next(twins)))
            say(f"settle: {size:,} row by row in {by_row[size]:.1f} s")
        rows.append(_cost(size, seen[size], floors[size], by_row.get(size)))
        if last:
            rows += _largest(size, gathered, list(twins), done, seen[size], next(warm_ups))
    rows += _across(sizes, seen, floors)
    lines = [
        Line("settle", name, [(size, statistics.median(seconds)) for size, seconds in points.items()],
             "Settling a market: time against size", "bets", "seconds")
        for name, points in {
            "ours": {size: [run.seconds for run in runs] for size, runs in seen.items()},
            "floor: COPY of the same rows": {size: [cost.seconds for cost in costs] for size, costs in floors.items()},
            "row by row": {size: [seconds] for size, seconds in by_row.items()},
        }.items()
    ]  # fmt: skip
    lines += [
        Line("settle-memory", "Python, at most", [(size, statistics.median(run.memory_mb for run in runs))
             for size, runs in seen.items()], "Settling a market: memory against size", "bets", "MB")
    ]  # fmt: skip
    hand_over(Measured(rows, lines, WORDS))


WORDS = [
    "The floor is one aggregate over the market's bets, COPY by the server of the very rows that the settlement wrote "
    "(verdicts as rows of their own; transactions and transfers into twins with the same columns, checks, indexes and "
    "foreign keys, without triggers) and the winners' balances in one UPDATE, in one transaction. Both begin from a "
    "checkpoint, so ours pays for full images of the bets' pages, which the floor's new pages do not need.",
    "What ours does beyond the floor: it updates bets in place, reads them again by member, looks for the ends of "
    "chunks, draws, sorts and joins what it inserts, locks wallets in order before it moves them, and looks once a "
    "statement that what is named is there. Each is an estimated tenth of a settlement of 100,000; none was measured "
    "alone. Considered and not tried here: results in a table of their own (`bet.result` in SQL would need a view), "
    "temporary tables of sums (rebuilt after each crash, lost behind a pooler), verdicts and money of a member in one "
    "step. S5 is the longest of all chunks, so one slow commit decides it; S5, S6 and the clock of S3 are times, and "
    "want a machine that nobody else uses.",
]


def _cost(size: int, runs: list[Run], costs: "list[Any]", by_row: float | None) -> Row:
    ratio = median_ratio([run.seconds for run in runs], [cost.seconds for cost in costs])
    ours = statistics.median(run.seconds for run in runs)
    least = statistics.median(cost.seconds for cost in costs)
    on_processor = median_ratio([run.cpu for run in runs], [cost.cpu for cost in costs])
    words = f"{on_processor:.2f} by the server's processor time alone"
    words += f"; row by row {by_row:.1f} s, {by_row / ours:.0f} times ours" if by_row else ""
    bars = size >= 100_000
    met, stretched = at_most(ratio, 3.0, 2.0) if bars else (None, None)
    return Row(
        {100_000: "S1", 1_000_000: "S2"}.get(size, ""),
        f"settle {size:,} bets (median of {len(runs)})",
        f"{ours:.3f} s",
        f"{least:.3f} s",
        ratio,
        "≤ 3" if bars else "",
        "≤ 2" if bars else "",
        met,
        stretched,
        words,
    )


def _largest(size: int, gathered: Any, left: list[int], done: list[int], runs: list[Run], warm_up: int) -> list[Row]:
    """What is looked at on the largest market only: locks, the other markets' bettors, and kills."""
    from bench import population

    calm, victim = left
    longest = statistics.median(run.longest_lock for run in runs) * 1000
    met, stretched = at_most(longest, 150.0, 50.0)
    rows = [
        Row("S5", f"longest that a wallet is locked while {size:,} bets settle", f"{longest:.0f} ms", must="≤ 150 ms",
            stretch="≤ 50 ms", met=met, stretched=stretched,
            how_far="from the first lock of a chunk to its commit; the rows that need no wallet are written before")
    ]  # fmt: skip
    members = population.fill_wallets(members=400, crowd=gathered)
    before, during, after = betting_beside(gathered.others, members, lambda: settled(calm, warm_up))
    took = statistics.median(run.seconds for run in runs)
    ratio = during.per_second / ((before.per_second + after.per_second) / 2)
    p99 = during.p99 * 1000
    met, stretched = at_least(ratio, 0.75, 0.9)
    say(f"settle: bets a second {before.per_second:.0f}, {during.per_second:.0f} during, {after.per_second:.0f} after")
    rows.append(
        Row("S6", f"bets/s of {BETTORS} processes on {len(gathered.others)} other markets while {size:,} settle",
            f"{during.per_second:.0f}/s, p99 {p99:.0f} ms, longest {during.took[-1] * 1000:.0f} ms",
            f"{before.per_second:.0f}/s before, p99 {before.p99 * 1000:.0f} ms; "
            f"{after.per_second:.0f}/s after",
            ratio, "≥ 0.75, p99 < 50 ms", "≥ 0.9", met and p99 < 50, stretched and p99 < 50,
            "the bettors' wallets are among those credited; all share the machine's cores")
    )  # fmt: skip
    kills = killed(victim, took)
    expected = digest(done[0])
    same = all(digest(market) == expected for market in [*done, calm, victim])
    off = sum((cents_left(market) for market in [*done, calm, victim]), Decimal(0))
    rows.append(
        Row("S7", f"dividends + fee − pool of {len(done) + 2} markets of {size:,}, one of them under {kills} kill -9",
            f"{off:.2f} shillings; {'the same cents in all' if same else 'DIFFERENT cents'}", must="0", stretch="0",
            met=same and off == 0 and kills > 0, stretched=same and off == 0 and kills > 0,
            how_far="each verdict, dividend and transaction is compared with an undisturbed twin's")
    )  # fmt: skip
    return rows


def _across(sizes: list[int], seen: dict[int, list[Run]], floors: "dict[int, list[Any]]") -> list[Row]:
    """What is compared between sizes, or belongs to no one of them."""
    small = statistics.median(run.cpu for run in seen[1_000]) * 1000
    waited = statistics.median(run.in_database for run in seen[1_000]) * 1000
    met, stretched = at_most(small, 50.0, 20.0)
    rows = [
        Row("S3", "settle 1,000 bets, in the database: its processor time", f"{small:.1f} ms", must="< 50 ms",
            stretch="< 20 ms", met=met, stretched=stretched,
            how_far=f"{waited:.0f} ms by the clock, with what others used of the machine")
    ]  # fmt: skip
    wide = [size for size in sizes if size >= 10_000]
    for size in wide:
        wal = median_ratio([run.wal for run in seen[size]], [cost.wal for cost in floors[size]])
        met, stretched = at_most(wal, 1.6, 1.2)
        ours, least = (statistics.median(one.wal for one in side[size]) / 1e6 for side in (seen, floors))
        rows.append(Row("S4", f"WAL of settling {size:,} bets", f"{ours:.1f} MB", f"{least:.1f} MB", wal, "≤ 1.6",
                        "≤ 1.2", met, stretched, "after a checkpoint, with full page images"))  # fmt: skip
    first, largest = sizes[0], sizes[-1]
    growth = max(run.memory_mb for run in seen[largest]) - min(run.memory_mb for run in seen[first])
    met, stretched = at_most(growth, 20.0, 10.0)
    peak = max(run.memory_mb for run in seen[largest])
    rows.append(
        Row("S8", f"growth of the worker's memory from {first:,} to {largest:,} bets", f"{growth:.1f} MB",
            must="≤ 20 MB", stretch="≤ 10 MB", met=met, stretched=stretched, how_far=f"at most {peak:.0f} MB in all")
    )  # fmt: skip
    if largest == 1_000_000:
        times = statistics.median(r.seconds for r in seen[largest]) / statistics.median(
            r.seconds for r in seen[100_000]
        )
        rows.append(Row("S2", "time of 1,000,000 bets ÷ of 100,000", f"{times:.1f} times", must="≤ 12 times",
                        met=times <= 12))  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--one", type=int)
    parser.add_argument("--warm-up", type=int)
    parser.add_argument("--bet", nargs=2)
    asked = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
    django.setup()
    logging.disable(logging.INFO)
    if asked.one:
        settle_one(asked.one, asked.warm_up)
    elif asked.bet:
        bet_on(*(range(*map(int, words.split(":"))) for words in asked.bet))
    else:
        main(full=asked.full)
