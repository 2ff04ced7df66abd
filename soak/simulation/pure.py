"""One seed, one small world of the pure payout machine: the same scripted M-Pesa, a virtual clock, no database.

The seed decides every fault, every order and every crash: a worker may die before each step of a task, and each step is
one transaction, so what it had not committed is gone and what it knew is forgotten. After each step the invariants of
what it touched are checked, against the book and against M-Pesa's own. Then the faults stop: an operator retries what
failed, a person decides by the statement what is held, and what M-Pesa cannot pay goes to the wallet. Everything must
then be completed.
"""

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from random import Random

from payments.mpesa import client, gateway_errors
from payments.policy import Policy
from soak.simulation.judge import Judge
from soak.simulation.machine import Machine, Refused
from soak.simulation.outcome import Outcome, Violation
from soak.simulation.provider import RATES, UNREGISTERED_SHARE, payout_of
from soak.simulation.pure_provider import PureProvider
from soak.simulation.rows import Answer, Attempt, Forbidden, Message, Payout, Question, Result

START = datetime(2026, 2, 16, 7, 30, tzinfo=UTC)
HEAL_FOR = timedelta(hours=52)
RECENT = timedelta(hours=60)
LIARS_SHARE = 0.15
IDLE = ("beat", "operator", "forger", "the faults stop")
WORLD_RATES = {
    "message lost": 0.6,
    "message doubled": 0.4,
    "worker killed": 0.15,
    "worker stalls": 0.1,
    "callback lost": 0.15,
    "beat dies": 0.1,
    "operator": 0.3,
    "forger": 0.8,
    "strange address": 0.3,
}
POLICY = Policy(
    production=False,
    protect_stake=True,
    destination="mpesa",
    min_amount=10,
    max_amount=250_000,
    day_limit=500_000,
    query_after=timedelta(seconds=20),
    query_gap=timedelta(seconds=60),
    review_after=timedelta(hours=24),
    resend_horizon=timedelta(minutes=30),
    retry_after=timedelta(seconds=15),
    confirm_above=Decimal(50_000),
    settlement_chunk=20_000,
)
PRODUCTION = replace(POLICY, production=True)
Task = Generator[float, None, None]


class World:
    """The clock, the faults, the workers, beat, the operator, the forger, and the record of what happened."""

    has_beat = True

    def __init__(self, seed: int, machine: type[Machine], likely: Mapping[str, float], *, keep_trace: bool) -> None:
        self.random = Random(seed * 2)
        self.now = START
        self.rates = self._draw_rates(WORLD_RATES, likely)
        self.violations: list[Violation] = []
        self.stats: Counter[str] = Counter()
        self.steps = 0
        self.trace: list[str] = []
        self._keep_trace = keep_trace
        self._hash = hashlib.sha256()
        self._events: list[tuple[datetime, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._busy = 0
        self._beat_at: datetime | None = None
        self._beat_dead_until = self._last_beat = START
        self._fruitless = 0
        self._passes = 0
        self.machine = machine(PRODUCTION if self.random.random() < 0.5 else POLICY)
        self.by_ref: dict[str, Payout] = {}
        self._due: dict[Payout, tuple[datetime | None, datetime | None]] = {}
        self.provider = PureProvider(
            Random(seed * 2 + 1),
            self._draw_rates(RATES, likely),
            clock=lambda: self.now,
            schedule=self.schedule,
            post=self.post,
            touch=self.touch,
            lies_at_will=self.random.random() < LIARS_SHARE,
        )
        self.judge = Judge(self.machine, self.provider, self.accuse)
        minutes = self.random.uniform(40, 90) if self.random.random() < 0.1 else self.random.uniform(1, 15)
        self._heal_at = START + timedelta(minutes=minutes)

    def _draw_rates(self, highest: dict[str, float], likely: Mapping[str, float]) -> dict[str, float]:
        """Half of the faults are off in any one seed, so that those that are on can go far."""
        uniform = self.random.random
        drawn = {fault: (0.05 + 0.95 * uniform()) * rate if uniform() < 0.5 else 0.0 for fault, rate in highest.items()}
        return drawn | likely if (likely := {k: v for k, v in likely.items() if k in highest}) else drawn

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live until everything is final, or something is wrong."""
        self._begin()
        while self._events and not self.violations:
            time, _, label, step = heapq.heappop(self._events)
            self._busy -= label not in IDLE
            self.now = max(time, self.now + timedelta(milliseconds=1))
            if self.now > self._heal_at + HEAL_FOR:
                break
            self._take(label, step)
            if self.provider.healed and not self._busy and not self.violations and self._is_quiet():
                if not self._one_more_pass():
                    break
        if not self.violations:
            self.judge.the_end()
        self.stats["steps"] = self.steps
        self.stats.update(payout.status for payout in self.machine.payouts)
        self.stats.update({fault: count for fault, count in self.provider.struck.items() if count})

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def schedule(self, seconds: float, label: str, step: Callable[[], None]) -> None:
        self._busy += label not in IDLE
        heapq.heappush(self._events, (self.now + timedelta(seconds=seconds), next(self._numbers), label, step))

    def strikes(self, fault: str) -> bool:
        struck = self.random.random() < self.rates[fault] and not self.provider.healed
        if struck:
            self.stats[fault] += 1
        return struck

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        line = f"{(self.now - START).total_seconds():10.3f} {what}"
        self._hash.update(line.encode())
        if self._keep_trace:
            self.trace.append(line)

    def accuse(self, rule: str, what: str) -> None:
        self.violations.append(Violation(rule, what, self.steps))

    def touch(self, ocid: str) -> None:
        self.machine.touched.add(self.by_ref[payout_of(ocid)])

    def _take(self, label: str, step: Callable[[], None]) -> None:
        self.steps += 1
        self.note(label)
        try:
            step()
        except (Forbidden, LookupError, ValueError, TypeError, AttributeError) as error:
            self.accuse("Nothing is refused that nobody foresaw", f"{label}: {type(error).__name__} {error}")
            return
        if self.machine.touched:
            touched = self.machine.touched
            for payout in touched if len(touched) == 1 else sorted(touched, key=lambda one: one.ref):
                self.judge.payout(payout)
                self._due[payout] = self.machine.next_due(payout)
            self.machine.touched.clear()
            self._plan_beat()
        elif self._beat_at is None:
            self._plan_beat()

    def _begin(self) -> None:
        numbers = range(self.random.randint(4, 8))
        for number in numbers:
            if self.random.random() < UNREGISTERED_SHARE:
                self.provider.unregistered.add(f"2547{number:08d}")
        for market in range(self.random.choice([1, 1, 2])):
            winners = [number for number in numbers if self.random.random() < 0.8]
            self.schedule(20.0 * market, "a market settles", partial(self._settle, market, winners))
        self.schedule((self._heal_at - START).total_seconds(), "the faults stop", self.heal)
        if self.rates["operator"]:
            self.schedule(10, "operator", self._operate)
        if self.rates["forger"]:
            self.schedule(5, "forger", self._forge)

    def _settle(self, market: int, winners: list[int]) -> None:
        for number in winners:
            ref, amount = f"m{market}-{number}", self.random.choice([15, 99, 285, 1_234, 20_000, 49_999, 70_000])
            payout = self.machine.owe(ref, member=str(number), phone=f"2547{number:08d}", amount=amount, at=self.now)
            self.by_ref[ref] = payout
            self._send_message("send one", partial(self._send_one, payout))

    def heal(self) -> None:
        self.provider.heal()
        self._beat_dead_until, self._beat_at = self.now, None

    def _is_quiet(self) -> bool:
        machine = self.machine
        if machine.unapplied:
            return False
        asking = [p for p in machine.payouts if any(a.ask_at is not None for a in p.attempts)]
        return all(payout.status == "HELD" for payout in asking) and not any(
            payout.status in ("PENDING", "PROCESSING") for payout in machine.payouts
        )

    def _one_more_pass(self) -> bool:
        """Once all is quiet people do what is theirs to do; False when nothing is left to them."""
        self._passes += 1
        held = [payout for payout in self.machine.payouts if payout.status == "HELD"]
        failed = [payout for payout in self.machine.payouts if payout.status == "FAILED"]
        if held:
            self._take("a person decides", lambda: [self._decide(payout) for payout in held])
        elif failed and self._passes < 6:
            self._take("operator retries what failed", self._retry_failed)
        elif failed:
            self._take("to the wallet", lambda: [self._give_up(payout) for payout in failed])
        return bool(held or failed) and self._passes < 12

    def _give_up(self, payout: Payout) -> None:
        self.stats["to the wallet at last"] += 1
        if payout.phone not in self.provider.unregistered and not self.provider.lies_at_will:
            self.accuse("Only a member's fault fails for good", payout.ref)
        self.machine.redirect(payout, at=self.now)

    # --- messages, workers, beat -------------------------------------------------------------------------------------

    def _send_message(self, name: str, task: Callable[[], Task]) -> None:
        times = 0 if self.strikes("message lost") else 2 if self.strikes("message doubled") else 1
        for _ in range(times):
            self._start(name, task(), self.random.uniform(0.01, 1.0))

    def _start(self, name: str, task: Task, after: float) -> None:
        self.schedule(after, name, lambda: self._go_on(name, task))

    def _go_on(self, name: str, task: Task) -> None:
        """Take one task one step further, unless its worker dies before."""
        if self.strikes("worker killed"):
            self.note("    killed")
            return
        pause = next(task, None)
        if pause is not None:
            if self.strikes("worker stalls"):
                pause += self.random.uniform(5, 240)
            self._start(name, task, pause)

    def _plan_beat(self) -> None:
        """Let beat fire when a sweep would find something; one that found nothing to do comes back later and later."""
        times = [at for due in self._due.values() for at in due if at is not None]
        if self.machine.unapplied:
            times.append(self.now)
        if not times or not self.has_beat:
            return
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
            self._beat_dead_until = self.now + timedelta(seconds=self.random.choice([60, 300, 2_400]))
            return
        due = [[at is not None and at <= self.now for at in ats] for ats in self._due.values()]
        if any(send for send, _ in due):
            self._send_message("send due", self._send_due)
        if self.machine.unapplied:
            self._send_message("apply callbacks", self._apply_stored)
        if any(ask for _, ask in due):
            self._send_message("ask", self._ask)

    # --- tasks, a transaction at a time ------------------------------------------------------------------------------

    def _send_one(self, payout: Payout) -> Task:
        yield from self._send(self.machine.claim(at=self.now, limit=1, only=payout))

    def _send_due(self) -> Task:
        while claims := self.machine.resends(at=self.now, limit=1) or self.machine.claim(
            at=self.now, limit=self.random.choice([1, 3])
        ):
            yield from self._send(claims)

    def _send(self, claims: list[Attempt]) -> Task:
        self._fruitless = 0
        for attempt in claims:
            if attempt.known_at is not None:
                self.accuse("What M-Pesa says it has had is not sent again", attempt.ocid)
        yield 0.02
        for attempt in claims:
            said = self.call(attempt)
            yield self.random.choice([0.02, 0.4, 3.0])
            self.machine.record(attempt, said, at=self.now)
            yield 0.02

    def call(self, attempt: Attempt) -> client.Accepted | gateway_errors.GatewayError:
        """POST a request; what M-Pesa said to it."""
        said: client.Accepted | gateway_errors.GatewayError
        try:
            said = self.provider.pay(
                originator_conversation_id=attempt.ocid,
                amount_shillings=attempt.payout.amount,
                phone_number=attempt.payout.phone,
                result_url=attempt,  # type: ignore[arg-type] - an address is the row it belongs to
                timeout_url=attempt,  # type: ignore[arg-type]
            )
        except gateway_errors.GatewayError as error:
            said = error
        self.note(f"    POST {attempt.ocid}: {type(said).__name__}")
        return said

    def _ask(self) -> Task:
        self._fruitless = 0
        for question in self.machine.ask(at=self.now, limit=50):
            yield 0.1
            self.note(f"    asks about {question.attempt.ocid}")
            try:
                self.provider.ask_status(
                    originator_conversation_id=question.attempt.ocid, result_url=question, timeout_url=question
                )
            except gateway_errors.GatewayError:
                continue

    def _apply_stored(self) -> Task:
        for message in list(self.machine.unapplied):
            yield from self._apply(message)

    def _apply(self, message: Message) -> Task:
        self.machine.apply(message, at=self.now)
        yield 0.01

    # --- what comes from outside -------------------------------------------------------------------------------------

    def post(self, about: Attempt | Question, content: Result | Answer | bytes) -> None:
        """M-Pesa's own message: the web may die before it keeps it, the list of M-Pesa's addresses be out of date."""
        if self.strikes("callback lost"):
            return
        message = self._bring(about, content, trusted=not self.strikes("strange address"))
        if message is not None and message.trusted and isinstance(content, Result) and content.code == "0":
            if about.payout.amount < self.machine.policy.confirm_above:
                self.judge.proven.add(content.ocid)

    def _bring(self, about: Attempt | Question, content: Result | Answer | bytes, *, trusted: bool) -> Message | None:
        """Bring a message to one of our addresses, as the web does; None where the very same came before."""
        said = None if isinstance(content, bytes) else content
        said_what = said.code if isinstance(said, Result) else said.verdict if said else "queue timeout"
        whose = about.ocid if isinstance(about, Attempt) else about.attempt.ocid
        self.note(f"    {'M-Pesa' if trusted else 'a stranger'} says {said_what} of {whose}")
        message = self.machine.store(about, said, trusted=trusted, at=self.now)
        if message is not None:
            self._fruitless = 0
            self._send_message("apply", partial(self._apply, message))
        return message

    def _operate(self) -> None:
        """An operator who retries, redirects and decides whatever comes before their eyes."""
        if self.provider.healed:
            return
        self.schedule(self.random.uniform(5, 60), "operator", self._operate)
        if not self.machine.payouts or not self.strikes("operator"):
            return
        payout = self.random.choice(self.machine.payouts)
        act = self.random.choice(["retry", "retry all", "to the wallet", "decide"])
        self.note(f"    {act} {payout.ref}")
        try:
            if act == "retry":
                self.machine.retry(payout, at=self.now)
            elif act == "retry all":
                self._retry_failed()
            elif act == "to the wallet":
                self.machine.redirect(payout, at=self.now)
            else:
                self._decide(payout)
        except Refused:
            self.note("    refused")

    def _retry_failed(self) -> None:
        self.note(f"    retried {self.machine.retry_failed(since=self.now - RECENT, at=self.now)}")

    def _decide(self, payout: Payout) -> None:
        """Two people with M-Pesa's statement say what became of a held payout's request, once that is certain."""
        attempt = payout.open
        request = self.provider.requests.get(attempt.ocid) if attempt else None
        if attempt is None or (request.state == "queued" if request else not self.provider.healed):
            raise Refused("nothing to decide, or too early to")
        receipt = request.receipt if request is not None and request.state == "paid" else ""
        self.machine.decide(payout, receipt=receipt, people=2, at=self.now)

    def _forge(self) -> None:
        """A stranger who knows ids, amounts and phones, and the address of a request that a log of ours leaked."""
        if self.provider.healed:
            return
        self.schedule(self.random.uniform(3, 30), "forger", self._forge)
        if not self.provider.seen or not self.strikes("forger"):
            return
        request = self.random.choice(self.provider.seen)
        production = self.machine.policy.production
        how = self.random.choice(["wrong amount", "wrong phone", "failure", "success", "answer"])
        self.note(f"    {how} for {request.ocid}")
        forged = Result(request.ocid, "0", "AG_FORGED", request.amount, request.phone, "FORGED1234")
        attempt: Attempt = request.result_url  # type: ignore[assignment]
        if how == "wrong amount":
            self._bring(attempt, forged._replace(amount=request.amount + 1), trusted=True)
        elif how == "wrong phone":
            self._bring(attempt, forged._replace(phone="254799999999"), trusted=True)
        elif how == "failure" and self.provider.may_be_denied(request.ocid, "a forger"):
            code = self.random.choice(["2040", "4", "1"])
            self._bring(attempt, Result(request.ocid, code, "AG_FORGED"), trusted=True)
        elif how == "success" and (production or request.amount >= self.machine.policy.confirm_above):
            # From an address that is not M-Pesa's, or above the amount that a question must confirm.
            self._bring(attempt, forged, trusted=not production)
        elif how == "answer" and production and attempt.questions:
            verdict = self.random.choice(["failed", "not_found", "unknown"])
            self._bring(attempt.questions[-1], Answer(verdict, request.ocid), trusted=False)


def run(
    seed: int,
    *,
    world: type[World] = World,
    machine: type[Machine] = Machine,
    likely: Mapping[str, float] | None = None,
    keep_trace: bool = False,
) -> Outcome:
    """Live one seed, in memory. `likely` fixes the probability of some faults. Same seed, same code, same trace."""
    here = world(seed, machine, likely or {}, keep_trace=keep_trace)
    here.run()
    return Outcome(seed, here.trace_hash, tuple(here.violations), here.stats, tuple(here.trace))
