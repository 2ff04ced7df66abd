"""One seed, one small world: the real services on a real PostgreSQL, a virtual clock, a scripted M-Pesa.

All of it happens inside one database transaction that is rolled back at the end; each service's own transaction is a
savepoint in it, so what a crash did not commit is gone. The seed decides every fault, every order and every crash.
After each step every invariant of the money is checked, in SQL and against M-Pesa's own book. Then the faults stop, and
everything must become final. Whatever a trace shows is the same in each run of its seed: ids and references, which the
database draws, appear in it as p1, p2, ….
"""

import hashlib
import heapq
import itertools
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from random import Random

from django.db import Error as DatabaseError
from django.db import connection, transaction

from markets.models import Bet, Market
from payments import failpoints
from payments.ledger import invariants
from payments.models import Callback
from payments.mpesa import gateway_errors
from payments.mpesa.callback_urls import Addresses
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.operations import actions, failures
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.settlement import settling
from soak.simulation.outcome import Outcome, Violation
from soak.simulation.provider import RATES, UNREGISTERED_SHARE, Provider, payout_of, result_body, status_body
from testing import builders
from users.audit import MACHINE
from users.models import CustomUser

START = builders.AT
HEAL_FOR = timedelta(hours=52)
RECENT = timedelta(hours=60)
LIARS_SHARE = 0.15
CONFIRM_ABOVE = builders.policy().confirm_above
FINAL = ("COMPLETED", "FAILED", "HELD", "CANCELLED")
KINDS = {
    "b2c-callback": Callback.Kind.RESULT,
    "b2c-timeout": Callback.Kind.TIMEOUT,
    "status-result": Callback.Kind.STATUS,
}
WORLD_RATES = {
    "message lost": 0.6,
    "message doubled": 0.4,
    "worker killed": 0.1,
    "worker dies inside": 0.15,
    "worker stalls": 0.1,
    "beat dies": 0.1,
    "operator": 0.3,
    "forger": 0.8,
    "strange address": 0.3,
}
Task = Generator[float, None, None]
Plant = Callable[["World"], AbstractContextManager[None]]


class Crash(BaseException):
    """The process died here. No service may catch it."""


@dataclass(frozen=True)
class Payout:
    """A payout over M-Pesa, as the last look at the database saw it."""

    id: int
    ref: str
    status: str
    amount: int
    redirected: bool
    reason: str


@dataclass(frozen=True)
class Attempt:
    ocid: str
    ref: str
    state: str
    receipt: str
    asking: bool


@dataclass(frozen=True)
class Sight:
    """One look at the whole database: what broke an invariant, where each payout is, what a sweep would find."""

    broken: list[tuple[str, str]]
    payouts: list[Payout]
    attempts: list[Attempt]
    settle: bool
    apply: bool
    send_at: datetime | None
    ask_at: datetime | None


_SIGHT = """
SELECT 'payout', t.external_ref, t.status, t.id::text, trunc(t.amount)::text, t.reason,
    EXISTS (SELECT FROM payments_transfer f WHERE f.transaction_id = t.id AND f.code = 'redirect')::text
FROM payments_transaction t WHERE t.destination = 'mpesa'
UNION ALL SELECT 'attempt', a.originator_conversation_id, a.state, a.id::text, t.external_ref, a.receipt,
    (a.next_query_at IS NOT NULL)::text
FROM payments_attempt a JOIN payments_transaction t ON t.id = a.transaction_id
UNION ALL SELECT 'next',
    (SELECT count(*) FROM payments_settlement WHERE state IN ('PENDING', 'DIVIDING'))::text,
    (SELECT count(*) FROM payments_callback WHERE applied_at IS NULL)::text,
    extract(epoch FROM greatest(
        least((SELECT min(due_at) FROM payments_transaction WHERE status = 'PENDING' AND destination = 'mpesa'),
              (SELECT min(resend_at) FROM payments_attempt)),
        (SELECT max(probe_at) FROM payments_breaker WHERE opened_at IS NOT NULL)))::text,
    extract(epoch FROM (SELECT min(next_query_at) FROM payments_attempt
        WHERE state NOT IN ('WAITING', 'PAID')))::text, '', ''
"""
LOOK = "\nUNION ALL ".join(
    [
        _SIGHT,
        *(
            f"SELECT 'broken', '{rule.replace(chr(39), 2 * chr(39))}', x.what, '', '', '', '' FROM ({sql}) x (what)"  # noqa: S608
            for rule, sql in invariants.INVARIANTS.items()
        ),
    ]
)


def prepare_look() -> None:
    """Have this connection plan its look at the database once; planning it costs more than looking."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_prepared_statements WHERE name = 'simulation_look'")
        if cursor.fetchone() is None:
            cursor.execute(f"PREPARE simulation_look AS {LOOK}")


class World:
    """The clock, the faults, the workers, beat, the operator, the forger, and the record of what happened."""

    def __init__(self, seed: int, *, likely: Mapping[str, float], keep_trace: bool) -> None:
        self.random = Random(f"world {seed}")
        self.now = START
        self.rates = self._draw_rates(WORLD_RATES, likely)
        self.has_beat = True
        self.violations: list[Violation] = []
        self.stats: Counter[str] = Counter()
        self.steps = 0
        self.trace: list[str] = []
        self._keep_trace = keep_trace
        self._hash = hashlib.sha256()
        self._events: list[tuple[datetime, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._tasks: deque[tuple[str, Task]] = deque()
        self._idle = self.random.choice([1, 2, 3])
        self._names: dict[str, str] = {}
        self._forged_paid: set[str] = set()
        self._beat_dead_until = START
        self._beat_at: datetime | None = None
        self._last_beat = START
        self._fruitless = 0
        self._touched = False
        self._operator_passes = 0
        self.policy = builders.policy(
            production=self.random.random() < 0.5,
            settlement_chunk=self.random.choice([2, 3, 20_000]),
            breaker_window=self.random.choice([5, 20]),
            max_amount=self.random.choice([100_000, 250_000]),
            canary=self.random.choice([(), (1,), (1, 3)]),
        )
        self.addresses = Addresses(callback_url="https://kasoko.app/api/payments/b2c-callback/", key="k" * 40)
        self.provider = Provider(
            Random(f"provider {seed}"),
            self._draw_rates(RATES, likely),
            clock=lambda: self.now,
            schedule=self.schedule,
            post=self.post,
            lies_at_will=self.random.random() < LIARS_SHARE,
        )
        long_trouble = self.random.random() < 0.1
        self._heal_at = START + timedelta(minutes=self.random.uniform(40, 90) if long_trouble else 1)
        if not long_trouble:
            self._heal_at += timedelta(minutes=self.random.uniform(0, 14))
        self.sight = Sight([], [], [], False, False, None, None)

    def _draw_rates(self, highest: dict[str, float], likely: Mapping[str, float]) -> dict[str, float]:
        """Half of the faults are off in any one seed, so that those that are on can go far."""
        drawn = {
            fault: self.random.uniform(0.05, 1.0) * rate if self.random.random() < 0.5 else 0.0
            for fault, rate in highest.items()
        }
        return {fault: likely.get(fault, rate) for fault, rate in drawn.items()}

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live until everything is final, or something is wrong."""
        self._begin()
        while not self.violations and self._events:
            time, _, label, step = heapq.heappop(self._events)
            self.now = max(time, self.now + timedelta(milliseconds=1))
            if self.now > self._heal_at + HEAL_FOR:
                break
            self._take(label, step)
            if not self.violations and self.provider.healed and self._is_quiet() and not self._one_more_pass():
                break
        if not self.violations:
            self._judge_the_end()
        self.stats["steps"] = self.steps
        self.stats.update(payout.status for payout in self.sight.payouts)
        self.stats.update({fault: count for fault, count in self.provider.struck.items() if count})

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def schedule(self, seconds: float, label: str, step: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + timedelta(seconds=seconds), next(self._numbers), label, step))

    def strikes(self, fault: str) -> bool:
        struck = self.random.random() < self.rates[fault] and not self.provider.healed
        self.stats[fault] += struck
        return struck

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        for known, name in self._names.items():
            what = what.replace(known, name)
        line = f"{(self.now - START).total_seconds():10.3f} {what}"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.trace.append(line)

    def accuse(self, rule: str, what: str) -> None:
        for known, name in self._names.items():
            what = what.replace(known, name)
        self.violations.append(Violation(rule, what, self.steps))

    def _take(self, label: str, step: Callable[[], None]) -> None:
        self.steps += 1
        self.note(label)
        try:
            step()
        except Crash as crash:
            self.note(f"    died at {crash}")
        except (DatabaseError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
            self.accuse("No service fails in a way nobody foresaw", f"{label}: {type(error).__name__} {error}".strip())
            return
        if self._touched:
            before, self._touched = self.sight, False
            self.sight = _look(known=self._names)
            if self.sight != before:
                self._fruitless = 0
        self._judge()
        self._plan_beat()

    def _begin(self) -> None:
        """Members, a market or two, and a resolution of each some seconds apart."""
        numbers = range(self.random.randint(4, 8))
        members = CustomUser.objects.bulk_create(
            CustomUser(phone_number=f"2547{number:08d}", full_name="Member", password="!") for number in numbers
        )
        for member in members:
            if self.random.random() < UNREGISTERED_SHARE:
                self.provider.unregistered.add(member.phone_number)
        for number in range(self.random.choice([1, 1, 2])):
            market = Market.objects.create(
                question="Will it rain tomorrow?", end_date=builders.FAR, platform_fee_pct=Decimal("5.00")
            )
            bets = []
            for member in members:
                stake = self.random.choice([15, 40, 99, 250, 1234, 20_000, 70_000])
                wins = self.random.random() < 0.8
                bets.append(
                    Bet(
                        market=market,
                        user=member,
                        outcome="Yes" if wins else "No",
                        amount=Decimal(stake),
                        placed_at=START,
                    )
                )
            Bet.objects.bulk_create(bets)
            self.schedule(20.0 * number, "operator resolves a market", partial(self._resolve, market))
        self.schedule((self._heal_at - START).total_seconds(), "the faults stop", self._heal)
        if self.rates["operator"]:
            self.schedule(10, "operator", self._operate)
        if self.rates["forger"]:
            self.schedule(5, "forger", self._forge)

    def _resolve(self, market: Market) -> None:
        self._touched = True
        builders.resolve(market, "Yes", at=self.now, policy=self.policy)
        self._send_message("settle", partial(self._settle, market.pk))

    def _heal(self) -> None:
        self.provider.heal()
        self._beat_dead_until = self.now

    def _is_quiet(self) -> bool:
        sight = self.sight
        return (
            not (sight.settle or sight.apply)
            and bool(sight.payouts)
            and all(payout.status in FINAL for payout in sight.payouts)
            and (sight.ask_at is None or all(payout.status == "HELD" for payout in self._asked_about()))
            and not any(label.startswith(("worker", "posts", "comes")) for _, _, label, _ in self._events)
        )

    def _asked_about(self) -> list[Payout]:
        asking = {attempt.ref for attempt in self.sight.attempts if attempt.asking}
        return [payout for payout in self.sight.payouts if payout.ref in asking]

    def _one_more_pass(self) -> bool:
        """Once all is quiet the operator retries what failed; nothing that a retry cures may stay failed."""
        self._operator_passes += 1
        if self._operator_passes > 2 or not any(payout.status == "FAILED" for payout in self.sight.payouts):
            return False
        self._take("operator retries what failed", self._retry_failed)
        return True

    # --- messages, workers, beat -------------------------------------------------------------------------------------

    def _send_message(self, name: str, task: Callable[[], Task]) -> None:
        times = 0 if self.strikes("message lost") else 2 if self.strikes("message doubled") else 1
        for _ in range(times):
            self.schedule(self.random.uniform(0.01, 1.0), f"message {name}", lambda: self._enqueue(name, task()))

    def _enqueue(self, name: str, task: Task) -> None:
        self._tasks.append((name, task))
        self._start_next()

    def _start_next(self) -> None:
        while self._idle and self._tasks:
            self._idle -= 1
            name, task = self._tasks.popleft()
            self.schedule(0.01, f"worker: {name}", lambda name=name, task=task: self._go_on(name, task))

    def _worker_is_back(self) -> None:
        self._idle += 1
        self._start_next()

    def _go_on(self, name: str, task: Task) -> None:
        """Take one task one step further, unless its worker dies before or within."""
        self._touched = True
        if self.strikes("worker killed"):
            task.close()
            self.note("    killed")
            self.schedule(self.random.uniform(1, 20), "worker starts again", self._worker_is_back)
            return
        try:
            with self._perhaps_dying():
                pause = next(task)
        except StopIteration:
            self._worker_is_back()
        except Crash:
            task.close()
            self.schedule(self.random.uniform(1, 20), "worker starts again", self._worker_is_back)
            raise
        else:
            if self.strikes("worker stalls"):
                pause += self.random.uniform(5, 240)
            self.schedule(pause, f"worker: {name}", lambda: self._go_on(name, task))

    @contextmanager
    def _perhaps_dying(self) -> Iterator[None]:
        if not self.strikes("worker dies inside"):
            yield
            return
        left = self.random.choice([1, 1, 2, 3])

        def die(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash(name)

        failpoints.arm(die)
        try:
            yield
        finally:
            failpoints.arm(None)

    def _plan_beat(self) -> None:
        """Let beat fire when a sweep would find something; an idle one would only cost time."""
        sight = self.sight
        times = [time for time in (sight.send_at, sight.ask_at) if time is not None]
        if sight.settle or sight.apply:
            times.append(self.now)
        if not times:
            return
        # A sweep that found nothing to do where there seemed to be something comes back later and later.
        rest = timedelta(seconds=5 * 2 ** min(self._fruitless, 8))
        at = max(min(times), self._last_beat + rest, self._beat_dead_until, self.now)
        if self._beat_at is None or at < self._beat_at:
            self._beat_at = at
            self.schedule((at - self.now).total_seconds(), "beat", partial(self._beat, at))

    def _beat(self, planned: datetime) -> None:
        if planned != self._beat_at:
            return
        self._beat_at, self._last_beat = None, self.now
        self._fruitless += 1
        if self.strikes("beat dies"):
            self._beat_dead_until = self.now + timedelta(seconds=self.random.choice([60, 300, 2400]))
        if not self.has_beat or self.now < self._beat_dead_until:
            return
        sight = self.sight
        if sight.settle:
            for market_id in settling.to_settle(limit=100):
                self._send_message("settle", partial(self._settle, market_id))
        if sight.send_at is not None and sight.send_at <= self.now:
            self._send_message("send due", self._send_due)
        if sight.apply:
            self._send_message("apply callbacks", self._apply_stored)
        if sight.ask_at is not None and sight.ask_at <= self.now:
            self._send_message("ask", self._ask)

    # --- tasks: what the Celery tasks do, a step at a time -----------------------------------------------------------

    def _settle(self, market_id: int) -> Task:
        progress = settling.settle(market_id=market_id, at=self.now, policy=self.policy, keep_going=lambda: True)
        for transaction_id in progress.to_send:
            self._send_message("send one", partial(self._send_one, transaction_id))
        yield 0.01

    def _send_one(self, transaction_id: int) -> Task:
        claims = sending_claims.claim(
            at=self.now, policy=self.policy, addresses=self.addresses, limit=1, transaction_id=transaction_id
        )
        for claim in claims:
            yield 0.02
            said = self._post_payment(claim)
            yield self.random.choice([0.02, 0.4, 3.0])
            responses.record(claim, said, at=self.now, policy=self.policy)
        yield 0.02

    def _send_due(self) -> Task:
        """Run the dispatcher: it claims as there is room, and records together the requests that have ended."""
        in_flight, last_turn = self.random.choice([1, 3, 8]), 0
        waiting: list[sending_claims.Claim] = []
        answers: list[tuple[sending_claims.Claim, sending_claims.Response]] = []
        while True:
            room = self.random.randint(0, in_flight - len(waiting) - len(answers))
            claims = []
            if room:
                claims = sending_claims.claim_next(
                    at=self.now, policy=self.policy, addresses=self.addresses, limit=room, after=last_turn
                )
            if claims:
                last_turn = claims[-1].settlement_id or 0
            waiting += claims
            if not waiting and not answers:
                if room:
                    return
                continue
            yield 0.02
            self.random.shuffle(waiting)
            for _ in range(self.random.randint(0, len(waiting))):
                claim = waiting.pop()
                answers.append((claim, self._post_payment(claim)))
            yield self.random.choice([0.02, 0.4, 3.0])
            heard = self.random.randint(0, len(answers))
            if heard:
                responses.record_all(answers[:heard], at=self.now, policy=self.policy)
                answers = answers[heard:]

    def _post_payment(self, claim: sending_claims.Claim) -> sending_claims.Response:
        said = sending_claims.call(claim, gateway=self.provider, addresses=self.addresses)
        self.note(f"    POST {claim.originator_conversation_id}: {said if _is_error(said) else 'accepted'}")
        return said

    def _apply_stored(self) -> Task:
        yield from self._apply(callbacks.to_apply(after=0, limit=50))

    def _apply(self, callback_ids: list[int]) -> Task:
        left = callbacks.apply_paid(callback_ids=callback_ids, at=self.now, policy=self.policy)
        if len(left) < len(callback_ids):
            self.note("    paid together")
        yield 0.01
        for callback_id in left:
            self.note(f"    {callbacks.apply(callback_id=callback_id, at=self.now, policy=self.policy)}")
            yield 0.01

    def _ask(self) -> Task:
        questions = status_queries.ask(at=self.now, policy=self.policy, addresses=self.addresses, limit=50)
        for question in questions:
            yield 0.1
            self.note(f"    asks about {question.originator_conversation_id}")
            if conversation_id := status_queries.put(question, gateway=self.provider, addresses=self.addresses):
                status_queries.record_question(question, conversation_id)

    # --- what comes from outside -------------------------------------------------------------------------------------

    def post(self, url: str, body: bytes) -> None:
        """M-Pesa's own message; the list of its addresses may be out of date."""
        self._bring(url, body, trusted=not self.strikes("strange address"))

    def _bring(self, url: str, body: bytes, *, trusted: bool) -> None:
        """Bring a message to one of our addresses, as the web does: stored, answered, a hint to apply it."""
        self._touched = True
        kind, token = url.rstrip("/").split("/")[-2:]
        with self._perhaps_dying():
            callbacks.store(
                kind=KINDS[kind],
                token=token,
                body=body,
                source_ip="196.201.214.200",
                trusted=trusted,
                at=self.now,
                addresses=self.addresses,
            )
        # Ids of callbacks only grow, so the one just stored is the last one that waits; a repeat stored none.
        if waiting := callbacks.to_apply(after=0, limit=200):
            self._send_message("apply", partial(self._apply, waiting[-1:]))

    def _operate(self) -> None:
        """An operator who retries and redirects whatever comes before their eyes."""
        if self.provider.healed:
            return
        self.schedule(self.random.uniform(5, 60), "operator", self._operate)
        if not self.sight.payouts or not self.strikes("operator"):
            return
        payout = self.random.choice(self.sight.payouts)
        act = self.random.choice(["retry", "retry all", "to the wallet"])
        self.note(f"    {act} {payout.ref}")
        self._touched = True
        try:
            if act == "retry":
                actions.retry(transaction_id=payout.id, by=MACHINE, at=self.now)
            elif act == "retry all":
                self._retry_failed()
            else:
                actions.redirect_to_wallet(transaction_id=payout.id, by=MACHINE, at=self.now)
        except actions.PayoutNotRetryable:
            self.note("    refused")

    def _retry_failed(self) -> None:
        self._touched = True
        outcome = failures.retry_failed(since=self.now - RECENT, by=MACHINE, at=self.now, limit=None)
        self.note(f"    retried {len(outcome.retried)}, skipped {sum(outcome.skipped.values())}")

    def _forge(self) -> None:
        """A stranger who knows ids, amounts and phones, and now and then an address that a log of ours leaked."""
        if self.provider.healed:
            return
        self.schedule(self.random.uniform(3, 30), "forger", self._forge)
        if not self.provider.seen or not self.strikes("forger"):
            return
        request = self.random.choice(self.provider.seen)
        confirmed_first = request.amount >= CONFIRM_ABOVE
        how = self.random.choice(["no token", "wrong amount", "failure", "status", "success"])
        self.note(f"    {how} for {request.ocid}")
        body = result_body(request, "0", conversation_id="AG_FORGED", receipt="FORGED1234")
        if how == "no token":
            self._expect_refusal(self.addresses.result("f" * 64), body)
        elif how == "status":
            # The token of a request is no token of a query.
            token = request.result_url.rstrip("/").rpartition("/")[2]
            status = self.random.choice(["Completed", "Failed"])
            forged = status_body(request, status, receipt="FORGED1234")
            self._expect_refusal(self.addresses.status_result(token), forged)
        elif how == "wrong amount":
            body = result_body(request, "0", conversation_id="AG_FORGED", amount=request.amount + 1, receipt="FORGED1")
            self._bring(request.result_url, body, trusted=True)
        elif how == "failure" and self.provider.may_be_denied(request.ocid, "a forger"):
            code = self.random.choice(["2040", "4", "1"])
            forged = result_body(request, code, conversation_id="AG_FORGED")
            self._bring(request.result_url, forged, trusted=True)
        elif how == "success" and (self.policy.production or confirmed_first):
            # From an address that is not M-Pesa's, or above the amount that a status query must confirm.
            self._forged_paid.add(request.ocid)
            self._bring(request.result_url, body, trusted=not self.policy.production)

    def _expect_refusal(self, url: str, body: bytes) -> None:
        try:
            self._bring(url, body, trusted=True)
        except callbacks.UnknownAddress:
            self.note("    unknown address")

    # --- judging -----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        for rule, what in self.sight.broken:
            self.accuse(rule, what)
        ours = {attempt.ocid: attempt for attempt in self.sight.attempts}
        paid_payouts = Counter(payout_of(payment.ocid) for payment in self.provider.book)
        for ocid in [*self.provider.requests, *self.provider.on_the_way]:
            if ocid not in ours:
                self.accuse("An attempt is committed before its request is made", f"{ocid} is not in the books")
        paid = {payment.ocid for payment in self.provider.book}
        for attempt in self.sight.attempts:
            if attempt.state == "PAID" and attempt.ocid not in paid:
                self.accuse("What the books call paid is paid", attempt.ocid)
        if self.provider.lies_at_will:
            return  # Two voices that wrongly agree on a failure are believed; what is left to ask is what follows it.
        for ref, times in paid_payouts.items():
            if times > 1:
                self.accuse("Nobody is paid twice", f"{ref} was paid {times} times")
        for attempt in self.sight.attempts:
            if attempt.state == "FAILED" and self.provider.may_still_pay(attempt.ocid):
                self.accuse("What the books call failed is not paid and cannot be any more", attempt.ocid)
        for payout in self.sight.payouts:
            if payout.status == "COMPLETED" and payout.redirected == bool(paid_payouts[payout.ref]):
                where = "and to the wallet" if payout.redirected else "but nowhere"
                self.accuse("A completed payout is paid in one place", f"{payout.ref} is completed {where}")

    def _judge_the_end(self) -> None:
        if not self.sight.payouts:
            self.accuse("Every market settles", "nothing was settled")
        ours = {(a.ocid, a.receipt) for a in self.sight.attempts if a.state == "PAID"}
        theirs = {
            (payment.ocid, payment.receipt)
            for payment in self.provider.book
            if payment.ocid in self.provider.told or not self.provider.lies_at_will
        }
        if self.provider.lies_at_will:
            ours &= theirs
        for ocid, receipt in sorted(ours ^ theirs):
            self.accuse("M-Pesa's book is ours", f"{ocid} {receipt} is in one only")
        latest = {attempt.ref: attempt.ocid for attempt in self.sight.attempts}
        for payout in self.sight.payouts:
            ocid = latest.get(payout.ref, "")
            request = self.provider.requests.get(ocid)
            if payout.status == "HELD":
                forged = ocid in self._forged_paid or ocid in self.provider.false_voices
                self.stats["held after a forgery" if forged else "held, lost for too long"] += 1
            if payout.status not in FINAL:
                self.accuse("Everything becomes final once the faults stop", f"{payout.ref} is {payout.status}")
            elif self.provider.lies_at_will:
                self.stats["payouts of a lying M-Pesa"] += 1
            elif payout.status == "FAILED" and not (request and request.phone in self.provider.unregistered):
                self.accuse("Only a member's fault fails for good", f"{payout.ref}: {payout.reason}")
            elif payout.status == "HELD" and (not payout.reason or (request and ocid not in self._forged_paid)):
                # Of a lost request nobody can know; a forged proof of payment is for a person to look into.
                known = f"M-Pesa knows it as {request.state}" if request else "without a reason"
                self.accuse("Held is only what nobody can know", f"{payout.ref}: {payout.reason} ({known})")
        if self.sight.settle or self.sight.apply:
            self.accuse("Everything becomes final once the faults stop", "a settlement or a callback is left over")


def _is_error(said: object) -> bool:
    return isinstance(said, gateway_errors.GatewayError)


def _look(known: dict[str, str]) -> Sight:
    with connection.cursor() as cursor:
        cursor.execute("EXECUTE simulation_look")
        rows = cursor.fetchall()
    found: dict[str, list[tuple[str, ...]]] = {"payout": [], "attempt": [], "next": [], "broken": []}
    for kind, *fields in rows:
        found[kind].append(tuple(fields))
    payouts_seen = [
        Payout(int(pk), ref, status, int(amount), redirected == "true", reason)
        for ref, status, pk, amount, reason, redirected in sorted(found["payout"], key=lambda row: int(row[2]))
    ]
    for payout in payouts_seen:
        known.setdefault(payout.ref, f"p{len(known) + 1}")
    attempts = [
        Attempt(ocid, ref, state, receipt, asking == "true")
        for ocid, state, _, ref, receipt, asking in sorted(found["attempt"], key=lambda row: int(row[2]))
    ]
    ((to_settle, to_apply, send_at, ask_at, *_),) = found["next"]
    return Sight(
        broken=[(rule, what) for rule, what, *_ in found["broken"]],
        payouts=payouts_seen,
        attempts=attempts,
        settle=to_settle != "0",
        apply=to_apply != "0",
        send_at=_moment(send_at),
        ask_at=_moment(ask_at),
    )


def _moment(epoch: str | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(float(epoch), tz=START.tzinfo)


def run(
    seed: int, *, plant: Plant | None = None, likely: Mapping[str, float] | None = None, keep_trace: bool = False
) -> Outcome:
    """Live one seed in a transaction that is rolled back, with one guard switched off where `plant` is given.

    `likely` fixes the probability of some faults.

    Needs a connection to a migrated database that holds nothing.
    Idempotent: same seed, same code, same trace.
    """
    prepare_look()
    world = World(seed, likely=likely or {}, keep_trace=keep_trace)
    logging.disable(logging.CRITICAL)
    block = transaction.atomic()
    # As Django's own test cases do: services whose transactions are durable may then run inside this one.
    block._from_testcase = True
    try:
        with block, plant(world) if plant else nullcontext():
            world.run()
            transaction.set_rollback(True)
    finally:
        failpoints.arm(None)
        logging.disable(logging.NOTSET)
    return Outcome(seed, world.trace_hash, tuple(world.violations), world.stats, tuple(world.trace))


@contextmanager
def scratch_database() -> Iterator[None]:
    """A migrated database of this process's own on the server of the settings, removed at the end."""
    settings = connection.settings_dict
    name, test_name = settings["NAME"], settings["TEST"]["NAME"]
    settings["TEST"]["NAME"] = f"simulation_{name}_{os.getpid()}"
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)
        settings["TEST"]["NAME"] = test_name


def forget_dead_rows() -> None:
    """Clear away what rolled-back seeds left in the tables, so that later ones are not slower. Outside transactions."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
