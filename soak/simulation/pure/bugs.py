"""Deliberate ("planted") bugs in the in-memory payout machine.

Each bug is a machine or a simulated world without one of its guards. The in-memory simulation must find a broken rule
for each bug. In the names of the rules, D3 stands for the states of payouts and requests, D4 for proof about money, and
D5 for messages and sweeps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from payments.mpesa import gateway_errors
from soak.simulation.pure import world as pure_world
from soak.simulation.pure.attempts import OURS, Refused
from soak.simulation.pure.machine import DEFINITE, Machine
from soak.simulation.pure.rows import OPEN, Answer, Attempt, Payout, Question, Result
from soak.simulation.pure.world import World
from soak.simulation.seed_result import SeedResult


@dataclass(frozen=True)
class PureBug:
    """A planted bug: `machine` or `world` lacks one guard, and therefore breaks `rule`.

    `fixed_rates` sets the rates of some faults, so that the case that the guard prevents happens often.
    """

    rule: str
    machine: type[Machine]
    world: type[World]
    fixed_rates: dict[str, float]

    def run(self, seed: int, *, planted: bool = True, keep_trace: bool = False) -> SeedResult:
        """Run one seed with the bug and its `fixed_rates`. With `planted=False` the guard stays on, for comparison."""
        machine, world = (self.machine, self.world) if planted else (Machine, World)
        return pure_world.run(
            seed,
            machine=machine,
            world=world,
            fixed_rates={"commits lost": 0.0} | self.fixed_rates,
            keep_trace=keep_trace,
        )


PURE_BUGS: dict[str, PureBug] = {}
LIKELY_RESENDS = {"answer lost": 0.4, "false not-found answer": 0.6, "slow": 0.3}
LIKELY_FORGERIES = {"forger": 0.8}
LIKELY_LOSSES = {"commits lost": 1.0}
WithoutGuard = TypeVar("WithoutGuard", type[Machine], type[World])


def bug(name: str, rule: str, fixed_rates: dict[str, float] | None = None) -> Callable[[WithoutGuard], WithoutGuard]:
    """Register the decorated machine or world as a planted bug."""

    def add(faulty: WithoutGuard) -> WithoutGuard:
        machine = faulty if issubclass(faulty, Machine) else Machine
        world = faulty if issubclass(faulty, World) else World
        PURE_BUGS[name] = PureBug(rule, machine, world, fixed_rates or {})
        return faulty

    return add


class FailingOnResponse(Machine):
    """A machine that marks the request as failed if `reads_as_failure` returns True for the response."""

    def record(self, attempt: Attempt, response: Any, *, at: datetime) -> None:
        super().record(attempt, response, at=at)
        if self.reads_as_failure(response) and attempt.state in OPEN:
            self.fail(attempt, code="", at=at)

    def reads_as_failure(self, response: Any) -> bool:
        raise NotImplementedError


class FailingOnResult(Machine):
    """A machine that marks the request as failed at once if `reads_as_failure` returns True for the code."""

    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        super().apply_result(attempt, result, trusted=trusted, at=at)
        if self.reads_as_failure(result.code) and attempt.state in OPEN:
            self.fail(attempt, code="", at=at)

    def reads_as_failure(self, code: str) -> bool:
        raise NotImplementedError


class FailingOnAnswer(Machine):
    """A machine that marks the request as failed after one answer with the verdict `misread`."""

    misread = ""

    def apply_answer(self, question: Question, answer: Answer, *, trusted: bool, at: datetime) -> None:
        super().apply_answer(question, answer, trusted=trusted, at=at)
        if answer.verdict == self.misread and question.attempt.state in OPEN:
            self.fail(question.attempt, code="", at=at)


@bug("timeout read as failure", "D4: a timeout leaves the money in doubt")
class TimeoutAsFailure(FailingOnResponse):
    def reads_as_failure(self, response: Any) -> bool:
        return isinstance(response, gateway_errors.OutcomeUnknown) and not response.duplicate


@bug("duplicate 500 as failure", "D4: a duplicate response says nothing about the first request", LIKELY_RESENDS)
class DuplicateAsFailure(FailingOnResponse):
    def reads_as_failure(self, response: Any) -> bool:
        return isinstance(response, gateway_errors.OutcomeUnknown) and response.duplicate


@bug(
    "rejection believed after doubt",
    "D4: a rejection is proof only if no POST of the id ended in doubt",
    LIKELY_RESENDS | {"rejected": 0.4},
)
class RejectionBelieved(FailingOnResponse):
    def reads_as_failure(self, response: Any) -> bool:
        return isinstance(response, gateway_errors.Rejected)


@bug(
    "code 15 as failure",
    "D4: result 15 says nothing about the first request",
    LIKELY_RESENDS | {"duplicate by result": 1.0},
)
class Code15AsFailure(FailingOnResult):
    def reads_as_failure(self, code: str) -> bool:
        return code == "15"


@bug("unknown code as failure", "D4: the definite codes are an allow-list", {"unknown code": 0.4})
class UnknownCodeAsFailure(FailingOnResult):
    def reads_as_failure(self, code: str) -> bool:
        return code not in DEFINITE | {"0", "15"}


@bug("unconfirmed failure", "D4: one callback alone never proves a failure", LIKELY_FORGERIES)
class UnconfirmedFailure(FailingOnResult):
    def reads_as_failure(self, code: str) -> bool:
        return code in DEFINITE


@bug("not-found as failure", "D4: not found never means failed", {"false not-found answer": 0.6})
class NotFoundAsFailure(FailingOnAnswer):
    misread = "not_found"


@bug("one status answer as failure", "D4: a failure needs two sources", {"false failed answer": 0.8})
class OneAnswerAsFailure(FailingOnAnswer):
    misread = "failed"


@bug("queue timeout as failure", "D4: a queue timeout proves nothing", {"queue timeout, executed": 0.4})
class QueueTimeoutAsFailure(Machine):
    def apply_timeout(self, attempt: Attempt, *, at: datetime) -> None:
        super().apply_timeout(attempt, at=at)
        if attempt.state in OPEN:
            self.fail(attempt, code="", at=at)


@bug(
    "late success dropped",
    "D4: a late success is booked, never dropped",
    {"false failed answer": 1.0, "result late": 0.5},
)
class LateSuccessDropped(Machine):
    def pay(self, attempt: Attempt, *, receipt: str, at: datetime, amount: int | None = None) -> None:
        if attempt.state != "FAILED":
            super().pay(attempt, receipt=receipt, at=at, amount=amount)


@bug("amount not compared", "D4: a result proves only the payment of an attempt with the same amount", LIKELY_FORGERIES)
class AmountNotCompared(Machine):
    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        super().apply_result(attempt, result._replace(amount=attempt.payout.amount), trusted=trusted, at=at)


@bug(
    "large success not confirmed",
    "D4: for amounts of MPESA_CONFIRM_ABOVE or more, a status query must agree",
    LIKELY_FORGERIES,
)
class LargeNotConfirmed(Machine):
    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        policy, self.policy = self.policy, replace(self.policy, confirm_above=Decimal(10**9))
        super().apply_result(attempt, result, trusted=trusted, at=at)
        self.policy = policy


@bug(
    "large second receipt not confirmed",
    "D4: for amounts of MPESA_CONFIRM_ABOVE or more, a status query must agree about a second payment too",
    LIKELY_FORGERIES,
)
class LargeSecondNotConfirmed(Machine):
    def _apply_paid_again(self, attempt: Attempt, receipt: str, trusted: bool, proves: bool, at: datetime) -> None:
        super()._apply_paid_again(attempt, receipt, trusted, proves or trusted, at)


@bug(
    "foreign address trusted",
    "D4: a result from an address that is not M-Pesa's is confirmed by a status query",
    LIKELY_FORGERIES,
)
class ForeignTrusted(Machine):
    def apply_result(self, attempt: Attempt, result: Result, *, trusted: bool, at: datetime) -> None:
        super().apply_result(attempt, result, trusted=True, at=at)


@bug(
    "fault of ours read as the member's",
    "D4: a fault of ours fails no winner",
    {"initiator locked": 0.4, "no float": 0.4},
)
class OursAsMembers(Machine):
    def fail(self, attempt: Attempt, *, code: str, at: datetime, ours: bool = False) -> None:
        super().fail(attempt, code="2040" if code in OURS else code, at=at)
        attempt.report = code


@bug("new id per resend", "D3: while the outcome is unknown, the same id is used", LIKELY_RESENDS)
class NewIdPerResend(Machine):
    def resends(self, *, at: datetime, limit: int) -> list[Attempt]:
        for attempt in super().resends(at=at, limit=limit):
            self.fail(attempt, code="", at=at)
            attempt.payout.move("PENDING")
            attempt.payout.due_at = at
        return []


@bug(
    "resend without horizon",
    "D3: the same id is sent again only within a fixed time after its first POST",
    {"answer lost": 0.6, "false not-found answer": 0.9, "result lost": 0.8},
)
class NoHorizon(Machine):
    def within_horizon(self, attempt: Attempt, at: datetime) -> bool:
        return True


@bug(
    "known id sent again",
    "D4: after M-Pesa has called an id a duplicate, we only send status queries about it",
    LIKELY_RESENDS | {"duplicate by result": 0.0},
)
class KnownSentAgain(Machine):
    def apply_not_found(self, attempt: Attempt, *, at: datetime) -> None:
        known_at, attempt.known_at = attempt.known_at, None
        super().apply_not_found(attempt, at=at)
        attempt.known_at = known_at


@bug("double beat", "D5: if two sweeps run at the same time, only one of them claims a payout")
class DoubleBeat(Machine):
    def claim(self, *, at: datetime, limit: int, only: Payout | None = None) -> list[Attempt]:
        claimed = super().claim(at=at, limit=limit, only=only)
        return claimed + [self.new_attempt(attempt.payout, at) for attempt in claimed]


@bug("operator acts on an open attempt", "D3: retry and redirect only if no request is open", {"operator": 1.0})
class OperatorUnguarded(Machine):
    def check_owed(self, payout: Payout) -> None:
        if payout.status not in ("PROCESSING", "FAILED", "HELD"):
            raise Refused(payout.status)


@bug("drawn reference", "D3: a debt that is settled again after a loss has the same reference", LIKELY_LOSSES)
class DrawnReference(World):
    def reference(self, market: int, number: int) -> str:
        return f"{super().reference(market, number)}x{self.stats['commits lost']}"


@bug(
    "lost request not asked about",
    "D3: after a loss, a request is asked about before it leaves",
    LIKELY_LOSSES | {"rejected": 0.6, "operator": 1.0},
)
class NotAskedFirst(Machine):
    def claim(self, *, at: datetime, limit: int, only: Payout | None = None) -> list[Attempt]:
        self.asked_first.update(payout.ref for payout in self.payouts)
        return super().claim(at=at, limit=limit, only=only)


@bug("no sweep", "D5: losing any message is harmless", {"message lost": 0.5})
class NoSweep(World):
    has_beat = False


# --- decisions of people ---------------------------------------------------------------------------------------------

WRONG_DECISIONS = {"people read the wrong line": 1.0, "forger": 0.8, "false failed answer": 0.8, "result lost": 0.9}


@bug("a contradicted decision stands", "D4: later proof takes a person's decision back", WRONG_DECISIONS)
class ContradictionIgnored(Machine):
    def take_back(self, attempt: Attempt, *, report: str, at: datetime) -> None:
        attempt.decision, attempt.ask_at = "", None


@bug("a decided receipt is not asked about", "D4: a person's decision ranks below M-Pesa's evidence", WRONG_DECISIONS)
class DecisionBelieved(Machine):
    def ask(self, *, at: datetime, limit: int) -> list[Question]:
        for payout in self.payouts:
            for attempt in payout.attempts:
                if attempt.decision == "paid":
                    attempt.decision, attempt.ask_at = "", None
                    self.touched.add(payout)
        return super().ask(at=at, limit=limit)
