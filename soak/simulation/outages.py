"""Outages of M-Pesa that begin in the middle of a release at pace, on a virtual clock.

The real dispatcher sends hundreds of payouts at the pace of a seed. Its clock, its pace and M-Pesa are simulated. Each
seed has one kind of outage:
- "silent": no request is answered. M-Pesa may have executed it, or not.
- "refused": M-Pesa refuses each request for a field of ours.
- "no results": M-Pesa acknowledges each request, and posts neither results nor answers.
- "failing": M-Pesa refuses the number of each member, from the first payout on. The release has a canary.

The judge knows the limits of each kind, and counts what arrives at M-Pesa. After the outage everybody is paid once. The
whole run is one database transaction, which is rolled back. A seed always gives the same trace.
Units: seconds since the start of the run.
"""

import hashlib
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from random import Random
from statistics import median
from typing import Any, Literal

from django.db import IntegrityError, InternalError

from markets.models import Bet
from payments.models import Transaction
from payments.mpesa import client, gateway_errors
from payments.mpesa.bulk_client import Ended, Payment
from payments.mpesa.callback_urls import Addresses
from payments.payouts import breakers
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.operations import bulk_retries
from payments.payouts.sending import canary, dispatcher
from payments.policy import Policy
from payments.settlement import market_sending
from soak.simulation import snapshot
from soak.simulation.outage_provider import OutageProvider
from soak.simulation.planting import instead_of
from soak.simulation.provider import payout_of
from soak.simulation.scratch import rolled_back
from soak.simulation.seed_result import SeedResult, Violation
from soak.simulation.web import KINDS as ADDRESSES
from testing import builders
from users.audit import MACHINE
from users.models import CustomUser

KINDS = ("silent", "refused", "no results", "failing")
# Payouts that M-Pesa pays before the outage begins, and payouts beyond those that may leave in the outage.
BEFORE, SPARE = 20, 30
OUTAGE_SECONDS = 45.0
TIMEOUT_SECONDS = 15.0
QUERY_AFTER_SECONDS = 10.0
FEW = 20  # Requests that may leave beyond the pace, as the judge's limits say.
FINISH_WITHIN_SECONDS = 3 * 3600.0
SWEEP_SECONDS = 1.0
# A canary stops at this number of failed payouts, if the numbers of the members are at fault.
MOST_FAILED_IN_CANARY = 3


class VirtualTime:
    """The functions of the module `time` that the dispatcher uses, on the clock of the outage."""

    def __init__(self, world: "Outage") -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    def sleep(self, seconds: float) -> None:
        self._world.advance(seconds)


@dataclass(frozen=True)
class Pace:
    """The limiter of the dispatcher, on the clock of the outage."""

    world: "Outage"
    per_second: Decimal

    def reserve(self, count: int = 1, *, longest_wait_seconds: float) -> list[float]:
        """Reserve up to `count` slots, as rate_limit.Limiter does."""
        world, interval = self.world, 1.02 / float(self.per_second)
        world.free_at = max(world.free_at, world.now)
        slots: list[float] = []
        while len(slots) < count and world.free_at <= world.now + longest_wait_seconds:
            slots.append(world.free_at - world.now)
            world.free_at += interval
        return slots


class Outage:
    """One release, its dispatcher, one outage of M-Pesa, and the judge. It is the dispatcher's bulk gateway too."""

    def __init__(self, seed: int, kinds: tuple[str, ...], *, keep_trace: bool) -> None:
        self.random = Random(f"outage {seed}")
        self.now = self.free_at = 0.0
        self.kind = kinds[seed % len(kinds)]
        self.pace = self.random.choice([3, 4])
        self.latency = self.random.choice([0.05, 0.2, 0.6])
        self.policy: Policy = builders.policy(
            query_after=timedelta(seconds=QUERY_AFTER_SECONDS), canary=(1, 10) if self.kind == "failing" else ()
        )
        self.addresses = Addresses(callback_url="https://kasoko.app/api/payments/b2c-callback/", key="k" * 40)
        self.provider = OutageProvider(
            Random(f"provider {seed}"), {}, clock=self.clock, schedule=self._schedule_named, post=self._post,
            answers_wrongly=False,
        )  # fmt: skip
        self.violations: list[Violation] = []
        self.stats: Counter[str] = Counter()
        self.trace: list[str] = []
        self._keep_trace = keep_trace
        self._hash = hashlib.sha256()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._ended: list[Ended] = []
        self._names: dict[str, str] = {}
        self._waits: list[float] = []
        self._answered_before = 0

    # --- the virtual clock -------------------------------------------------------------------------------------------

    def clock(self) -> datetime:
        """Return the time of day."""
        return builders.AT + timedelta(seconds=self.now)

    def schedule(self, seconds: float, step: Callable[[], None]) -> None:
        """Do `step` in `seconds` from now."""
        heapq.heappush(self._events, (self.now + seconds, next(self._sequence), step))

    def _schedule_named(self, seconds: float, label: str, step: Callable[[], None]) -> None:
        self.schedule(seconds, step)

    def advance(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Do the events of the next `seconds`, until the condition is true."""
        end = self.now + seconds
        while not until() and self._events and self._events[0][0] <= end:
            time, _, step = heapq.heappop(self._events)
            self.now = max(self.now, time)
            step()
        if not until():
            self.now = max(self.now, end)

    # --- the bulk gateway --------------------------------------------------------------------------------------------

    def start(self, payments: Iterable[Payment]) -> None:
        """POST each request at its time."""
        for payment in payments:
            self.schedule(max(0.0, payment.at - self.now), partial(self._pay, payment))

    def collect(self, *, patience_seconds: float, at_least: int) -> list[Ended]:
        """Return the requests that have ended, and wait for some of them."""
        self.advance(patience_seconds, until=lambda: len(self._ended) >= at_least)
        ended, self._ended = self._ended, []
        return ended

    def _pay(self, payment: Payment) -> None:
        ocid, wait = payment.request["originator_conversation_id"], self.latency * self.random.uniform(0.5, 1.5)
        response: client.Accepted | gateway_errors.GatewayError
        try:
            response = self.provider.pay(**payment.request)
        except gateway_errors.GatewayError as error:
            response = error
        if isinstance(response, gateway_errors.OutcomeUnknown) and not response.duplicate:
            wait = TIMEOUT_SECONDS
        elif not self.provider.outage:
            self._waits.append(wait)
        self.note(f"POST {ocid}: {type(response).__name__}")
        self.schedule(wait, lambda: self._ended.append(Ended(payment.key, response)))

    # --- workers -----------------------------------------------------------------------------------------------------

    def _post(self, url: str, body: bytes) -> bool:
        kind, token = url.rstrip("/").split("/")[-2:]
        callbacks.store(
            kind=ADDRESSES[kind], token=token, body=body, source_ip="196.201.214.200", trusted=True, at=self.clock(),
            addresses=self.addresses,
        )  # fmt: skip
        self.schedule(0.05, self._apply_stored)
        return True

    def _apply_stored(self) -> None:
        waiting = callbacks.to_apply(after=0, limit=200)
        if waiting:
            for pk in callbacks.apply_paid(callback_ids=waiting, at=self.clock(), policy=self.policy):
                callbacks.apply(callback_id=pk, at=self.clock(), policy=self.policy)

    def _sweep(self) -> None:
        """Ask about due attempts, as Dispatcher.ask_due does, and sweep again in a second."""
        self.schedule(SWEEP_SECONDS, self._sweep)
        at, taken = self.clock(), False
        queries = status_queries.ask(at=at, policy=self.policy, addresses=self.addresses, limit=8)
        for query in queries:
            self.note(f"asks about {query.originator_conversation_id}")
            conversation_id = status_queries.post(query, gateway=self.provider, addresses=self.addresses)
            status_queries.record_put(query, conversation_id)
            taken |= conversation_id is not None
        if taken:
            breakers.reached(at, at=self.clock())
        if queries:
            breakers.judge(at=self.clock(), policy=self.policy)

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Settle a market, let the outage begin and end, and send until everybody is paid."""
        self._settle()
        sending = dispatcher.Dispatcher(
            gateway=self.provider,  # type: ignore[arg-type]
            bulk_gateway=self,
            limiter=Pace(self, Decimal(self.pace)),  # type: ignore[arg-type]
            query_limiter=Pace(self, Decimal(self.pace)),  # type: ignore[arg-type]
            addresses=self.addresses,
            policy=self.policy,
            clock=self.clock,
            before_claim=lambda: None,
            in_flight=400,
        )
        self.schedule(SWEEP_SECONDS, self._sweep)
        with instead_of(dispatcher, "time", VirtualTime(self)):
            self._send(sending, until=self._is_under_way, within=300.0)
            usual, failed_before = median(self._waits or [0.0]), self._failed()
            self.provider.outage = self.kind
            self.note(f"the outage begins: {self.kind}")
            self._send(sending, until=lambda: False, within=OUTAGE_SECONDS)
            self._judge_outage(usual)
            self.provider.outage = ""
            self.note("the outage ends")
            self.stats["failed in the outage"] = self._failed() - failed_before
            if not self.violations:
                self._send(sending, until=self._is_over, within=FINISH_WITHIN_SECONDS)
                self._judge_end()

    def limit(self, usual: float) -> int:
        """Return the number of requests that may leave in the outage."""
        seconds = {"silent": max(4 * usual, 1.0), "refused": 1.0, "no results": QUERY_AFTER_SECONDS, "failing": 0.0}
        return FEW + int(self.pace * seconds[self.kind]) + self._most_probes()

    def _most_probes(self) -> int:
        """Return the number of probes that may leave during the outage: the pauses double up to the longest pause."""
        pause, longest = self.policy.breaker_pause.total_seconds(), self.policy.breaker_longest_pause.total_seconds()
        count, time = 0, pause
        while time <= OUTAGE_SECONDS:
            count += 1
            time += min(pause * 2**count, longest)
        return count

    def _settle(self) -> None:
        before = 0 if self.kind == "failing" else BEFORE
        winners = before + self.limit(self.latency) + SPARE
        members = CustomUser.objects.bulk_create(
            CustomUser(phone_number=f"2547{number:08d}", full_name="Member", password="!") for number in range(winners)
        )
        market = builders.market(fee_pct=0)
        Bet.objects.bulk_create(
            Bet(market=market, user=member, outcome="Yes", amount=Decimal(100), placed_at=builders.AT)
            for member in members
        )
        builders.resolve(market, "Yes", policy=self.policy)
        builders.settle(market, policy=self.policy)
        self.payouts = {payout.ref for payout in snapshot.take(self._names).payouts}
        self.stats["winners"] = winners

    def _send(self, sending: dispatcher.Dispatcher, *, until: Callable[[], bool], within: float) -> None:
        """Run the dispatcher each second, as beat does, until the condition is true or the time is over."""
        end = self.now + within
        while self.now < end and not until():
            if self.kind == "failing" and not self.provider.outage:
                self._let_go()
            sending.run(keep_going=lambda: self.now < end and not until())
            self.advance(SWEEP_SECONDS)

    def _let_go(self) -> None:
        """Let the stopped release go on, and retry the payouts that failed, as an operator does after the outage."""
        for release in canary.stopped(at=self.clock(), policy=self.policy):
            market_sending.let_go(
                settlement_id=release.settlement.pk, by=MACHINE, reason="The fault is over.", at=self.clock()
            )
        bulk_retries.start(since=self.clock() - timedelta(hours=6), by=MACHINE, at=self.clock())

    def _is_under_way(self) -> bool:
        return self.kind == "failing" or len(self.provider.book) >= BEFORE

    def _is_over(self) -> bool:
        if len({payout_of(payment.ocid) for payment in self.provider.book}) < len(self.payouts):
            return False
        return not Transaction.objects.filter(destination="mpesa").exclude(status="COMPLETED").exists()

    # --- the judge ---------------------------------------------------------------------------------------------------

    def _failed(self) -> int:
        payouts = snapshot.take(self._names).payouts
        return sum(payout.status in ("FAILED", "HELD") for payout in payouts)

    def _judge_outage(self, usual: float) -> None:
        arrived, limit = self.provider.arrived, self.limit(usual)
        self.stats["requests in an outage"] = arrived
        self.note(f"{arrived} requests in the outage, at most {limit}")
        self._judge_books()
        if arrived > limit:
            self.accuse(f"An outage ({self.kind}) lets few requests leave", f"{arrived} left, at most {limit} may")
        failed = self._failed()
        if self.kind == "refused" and failed:
            self.accuse("No payout is FAILED for a fault of ours", f"{failed} winners failed")
        if self.kind == "failing" and failed > MOST_FAILED_IN_CANARY:
            evidence = f"{failed} winners failed, at most {MOST_FAILED_IN_CANARY} may"
            self.accuse("A canary that ends badly stops its release", evidence)

    def _judge_end(self) -> None:
        self._judge_books()
        times = Counter(payout_of(payment.ocid) for payment in self.provider.book)
        for payout in snapshot.take(self._names).payouts:
            if times[payout.ref] > 1:
                self.accuse("Nobody is paid twice", f"{payout.ref} was paid {times[payout.ref]} times")
            if times[payout.ref] != 1 or payout.status != "COMPLETED":
                self.accuse("After an outage everybody is paid", f"{payout.ref} is {payout.status}: {payout.reason}")

    def _judge_books(self) -> None:
        for rule, evidence in snapshot.take(self._names).broken:
            self.accuse(rule, evidence)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now:10.3f} {self._named(text)}"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.trace.append(line)

    def accuse(self, rule: str, evidence: str, found_by: Literal["judge", "database", "crash"] = "judge") -> None:
        """Record a violation."""
        self.violations.append(Violation(rule, self._named(evidence), int(self.now), found_by))

    def _named(self, text: str) -> str:
        ref = next((word.strip(":") for word in text.split() if payout_of(word.strip(":")) in self._names), "")
        text = text.replace(payout_of(ref), self._names[payout_of(ref)]) if ref else text
        return " ".join(self._names.get(word, word) for word in text.split())

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()


def run(
    seed: int,
    *,
    plant: Callable[[Any], AbstractContextManager[None]] | None = None,
    fixed_rates: Mapping[str, float] | None = None,
    keep_trace: bool = False,
) -> SeedResult:
    """Run one outage in a transaction that is rolled back, and return its result.

    `plant` plants a bug. `fixed_rates` names the kinds of outages; without it each seed has the next kind.
    Needs a connection to a migrated, empty database.
    Idempotent: the same seed and the same code give the same trace.
    """
    snapshot.prepare()
    outage = Outage(seed, tuple(fixed_rates or KINDS), keep_trace=keep_trace)
    logging.disable(logging.CRITICAL)
    try:
        with rolled_back(), plant(outage) if plant else nullcontext():
            outage.run()
    except (IntegrityError, InternalError) as error:
        evidence = f"{type(error).__name__} {error}".strip()
        outage.accuse("A service never tries a statement that PostgreSQL's guards refuse", evidence, "database")
    except Exception as error:
        evidence = f"{type(error).__name__} {error}".strip()
        outage.accuse("No service fails with an unexpected exception", evidence, "crash")
    finally:
        logging.disable(logging.NOTSET)
    outage.stats["steps"] = int(outage.now)
    return SeedResult(seed, outage.trace_hash, tuple(outage.violations), outage.stats, tuple(outage.trace))
