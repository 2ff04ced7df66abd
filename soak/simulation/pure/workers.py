"""Workers, beat and web process of the pure world."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from payments.mpesa import client, gateway_errors
from soak.simulation.events import EventLoop, Task
from soak.simulation.pure import orphans
from soak.simulation.pure.judge import Judge
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.provider import PureProvider
from soak.simulation.pure.rows import Answer, Attempt, Message, Orphan, Payout, Question, Result


class Workers(EventLoop):
    """Task messages that may be lost or doubled, workers that may die, beat and the web process."""

    machine: Machine
    provider: PureProvider
    judge: Judge
    has_beat = True

    def begin_workers(self) -> None:
        """Start with no message under way. Beat runs."""
        self.due: dict[Payout, tuple[datetime | None, datetime | None]] = {}
        self.beat_at: datetime | None = None
        self._beat_dead_until = self._last_beat = self.start
        self._sweeps_without_change = 0
        self._life = 0

    # --- messages and workers ----------------------------------------------------------------------------------------

    def send_message(self, name: str, task: Callable[[], Task]) -> None:
        """Send the message that starts a task: once, twice or not at all."""
        times = 0 if self.strikes("message lost") else 2 if self.strikes("message doubled") else 1
        for _ in range(times):
            self._start(name, task(), self.random.uniform(0.01, 1.0))

    def _start(self, name: str, task: Task, after: float) -> None:
        self.schedule(after, name, partial(self._continue, name, task, self._life))

    def end_all_tasks(self) -> None:
        """End the tasks under way, because their workers have lost the database."""
        self._life += 1

    def _continue(self, name: str, task: Task, life: int) -> None:
        """Do one more step of a task, unless its worker dies before the step."""
        if life != self._life:
            return
        if self.strikes("worker killed"):
            self.note("    killed")
            return
        pause = next(task, None)
        if pause is not None:
            if self.strikes("worker stalls"):
                pause += self.random.uniform(5, 240)
            self._start(name, task, pause)

    # --- beat --------------------------------------------------------------------------------------------------------

    def restart_beat(self) -> None:
        """Start beat again if it has died."""
        self._beat_dead_until, self.beat_at = self.now, None

    def plan_beat(self) -> None:
        """Schedule the next sweep at a time when it finds work.

        After each sweep that changed nothing, beat waits longer before the next sweep.
        """
        times = [at for due in self.due.values() for at in due if at is not None]
        waiting = [orphan for orphan in self.machine.orphans.values() if orphan.state in ("WAITING", "SOUGHT")]
        times += [orphan.ask_at for orphan in waiting if orphan.ask_at is not None]
        if self.machine.unapplied or self._has_orphans_to_place():
            times.append(self.now)
        if not times or not self.has_beat:
            return
        rest = timedelta(seconds=5 * 2 ** min(self._sweeps_without_change, 8))
        at = max(min(times), self._last_beat + rest, self._beat_dead_until, self.now)
        if self.beat_at is None or at < self.beat_at:
            self.beat_at = at
            self.schedule((at - self.now).total_seconds(), "beat", partial(self._beat, at))

    def _beat(self, planned: datetime) -> None:
        if planned != self.beat_at:
            return
        self.beat_at, self._last_beat = None, self.now
        self._sweeps_without_change += 1
        if self.strikes("beat dies"):
            self._beat_dead_until = self.now + timedelta(seconds=self.random.choice([60, 300, 2_400]))
            return
        due = [[at is not None and at <= self.now for at in times] for times in self.due.values()]
        if any(send for send, _ in due):
            self.send_message("send due", self._send_due)
        if self.machine.unapplied or self._has_orphans_to_place():
            self.send_message("apply callbacks", self._apply_stored)
        if any(ask for _, ask in due) or orphans.any_due(self.machine, at=self.now):
            self.send_message("ask", self._ask)

    def _has_orphans_to_place(self) -> bool:
        refs = {payout.ref for payout in self.machine.payouts}
        return any(
            orphan.state == "WAITING"
            or (orphan.state == "SOUGHT" and orphans.answered(orphan))
            or (orphan.state == "SUSPENSE" and orphan.ref in refs)
            for orphan in self.machine.orphans.values()
        )

    # --- tasks -------------------------------------------------------------------------------------------------------

    def send_one(self, payout: Payout) -> Task:
        """Send one payout."""
        yield from self._send(self.machine.claim(at=self.now, limit=1, only=payout))

    def _send_due(self) -> Task:
        while claims := self.machine.resends(at=self.now, limit=1) or self.machine.claim(
            at=self.now, limit=self.random.choice([1, 3])
        ):
            yield from self._send(claims)

    def _send(self, claims: list[Attempt]) -> Task:
        self._sweeps_without_change = 0
        for attempt in claims:
            if attempt.known_at is not None:
                self.accuse("An id that M-Pesa knows is not sent again", attempt.ocid)
        yield 0.02
        for attempt in claims:
            response = self.call(attempt)
            yield self.random.choice([0.02, 0.4, 3.0])
            self.machine.record(attempt, response, at=self.now)
            yield 0.02

    def call(self, attempt: Attempt) -> client.Accepted | gateway_errors.GatewayError:
        """POST a request, and return M-Pesa's response. The attempt's row replaces the callback address."""
        response: client.Accepted | gateway_errors.GatewayError
        try:
            response = self.provider.pay(
                originator_conversation_id=attempt.ocid,
                amount_shillings=attempt.payout.amount,
                phone_number=attempt.payout.phone,
                result_url=attempt,
                timeout_url=attempt,
            )
        except gateway_errors.GatewayError as error:
            response = error
        self.note(f"    POST {attempt.ocid}: {type(response).__name__}")
        return response

    def record_orphan(self, ocid: str, content: Result | Answer | None, *, trusted: bool) -> None:
        """Record a message about a request that the books lost."""
        orphans.record(self.machine, ocid, content, trusted=trusted, at=self.now)
        self._sweeps_without_change = 0

    def _ask(self) -> Task:
        self._sweeps_without_change = 0
        asked_at = self.now
        for orphan in orphans.to_ask(self.machine, at=asked_at):
            yield 0.1
            self.note(f"    asks about orphan {orphan.ocid}")
            try:
                self.provider.ask_status(originator_conversation_id=orphan.ocid, result_url=orphan, timeout_url=orphan)
            except gateway_errors.NotSent:
                continue
            except gateway_errors.GatewayError:
                pass
            orphans.put(self.machine, orphan, asked_at=asked_at)
        for question in self.machine.ask(at=self.now, limit=50):
            yield 0.1
            self.note(f"    asks about {question.attempt.ocid}")
            try:
                ocid = None if question.receipt else question.attempt.ocid
                self.provider.ask_status(
                    originator_conversation_id=ocid,
                    receipt=question.receipt or None,
                    result_url=question,
                    timeout_url=question,
                )
            except gateway_errors.NotSent:
                continue
            except gateway_errors.GatewayError:
                pass
            self.machine.put(question)

    def _apply_stored(self) -> Task:
        placed = orphans.place(self.machine, at=self.now)
        for message in placed:
            yield 0.01
            self.machine.apply(message, at=self.now)
        for message in list(self.machine.unapplied):
            yield from self._apply(message)

    def _apply(self, message: Message) -> Task:
        self.machine.apply(message, at=self.now)
        yield 0.01

    # --- web ---------------------------------------------------------------------------------------------------------

    def post(self, about: Attempt | Question | Orphan, content: Result | Answer | None) -> bool:
        """Receive a genuine message of M-Pesa. Returns True if we stored it and believe that it is M-Pesa's.

        The web process may die before it stores the message. Our list of M-Pesa's source addresses may be out of date.
        """
        if self.strikes("callback lost"):
            return False
        message = self.receive(about, content, trusted=not self.strikes("foreign address"))
        return message is not None and message.trusted

    def receive(
        self, about: Attempt | Question | Orphan, content: Result | Answer | None, *, trusted: bool
    ) -> Message | None:
        """Store a message that came to one of our addresses.

        Returns None if the same message came before, or if it is about a request that the books lost.
        """
        outcome = content.code if isinstance(content, Result) else content.verdict if content else "queue timeout"
        ocid = about.attempt.ocid if isinstance(about, Question) else about.ocid
        self.note(f"    {'M-Pesa' if trusted else 'an untrusted caller'} reports {outcome} of {ocid}")
        if isinstance(about, Orphan) and content is None:
            return None  # A query about an orphan timed out. This reports nothing about the request.
        if isinstance(about, Orphan) or (row := orphans.current(self.machine, about)) is None:
            if not isinstance(about, Question):
                self.record_orphan(ocid, content, trusted=trusted)
            return None
        about = row
        message = self.machine.store(about, content, trusted=trusted, at=self.now)
        if message is not None:
            self._sweeps_without_change = 0
            self.send_message("apply", partial(self._apply, message))
        return message
