"""Workers and beat of the simulated world, one step at a time."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial

from payments import failpoints
from payments.mpesa import gateway_errors
from payments.mpesa.callback_urls import Addresses
from payments.payouts.evidence import callbacks, status_queries
from payments.payouts.sending import claims as sending_claims
from payments.payouts.sending import responses
from payments.policy import Policy
from payments.settlement import settling
from soak.simulation.daraja import DarajaProvider
from soak.simulation.events import EventLoop, Task
from soak.simulation.snapshot import Snapshot


class ProcessDied(BaseException):
    """The process died at this failpoint. No service may catch this exception."""


class Workers(EventLoop):
    """Simulated task messages, workers and Celery beat.

    Messages may be lost or doubled, workers may die, and beat starts unfinished work again.
    """

    provider: DarajaProvider
    policy: Policy
    addresses: Addresses
    snapshot: Snapshot
    has_beat = True

    def begin_workers(self) -> None:
        """Draw the number of workers. At the start no message is under way, and beat runs."""
        self.state_changed = False  # True if anything may have changed since the last snapshot.
        self._tasks: deque[tuple[str, Task]] = deque()
        self._idle = self.random.choice([1, 2, 3])
        self._beat_dead_until = self.start
        self._beat_at: datetime | None = None
        self._last_beat = self.start
        self._sweeps_without_change = 0

    # --- messages and workers ----------------------------------------------------------------------------------------

    def send_message(self, name: str, task: Callable[[], Task]) -> None:
        """Send the message that starts a task: once, twice or not at all."""
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
            self.schedule(0.01, f"worker: {name}", partial(self._continue, name, task))

    def _worker_is_back(self) -> None:
        self._idle += 1
        self._start_next()

    def _continue(self, name: str, task: Task) -> None:
        """Do one more step of a task. Its worker may die before the step or during the step."""
        self.state_changed = True
        if self.strikes("worker killed"):
            task.close()
            self.note("    killed")
            self.schedule(self.random.uniform(1, 20), "worker starts again", self._worker_is_back)
            return
        try:
            with self.dying_perhaps():
                pause = next(task)
        except StopIteration:
            self._worker_is_back()
        except ProcessDied:
            task.close()
            self.schedule(self.random.uniform(1, 20), "worker starts again", self._worker_is_back)
            raise
        else:
            if self.strikes("worker stalls"):
                pause += self.random.uniform(5, 240)
            self.schedule(pause, f"worker: {name}", partial(self._continue, name, task))

    @contextmanager
    def dying_perhaps(self) -> Iterator[None]:
        """If the fault "worker dies at a failpoint" is drawn, let the process die at one of the next failpoints."""
        if not self.strikes("worker dies at a failpoint"):
            yield
            return
        failpoints_left = self.random.choice([1, 1, 2, 3])

        def die(name: str) -> None:
            nonlocal failpoints_left
            failpoints_left -= 1
            if failpoints_left == 0:
                raise ProcessDied(name)

        failpoints.arm(die)
        try:
            yield
        finally:
            failpoints.arm(None)

    # --- beat --------------------------------------------------------------------------------------------------------

    def progress_made(self) -> None:
        """Let beat sweep at its usual pace again."""
        self._sweeps_without_change = 0

    def restart_beat(self) -> None:
        """Start beat again if it has died."""
        self._beat_dead_until = self.now

    def plan_beat(self) -> None:
        """Schedule the next sweep at a time when it finds work. Sweeps without work would only slow the run down."""
        seen = self.snapshot
        times = [time for time in (seen.send_at, seen.ask_at) if time is not None]
        if seen.has_unsettled_market or seen.has_unapplied_callback:
            times.append(self.now)
        if not times:
            return
        # After each sweep that changed nothing, beat waits longer before the next sweep.
        rest = timedelta(seconds=5 * 2 ** min(self._sweeps_without_change, 8))
        at = max(min(times), self._last_beat + rest, self._beat_dead_until, self.now)
        if self._beat_at is None or at < self._beat_at:
            self._beat_at = at
            self.schedule((at - self.now).total_seconds(), "beat", partial(self._beat, at))

    def _beat(self, planned: datetime) -> None:
        if planned != self._beat_at:
            return
        self._beat_at, self._last_beat = None, self.now
        self._sweeps_without_change += 1
        if self.strikes("beat dies"):
            self._beat_dead_until = self.now + timedelta(seconds=self.random.choice([60, 300, 2400]))
        if not self.has_beat or self.now < self._beat_dead_until:
            return
        seen = self.snapshot
        if seen.has_unsettled_market:
            for market_id in settling.to_settle(limit=100):
                self.send_message("settle", partial(self.settle, market_id))
        if seen.send_at is not None and seen.send_at <= self.now:
            self.send_message("send due", self._send_due)
        if seen.has_unapplied_callback:
            self.send_message("apply callbacks", self._apply_stored)
        if seen.ask_at is not None and seen.ask_at <= self.now:
            self.send_message("ask", self._ask)

    # --- Celery tasks, one step at a time ----------------------------------------------------------------------------

    def settle(self, market_id: int) -> Task:
        """Settle a market, and send a message for each of its first payouts."""
        progress = settling.settle(market_id=market_id, at=self.now, policy=self.policy, keep_going=lambda: True)
        for transaction_id in progress.to_send:
            self.send_message("send one", partial(self._send_one, transaction_id))
        yield 0.01

    def _send_one(self, transaction_id: int) -> Task:
        claims = sending_claims.claim(
            at=self.now, policy=self.policy, addresses=self.addresses, limit=1, transaction_id=transaction_id
        )
        for claim in claims:
            yield 0.02
            response = self._post_payment(claim)
            yield self.random.choice([0.02, 0.4, 3.0])
            responses.record(claim, response, at=self.now, policy=self.policy)
        yield 0.02

    def _send_due(self) -> Task:
        """Run the dispatcher: it claims payouts while it has free slots, and records finished requests in bulk."""
        in_flight, last_served = self.random.choice([1, 3, 8]), 0
        waiting: list[sending_claims.Claim] = []
        answered: list[tuple[sending_claims.Claim, sending_claims.Response]] = []
        while True:
            slots = self.random.randint(0, in_flight - len(waiting) - len(answered))
            claims = []
            if slots:
                claims = sending_claims.claim_next(
                    at=self.now, policy=self.policy, addresses=self.addresses, limit=slots, after=last_served
                )
            if claims:
                last_served = claims[-1].settlement_id or 0
            waiting += claims
            if not waiting and not answered:
                if slots:
                    return
                continue
            yield 0.02
            self.random.shuffle(waiting)
            for _ in range(self.random.randint(0, len(waiting))):
                claim = waiting.pop()
                answered.append((claim, self._post_payment(claim)))
            yield self.random.choice([0.02, 0.4, 3.0])
            count = self.random.randint(0, len(answered))
            if count:
                responses.record_all(answered[:count], at=self.now, policy=self.policy)
                answered = answered[count:]

    def _post_payment(self, claim: sending_claims.Claim) -> sending_claims.Response:
        response = sending_claims.call(claim, gateway=self.provider, addresses=self.addresses)
        refused = isinstance(response, gateway_errors.GatewayError)
        self.note(f"    POST {claim.originator_conversation_id}: {response if refused else 'accepted'}")
        return response

    def _apply_stored(self) -> Task:
        yield from self.apply(callbacks.to_apply(after=0, limit=50))

    def apply(self, callback_ids: list[int]) -> Task:
        """Apply stored callbacks: payments with clear proof in bulk, all other callbacks one by one."""
        remaining_ids = callbacks.apply_paid(callback_ids=callback_ids, at=self.now, policy=self.policy)
        if len(remaining_ids) < len(callback_ids):
            self.note("    booked in bulk")
        yield 0.01
        for callback_id in remaining_ids:
            self.note(f"    {callbacks.apply(callback_id=callback_id, at=self.now, policy=self.policy)}")
            yield 0.01

    def _ask(self) -> Task:
        questions = status_queries.ask(at=self.now, policy=self.policy, addresses=self.addresses, limit=50)
        for question in questions:
            yield 0.1
            self.note(f"    asks about {question.originator_conversation_id}")
            try:
                conversation_id = status_queries.post(question, gateway=self.provider, addresses=self.addresses)
                status_queries.record_put(question, conversation_id)
            except gateway_errors.NotSent:
                status_queries.withdraw(question, at=self.now, policy=self.policy)
