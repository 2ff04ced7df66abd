"""Scripted M-Pesa in memory, with a book of payments and rates of faults.

It runs on the virtual clock. It shares no code with payments/mpesa/simulator, which speaks HTTP. An error in one of the
two therefore does not repeat in the other. It replaces the gateway: it returns the same values and raises the same
errors. Subclasses write the messages that it posts.
Units: whole shillings.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Generic, Literal, TypeVar

from payments.mpesa import client, gateway_errors

# M-Pesa does not publish how long it remembers an id. We assume a time longer than the resend horizon and all our
# delays.
REMEMBERS = timedelta(minutes=45)
RATES = {
    "connection refused": 0.3,
    "throttled": 0.3,
    "bad access token": 0.2,
    "rejected": 0.2,
    "our field refused": 0.2,
    "lost on the way": 0.3,
    "answer lost": 0.3,
    "server error": 0.3,
    "late in the proxy": 0.3,
    "duplicate by result": 0.5,
    "no float": 0.3,
    "initiator locked": 0.1,
    "member's limit": 0.1,
    "unknown code": 0.3,
    "queue timeout, executed": 0.2,
    "queue timeout, dropped": 0.2,
    "slow": 0.4,
    "result lost": 0.5,
    "result doubled": 0.5,
    "result late": 0.4,
    "question refused": 0.3,
    "answer to question lost": 0.4,
    "answer to question doubled": 0.4,
    "false not-found answer": 0.6,
    "false failed answer": 0.3,
}
UNREGISTERED_SHARE = 0.05
# Faults of ours: codes of results, and fields of our request that M-Pesa refuses.
OUR_CODES = ("2001", "8006", "21", "11", "2006", "2028", "TP40153")
OUR_FIELDS = ("InitiatorName", "SecurityCredential", "ResultURL", "CommandID")

Schedule = Callable[[float, str, Callable[[], None]], None]
# Types of the addresses for results and for answers, and of the messages. In one world they are URLs and bytes, in the
# other they are rows and plain objects.
ResultAddress = TypeVar("ResultAddress")
AnswerAddress = TypeVar("AnswerAddress")
Message = TypeVar("Message")


@dataclass
class Request(Generic[ResultAddress]):
    """A request as M-Pesa knows it. `code` is its result code, and `receipt` is the receipt of its payment."""

    ocid: str
    amount: int
    phone: str
    result_url: ResultAddress
    timeout_url: ResultAddress
    received_at: datetime
    state: Literal["queued", "paid", "refused", "expired"] = "queued"
    code: str = ""
    receipt: str = ""


@dataclass(frozen=True)
class Payment:
    """A line of M-Pesa's statement."""

    ocid: str
    amount: int
    receipt: str


def payout_of(ocid: str) -> str:
    """Return the external reference of the payout to which the id of an attempt belongs."""
    return ocid.rpartition("-")[0]


class Provider(ABC, Generic[ResultAddress, AnswerAddress, Message]):
    """M-Pesa: takes requests, executes an id only once while it remembers the id, and posts results.

    `rates` is the probability of each fault. `stop_faults` ends all faults, but unregistered members stay unregistered.
    If `answers_wrongly` is true, several sources may wrongly report that one id failed. `post` delivers a message.
    It returns True if we stored the message and believe that it is M-Pesa's.
    """

    def __init__(
        self,
        random: Random,
        rates: dict[str, float],
        *,
        clock: Callable[[], datetime],
        schedule: Schedule,
        post: Callable[[ResultAddress | AnswerAddress, Message], bool],
        answers_wrongly: bool,
    ) -> None:
        self._random, self._rates, self._clock, self._schedule, self._post = random, rates, clock, schedule, post
        self.answers_wrongly = answers_wrongly
        self._numbers = 0
        self.faults_stopped = False
        self.requests: dict[str, Request[ResultAddress]] = {}
        self.book: list[Payment] = []
        self.on_the_way: Counter[str] = Counter()
        self.unregistered: set[str] = set()
        self.no_float_until: datetime | None = None
        # For one id, our design survives one source that wrongly reports a failure. The source, by id.
        self.false_sources: dict[str, str] = {}
        # Ids for which a result that reports a payment reached us, and we believe that it is M-Pesa's.
        self.told: set[str] = set()
        # Every request that we made. The forger knows these requests, because our log could leak them.
        self.seen: list[Request[ResultAddress]] = []
        self.struck: Counter[str] = Counter()

    # --- the gateway's calls -----------------------------------------------------------------------------------------

    def pay(
        self,
        *,
        originator_conversation_id: str,
        amount_shillings: int,
        phone_number: str,
        result_url: ResultAddress,
        timeout_url: ResultAddress,
        **_: str,
    ) -> client.Accepted:
        """Take a B2C request instead of the gateway. Raises: NotSent; Rejected; OutcomeUnknown."""
        request = Request(
            originator_conversation_id, amount_shillings, phone_number, result_url, timeout_url, self._clock()
        )
        self.seen.append(request)
        if self.strikes("connection refused"):
            raise gateway_errors.NotSent("network", message="no connection to Daraja (connection error)")
        if self.strikes("throttled"):
            wait = self._random.choice([None, 1.0, 40.0])
            raise gateway_errors.NotSent("throttle", "500.003.02", "Spike Arrest Violation", wait)
        if self.strikes("bad access token"):
            raise gateway_errors.NotSent("auth", "404.001.03", "Invalid Access Token")
        if self.strikes("rejected"):
            raise gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
        if self.strikes("our field refused"):
            field = self._random.choice(OUR_FIELDS)
            raise gateway_errors.Rejected("400.002.02", f"Bad Request - Invalid {field}")
        if self.strikes("lost on the way"):
            raise gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)")
        if self.strikes("late in the proxy"):
            self.on_the_way[request.ocid] += 1
            self._schedule(self._random.uniform(1, 120), "leaves the proxy", lambda: self._arrive(request))
            raise gateway_errors.OutcomeUnknown("504", "Gateway Timeout")
        is_new = self._receive(request)
        if self.strikes("answer lost"):
            raise gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)")
        if self.strikes("server error"):
            code, words = self._random.choice([("500.001.1001", "Internal Error"), ("", "<html>"), ("502", "")])
            raise gateway_errors.OutcomeUnknown(code, words)
        if not is_new and not self.strikes("duplicate by result"):
            raise gateway_errors.OutcomeUnknown("500.002.1001", "Duplicate OriginatorConversationID.", duplicate=True)
        if not is_new:
            self._tell(request, "15")
        return client.Accepted(self._id("AG"), request.ocid)

    def ask_status(
        self,
        *,
        originator_conversation_id: str | None = None,
        receipt: str | None = None,
        result_url: AnswerAddress,
        timeout_url: AnswerAddress,
        **_: str,
    ) -> client.Accepted:
        """Take a status query instead of the gateway. Raises: NotSent; OutcomeUnknown."""
        ocid = originator_conversation_id or self._ocid_of(receipt or "")
        if self.strikes("question refused"):
            raise self._random.choice(
                [
                    gateway_errors.NotSent("network", message="no connection to Daraja (timeout)"),
                    gateway_errors.NotSent("throttle", "500.003.02", "Spike Arrest Violation"),
                    gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)"),
                ]
            )
        lost = self.strikes("answer to question lost")
        if lost and self._random.random() < 0.3:
            self._schedule(1.0, "a question times out", lambda: self._deliver(timeout_url, self.question_timeout()))
        if not lost:
            wait = self._random.choice([0.2, 1.0, 5.0, 70.0] if not self.faults_stopped else [0.5])
            times = 2 if self.strikes("answer to question doubled") else 1
            answer = self._answer_once(ocid)
            for number in range(times):
                self._schedule(wait + 3 * number, "answers a question", lambda: self._deliver(result_url, answer()))
        return client.Accepted(self._id("AG"), self._id("Q"))

    # --- requests ----------------------------------------------------------------------------------------------------

    def _ocid_of(self, receipt: str) -> str:
        """Return the id of the request that this receipt paid, or an id that does not exist."""
        return next((payment.ocid for payment in self.book if payment.receipt == receipt), "")

    def may_still_pay(self, ocid: str) -> bool:
        """Return True if the id is paid, is queued, or is still on its way to M-Pesa."""
        request = self.requests.get(ocid)
        return request.state in ("queued", "paid") if request else self.on_the_way[ocid] > 0

    def may_deny(self, ocid: str, source: str) -> bool:
        """Return True if this source may wrongly report that the id failed.

        The first source of each id is kept. A second source may report the same only if M-Pesa lies at will.
        """
        return self.false_sources.setdefault(ocid, source) == source or self.answers_wrongly

    def stop_faults(self) -> None:
        """End every fault."""
        self.faults_stopped = True

    def strikes(self, fault: str) -> bool:
        """Draw one random number, and return True if it makes the fault happen now. Counts each fault."""
        # The number is drawn even if this fault is off, so that the other faults get the same draws.
        struck = self._random.random() < self._rates.get(fault, 0.0) and not self.faults_stopped
        self.struck[fault] += struck
        return struck

    def _arrive(self, request: Request[ResultAddress]) -> None:
        self.on_the_way[request.ocid] -= 1
        self._receive(request)

    def _receive(self, request: Request[ResultAddress]) -> bool:
        """Queue a request. Returns False if M-Pesa remembers its id."""
        known = self.requests.get(request.ocid)
        if known is not None and self._clock() - known.received_at < REMEMBERS:
            return False
        request.received_at = self._clock()
        self.requests[request.ocid] = request
        wait = self._random.choice([0.05, 0.5, 2.0, 8.0])
        if self.strikes("slow"):
            wait = self._random.uniform(20, 400)
        if self.strikes("queue timeout, executed"):
            self._schedule(wait / 2, "its queue times out", lambda: self._time_out(request))
        drops = self.strikes("queue timeout, dropped")
        self._schedule(wait, "executes", lambda: self._drop(request) if drops else self._execute(request))
        return True

    def _time_out(self, request: Request[ResultAddress]) -> None:
        self._post(request.timeout_url, self.timeout(request))

    def _drop(self, request: Request[ResultAddress]) -> None:
        request.state = "expired"
        self._time_out(request)

    def _execute(self, request: Request[ResultAddress]) -> None:
        code = self._refusal(request)
        if code:
            request.state, request.code = "refused", code
        else:
            request.state, request.code, request.receipt = "paid", "0", self._id("SKG")
            self.book.append(Payment(request.ocid, request.amount, request.receipt))
        code = request.code
        if self.strikes("unknown code"):
            code = self._random.choice(["17", "26", "4711", "SFC_XX"])
        self._tell(request, code)

    def _refusal(self, request: Request[ResultAddress]) -> str:
        if request.phone in self.unregistered:
            return "2040"
        if self.no_float_until is not None and self._clock() < self.no_float_until:
            return "1"
        if self.strikes("no float"):
            self.no_float_until = self._clock() + timedelta(seconds=self._random.uniform(5, 90))
            return "1"
        if self.strikes("initiator locked"):
            return self._random.choice(OUR_CODES)
        if self.strikes("member's limit"):
            return self._random.choice(["4", "8"])
        return ""

    # --- results and answers -----------------------------------------------------------------------------------------

    def _tell(self, request: Request[ResultAddress], code: str) -> None:
        body = self.result(request, code)
        if self.strikes("result lost"):
            return
        wait = self._random.choice([0.01, 0.3, 1.0])
        if self.strikes("result late"):
            wait = self._random.choice([30.0, 200.0, 1500.0, 7200.0])
        for number in range(2 if self.strikes("result doubled") else 1):
            self._schedule(wait + 0.5 * number, "posts a result", lambda: self._post_result(request, code, body))

    def _post_result(self, request: Request[ResultAddress], code: str, body: Message) -> None:
        if self._post(request.result_url, body) and code == "0":
            self.told.add(request.ocid)

    def _deliver(self, url: ResultAddress | AnswerAddress, message: Message) -> None:
        self._post(url, message)

    def _answer_once(self, ocid: str) -> Callable[[], Message]:
        """Return a function that makes the answer to one question at its first call. Later calls repeat the answer.

        The answer is true at the time of the first call, or it is a lie.
        """
        first: list[Message] = []

        def answer() -> Message:
            if not first:
                first.append(self._answer(ocid))
            return first[0]

        return answer

    def _answer(self, ocid: str) -> Message:
        request = self.requests.get(ocid)
        if request is None or self.strikes("false not-found answer"):
            return self.status(None, self._random.choice(["49", "SFC_IC0003"]))
        # Each question is a separate source, even if its answer is posted twice.
        lies = request.state in ("queued", "paid") and self.strikes("false failed answer")
        if lies and self.may_deny(ocid, f"answer {self._id('Q')}"):
            return self.status(request, "Failed")
        status = {
            "queued": self._random.choice(["Initiated", "Pending", "Authorized"]),
            "paid": "Completed",
            "refused": self._random.choice(["Failed", "Declined"]),
            "expired": "Expired",
        }[request.state]
        return self.status(request, status)

    # --- messages that a subclass writes -----------------------------------------------------------------------------

    @abstractmethod
    def result(self, request: Request[ResultAddress], code: str) -> Message:
        """Return the result of a request."""

    @abstractmethod
    def status(self, request: Request[ResultAddress] | None, status: str) -> Message:
        """Return the answer to a question. If `request` is None, `status` is the not-found code."""

    @abstractmethod
    def timeout(self, request: Request[ResultAddress]) -> Message:
        """Return the queue timeout of a request."""

    @abstractmethod
    def question_timeout(self) -> Message:
        """Return the queue timeout of a question."""

    def _id(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}{self._numbers:07d}"
