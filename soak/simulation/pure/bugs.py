"""Planted bugs of the pure machine: each is a machine, or a world, that lacks one guard.

The pure world must notice each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from payments.mpesa import gateway_errors
from soak.simulation.outcome import Outcome
from soak.simulation.pure import world as pure_world
from soak.simulation.pure.attempts import Refused
from soak.simulation.pure.machine import DEFINITE, Machine
from soak.simulation.pure.rows import OPEN, Answer, Attempt, Payout, Question, Result
from soak.simulation.pure.world import World


@dataclass(frozen=True)
class PureBug:
    """A guard switched off, the rule that this breaks, and the faults that the guard is there for."""

    rule: str
    machine: type[Machine]
    world: type[World]
    likely: dict[str, float]

    def run(self, seed: int, *, planted: bool = True, keep_trace: bool = False) -> Outcome:
        """Run one seed in which those faults are likely, with the guard switched off or, to compare, in place."""
        machine, world = (self.machine, self.world) if planted else (Machine, World)
        return pure_world.run(seed, machine=machine, world=world, likely=self.likely, keep_trace=keep_trace)


PURE_BUGS: dict[str, PureBug] = {}
RESENT = {"answer lost": 0.4, "not found, untruly": 0.6, "slow": 0.3}
FORGED = {"forger": 0.8}
Lacking = TypeVar("Lacking", type[Machine], type[World])


def bug(name: str, rule: str, likely: dict[str, float] | None = None) -> Callable[[Lacking], Lacking]:
    """Add the decorated machine or world to the planted bugs."""

    def add(lacking: Lacking) -> Lacking:
        machine = lacking if issubclass(lacking, Machine) else Machine
        world = lacking if issubclass(lacking, World) else World
        PURE_BUGS[name] = PureBug(rule, machine, world, likely or {})
        return lacking

    return add


class FailingOnResponse(Machine):
    """A machine that fails the request on responses for which `reads_as_failure` is true."""

    def record(self, attempt: Attempt, response: Any, *, at: datetime) -> None:
        super().record(attempt, response, at=at)
        if self.reads_as_failure(response) and attempt.state in OPEN:
            self.fail(attempt, code="", at=at)

    def reads_as_failure(self, response: Any) -> bool:
        raise NotImplementedError


class FailingOnResult(Machine):
    """A machine that fails the request at once on codes for which `reads_as_failure` is true."""

    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        super().apply_result(attempt, result, trusted=trusted, at=at)
        if self.reads_as_failure(result.code) and attempt.state in OPEN:
            self.fail(attempt, code="", at=at)

    def reads_as_failure(self, code: str) -> bool:
        raise NotImplementedError


class FailingOnVerdict(Machine):
    """A machine that fails the request on one answer with this verdict."""

    verdict = ""

    def apply_answer(self, question: Question, answer: Answer, *, trusted: bool, at: datetime) -> None:
        super().apply_answer(question, answer, trusted=trusted, at=at)
        if answer.verdict == self.verdict and question.attempt.state in OPEN:
            self.fail(question.attempt, code="", at=at)


@bug("timeout read as failure", "D4: a timeout leaves the money in doubt")
class TimeoutAsFailure(FailingOnResponse):
    def reads_as_failure(self, response: Any) -> bool:
        return isinstance(response, gateway_errors.OutcomeUnknown) and not response.duplicate


@bug("duplicate 500 as failure", "D4: a duplicate response says nothing about the first request", RESENT)
class DuplicateAsFailure(FailingOnResponse):
    def reads_as_failure(self, response: Any) -> bool:
        return isinstance(response, gateway_errors.OutcomeUnknown) and response.duplicate


@bug(
    "rejection believed after doubt",
    "D4: a rejection is proof only if no POST of the id ended in doubt",
    RESENT | {"rejected": 0.4},
)
class RejectionBelieved(FailingOnResponse):
    def reads_as_failure(self, response: Any) -> bool:
        return isinstance(response, gateway_errors.Rejected)


@bug("code 15 as failure", "D4: result 15 says nothing about the first request", RESENT | {"duplicate by result": 1.0})
class Code15AsFailure(FailingOnResult):
    def reads_as_failure(self, code: str) -> bool:
        return code == "15"


@bug("unknown code as failure", "D4: the definite codes are an allow-list", {"unknown code": 0.4})
class UnknownCodeAsFailure(FailingOnResult):
    def reads_as_failure(self, code: str) -> bool:
        return code not in DEFINITE | {"0", "15"}


@bug("unconfirmed failure", "D4: one callback alone never proves a failure", FORGED)
class UnconfirmedFailure(FailingOnResult):
    def reads_as_failure(self, code: str) -> bool:
        return code in DEFINITE


@bug("not-found as failure", "D4: not found never means failed", {"not found, untruly": 0.6})
class NotFoundAsFailure(FailingOnVerdict):
    verdict = "not_found"


@bug("one status answer as failure", "D4: a failure needs two sources", {"failed, untruly": 0.8})
class OneAnswerAsFailure(FailingOnVerdict):
    verdict = "failed"


@bug("queue timeout as failure", "D4: a queue timeout proves nothing", {"queue timeout, executed": 0.4})
class QueueTimeoutAsFailure(Machine):
    def apply_timeout(self, attempt: Attempt, *, at: datetime) -> None:
        super().apply_timeout(attempt, at=at)
        if attempt.state in OPEN:
            self.fail(attempt, code="", at=at)


@bug(
    "late success dropped", "D4: a late success is booked, never dropped", {"failed, untruly": 1.0, "result late": 0.5}
)
class LateSuccessDropped(Machine):
    def pay(self, attempt: Attempt, *, receipt: str, at: datetime) -> None:
        if attempt.state != "FAILED":
            super().pay(attempt, receipt=receipt, at=at)


@bug("amount not compared", "D4: a result pays only the attempt whose amount it matches", FORGED)
class AmountNotCompared(Machine):
    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        super().apply_result(attempt, result._replace(amount=attempt.payout.amount), trusted=trusted, at=at)


@bug("large success not confirmed", "D4: from MPESA_CONFIRM_ABOVE on a status query must agree", FORGED)
class LargeNotConfirmed(Machine):
    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        policy, self.policy = self.policy, replace(self.policy, confirm_above=Decimal(10**9))
        super().apply_result(attempt, result, trusted=trusted, at=at)
        self.policy = policy


@bug(
    "foreign address trusted",
    "D4: a result from an address that is not M-Pesa's is confirmed by a status query",
    FORGED,
)
class ForeignTrusted(Machine):
    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        super().apply_result(attempt, result, trusted=True, at=at)


@bug("new id per resend", "D3: while the outcome is unknown, the same id is used", RESENT)
class NewIdPerResend(Machine):
    def resends(self, *, at: datetime, limit: int) -> list[Attempt]:
        for attempt in super().resends(at=at, limit=limit):
            self.fail(attempt, code="", at=at)
            attempt.payout.move("PENDING")
            attempt.payout.due_at = at
        return []


@bug(
    "resend without horizon",
    "D3: the same id is sent again only within the resend horizon of its first POST",
    {"answer lost": 0.6, "not found, untruly": 0.9, "result lost": 0.8},
)
class NoHorizon(Machine):
    def within_horizon(self, attempt: Attempt, at: datetime) -> bool:
        return True


@bug(
    "known id sent again",
    "D4: an id that M-Pesa calls a duplicate is only asked about",
    RESENT | {"duplicate by result": 0.0},
)
class KnownSentAgain(Machine):
    def apply_not_found(self, attempt: Attempt, *, at: datetime) -> None:
        known_at, attempt.known_at = attempt.known_at, None
        super().apply_not_found(attempt, at=at)
        attempt.known_at = known_at


@bug("double beat", "D5: of two sweeps at once only one claims a payout")
class DoubleBeat(Machine):
    def claim(self, *, at: datetime, limit: int, only: Payout | None = None) -> list[Attempt]:
        claimed = super().claim(at=at, limit=limit, only=only)
        return claimed + [self.new_attempt(attempt.payout, at) for attempt in claimed]


@bug("operator acts on an open attempt", "D3: retry and redirect only if no request is open", {"operator": 1.0})
class OperatorUnguarded(Machine):
    def check_owed(self, payout: Payout) -> None:
        if payout.status not in ("PROCESSING", "FAILED", "HELD"):
            raise Refused(payout.status)


@bug("no sweep", "D5: losing any message is harmless", {"message lost": 0.5})
class NoSweep(World):
    has_beat = False
