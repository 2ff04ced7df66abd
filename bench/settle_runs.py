"""Settlements and bettors of the bench, each in its own process.

A process of its own is needed to measure the memory of one settlement. bench/settle.py starts the processes:
`python -m bench.settle_runs --one <market>` settles a market, and `--bet <markets> <members>` places bets.
"""

import argparse
import json
import logging
import os
import secrets
import signal
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

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
# ruff: noqa: E402 - Django must be set up before models are imported.
django.setup()

from django.db import connection, transaction
from django.utils import timezone

from bench import floor
from markets.models import Bet
from payments import wiring
from payments.ledger import journal
from payments.models import Settlement, Transaction
from payments.settlement import resolutions, settling
from payments.settlement.decision import Decision
from payments.settlement.pacing import paced
from payments.wallet import bets as wallet_bets
from testing.figures import say
from users import audit

KILLS = 5
BETTORS = 4
BETTING_SECONDS = 10.0
# A trigger of bench/settle.py sets bench.locked_at to the moment at which wallets were locked.
SINCE_LOCKED = "SELECT extract(epoch FROM clock_timestamp() - current_setting('bench.locked_at')::timestamptz)"


@dataclass(frozen=True)
class Run:
    """Cost of one settlement in its own process.

    Units: seconds. `wal` is in bytes. `in_database` is the part of `seconds` that was spent in queries.
    `longest_lock` is the longest time for which wallets were locked. `cpu` is the CPU time of the database server's
    process. `memory_mb` is the peak memory of the Python process. `began` is a time of the monotonic clock.
    """

    seconds: float
    in_database: float
    longest_lock: float
    memory_mb: float
    wal: int
    began: float
    cpu: float


# --- the measured process ---------------------------------------------------------------------------------------------


def settle_one(market_id: int, warm_up: int | None) -> None:
    """Settle one market through the service and print its cost.

    If `warm_up` names a small market, that market is settled first. In production a worker already has a connection,
    query plans and the catalog when a settlement begins.
    """
    spent, locked, wallets_wait = 0.0, [0.0], False

    def watch(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal spent, wallets_wait
        if wallets_wait:  # The last statement locked wallets, so this statement follows its commit.
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
    """Place bets through the service, one after another, until standard input is closed.

    Prints the start and the duration of each bet at the end. Units: seconds.
    """
    # This thread ends when standard input ends.
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


def _spawn(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.settle_runs", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- runs -------------------------------------------------------------------------------------------------------------


def settle(market_id: int, warm_up: int) -> Run:
    """Resolve a market and settle it in a new process, after a small market that is not measured."""
    resolve(warm_up)
    resolve(market_id)
    floor.checkpoint()
    child = _spawn("--one", str(market_id), "--warm-up", str(warm_up))
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"The process that settled market {market_id} ended with exit status {child.returncode}.")
    return Run(**json.loads(output.strip().splitlines()[-1]))


def resolve(market_id: int) -> None:
    """Resolve a market in favour of Yes."""
    resolutions.resolve(
        market_id=market_id,
        decision=Decision("WINNER", {"Yes": Decimal(100)}),
        by=audit.MACHINE,
        at=timezone.now(),
        policy=wiring.policy(),
    )


def row_by_row(market_id: int) -> float:
    """Write the same rows one by one through the ORM, roll them back, and return the seconds that this took."""
    resolve(market_id)
    settlement = Settlement.objects.get(market=market_id)
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
            payout = Transaction.objects.create(
                user=bet.user, settlement=settlement, type="PAYOUT", amount=int(bet.payout), destination="mpesa",
                tranche=bet.pk % 32_768, external_ref=f"KASOKO-{market_id}-{bet.user_id}-{bet.pk}",
                phone_number=bet.user.phone_number, due_at=at,
            )  # fmt: skip
            accounts = (journal.pool(market_id), journal.PAYABLE)
            journal.post([journal.Entry(f"payout:{payout.pk}", *accounts, payout.amount, payout.pk)], at=at)
        transaction.set_rollback(True)
    return time.perf_counter() - began


def digest(market_id: int) -> str:
    """Return a checksum of all results, dividends and transactions of a market, in the order of its bets."""
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
    """Return the difference between dividends + fee and the pool, plus the balance that is left in the pool's account.

    Both amounts are absolute, so any error makes the sum positive. Units: shillings.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT abs((SELECT sum(payout) FROM markets_bet WHERE market_id = s.market_id) + s.fee - s.pool)"
            " FROM payments_settlement s WHERE s.market_id = %s",
            [market_id],
        )
        return Decimal(cursor.fetchone()[0]) + abs(journal.balance(journal.pool(market_id)))


def settle_with_kills(market_id: int, expected_seconds: float) -> int:
    """Settle a market whose worker is killed with -9 at random moments, and return the number of kills."""
    resolve(market_id)
    kills = 0
    for _ in range(KILLS):
        child = _spawn("--one", str(market_id))
        # Python takes a while to start, so the child prints this line when it begins to settle.
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
    # The last kill may come after the settlement's last commit.
    if Settlement.objects.filter(market=market_id, state="SETTLED").exists():
        return kills
    child = _spawn("--one", str(market_id))
    child.communicate()
    if child.returncode:
        raise SystemExit(f"Market {market_id} did not settle after {kills} kills.")
    return kills


@dataclass(frozen=True)
class Betting:
    """Bets in one period of time: bets a second, and the duration of each bet in seconds, sorted."""

    per_second: float
    took: list[float]

    @classmethod
    def between(cls, bets: list[tuple[float, float]], began: float, ended: float) -> "Betting":
        """Return the bets that began between two moments."""
        took = sorted(seconds for at, seconds in bets if began <= at < ended)
        return cls(len(took) / (ended - began), took)

    @property
    def p99(self) -> float:
        return self.took[int(0.99 * len(self.took))]


def betting_beside(markets: list[int], members: range, work: Callable[[], Run]) -> tuple[Betting, Betting, Betting]:
    """Let BETTORS processes bet on markets. Return the bets before, during and after `work`."""
    arguments = ("--bet", f"{markets[0]}:{markets[-1] + 1}:1", f"{members.start}:{members.stop}:{members.step}")
    children = [_spawn(*arguments) for _ in range(BETTORS)]
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int)
    parser.add_argument("--warm-up", type=int)
    parser.add_argument("--bet", nargs=2)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    if options.bet:
        bet_on(*(range(*map(int, numbers.split(":"))) for numbers in options.bet))
    else:
        settle_one(options.one, options.warm_up)
