"""A scripted M-Pesa: in memory, on the virtual clock, with a book of what it paid and a rate for each of its faults.

It is independent of the simulator that speaks HTTP (payments/mpesa/simulator): what two of them agree on is no accident of
one. It stands in for the gateway, so it answers with the gateway's own values and errors; what it posts are bytes.
Amounts are whole shillings.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, Literal

from payments.mpesa import client, gateway_errors

# M-Pesa publishes no retention of its check of duplicates; ours ends after the resend horizon and all our delays.
REMEMBERS = timedelta(minutes=45)
RATES = {
    "connection refused": 0.3,
    "throttled": 0.3,
    "bad access token": 0.2,
    "rejected": 0.2,
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
    "not found, untruly": 0.6,
    "failed, untruly": 0.3,
}
UNREGISTERED_SHARE = 0.05

Schedule = Callable[[float, str, Callable[[], None]], None]
Post = Callable[[str, bytes], None]


@dataclass
class Request:
    """What M-Pesa knows of one id. `code` is the result code it reached, `receipt` is of a payment."""

    ocid: str
    amount: int
    phone: str
    result_url: str
    timeout_url: str
    received_at: datetime
    state: Literal["queued", "paid", "refused", "expired"] = "queued"
    code: str = ""
    receipt: str = ""


@dataclass(frozen=True)
class Payment:
    """One line of M-Pesa's statement."""

    ocid: str
    amount: int
    receipt: str


def payout_of(ocid: str) -> str:
    """The external reference of the payout that an id is an attempt of."""
    return ocid.rpartition("-")[0]


class Provider:
    """Takes requests, executes each id once while it remembers it, and tells of it as the faults allow.

    `rates` gives each fault's probability; `heal` ends them all but the members whom M-Pesa does not know.
    """

    def __init__(
        self,
        random: Random,
        rates: dict[str, float],
        *,
        clock: Callable[[], datetime],
        schedule: Schedule,
        post: Post,
        lies_at_will: bool,
    ) -> None:
        self._random, self._rates, self._clock, self._schedule, self._post = random, rates, clock, schedule, post
        self.lies_at_will = lies_at_will
        self._numbers = 0
        self.healed = False
        self.requests: dict[str, Request] = {}
        self.book: list[Payment] = []
        self.on_the_way: Counter[str] = Counter()
        self.unregistered: set[str] = set()
        self.no_float_until: datetime | None = None
        # One voice that wrongly says "failed" is what the design survives about one id; this says whose it was.
        self.false_voices: dict[str, str] = {}
        # The ids of which a result that says paid reached us.
        self.told: set[str] = set()
        # What a log of ours could leak: the requests as they were made.
        self.seen: list[Request] = []
        self.struck: Counter[str] = Counter()

    # --- what the gateway would do -----------------------------------------------------------------------------------

    def pay(
        self,
        *,
        originator_conversation_id: str,
        amount_shillings: int,
        phone_number: str,
        result_url: str,
        timeout_url: str,
        **_: str,
    ) -> client.Accepted:
        request = Request(
            originator_conversation_id, amount_shillings, phone_number, result_url, timeout_url, self._clock()
        )
        self.seen.append(request)
        if self.strikes("connection refused"):
            raise gateway_errors.NotSent("network", message="no connection: ConnectionRefusedError")
        if self.strikes("throttled"):
            wait = self._random.choice([None, 1.0, 40.0])
            raise gateway_errors.NotSent("throttle", "500.003.02", "Spike Arrest Violation", wait)
        if self.strikes("bad access token"):
            raise gateway_errors.NotSent("auth", "404.001.03", "Invalid Access Token")
        if self.strikes("rejected"):
            raise gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
        if self.strikes("lost on the way"):
            raise gateway_errors.OutcomeUnknown(message="no whole answer: ReadTimeout")
        if self.strikes("late in the proxy"):
            self.on_the_way[request.ocid] += 1
            self._schedule(self._random.uniform(1, 120), "comes out of the proxy", lambda: self._arrive(request))
            raise gateway_errors.OutcomeUnknown("504", "Gateway Timeout")
        is_new = self._receive(request)
        if self.strikes("answer lost"):
            raise gateway_errors.OutcomeUnknown(message="no whole answer: ReadTimeout")
        if self.strikes("server error"):
            code, words = self._random.choice([("500.001.1001", "Internal Error"), ("", "<html>"), ("502", "")])
            raise gateway_errors.OutcomeUnknown(code, words)
        if not is_new and not self.strikes("duplicate by result"):
            raise gateway_errors.OutcomeUnknown("500.002.1001", "Duplicate OriginatorConversationID.", duplicate=True)
        if not is_new:
            self._tell(request, "15")
        return client.Accepted(self._id("AG"), request.ocid)

    def ask_status(
        self, *, originator_conversation_id: str, result_url: str, timeout_url: str, **_: str
    ) -> client.Accepted:
        if self.strikes("question refused"):
            raise self._random.choice(
                [
                    gateway_errors.NotSent("network", message="no connection: ConnectTimeoutError"),
                    gateway_errors.NotSent("throttle", "500.003.02", "Spike Arrest Violation"),
                    gateway_errors.OutcomeUnknown(message="no whole answer: ReadTimeout"),
                ]
            )
        lost = self.strikes("answer to question lost")
        if lost and self._random.random() < 0.3:
            self._schedule(1.0, "a question times out", lambda: self._post(timeout_url, b'{"Result": {}}'))
        if not lost:
            wait = self._random.choice([0.2, 1.0, 5.0, 70.0] if not self.healed else [0.5])
            times = 2 if self.strikes("answer to question doubled") else 1
            answer = self._answer_once(originator_conversation_id)
            for number in range(times):
                self._schedule(wait + 3 * number, "answers a question", lambda: self._post(result_url, answer()))
        return client.Accepted(self._id("AG"), self._id("Q"))

    # --- what becomes of a request -----------------------------------------------------------------------------------

    def may_still_pay(self, ocid: str) -> bool:
        """Whether the id is paid, or waits to be, or is on its way to where nobody has heard of it."""
        request = self.requests.get(ocid)
        return request.state in ("queued", "paid") if request else self.on_the_way[ocid] > 0

    def may_be_denied(self, ocid: str, voice: str) -> bool:
        """Whether this voice may wrongly say that the id failed; noted, for a second one must not, or not here."""
        return self.false_voices.setdefault(ocid, voice) == voice or self.lies_at_will

    def heal(self) -> None:
        self.healed = True

    def strikes(self, fault: str) -> bool:
        # Drawn in any case, so that switching one fault off leaves the draws of the others where they were.
        struck = self._random.random() < self._rates.get(fault, 0.0) and not self.healed
        self.struck[fault] += struck
        return struck

    def _arrive(self, request: Request) -> None:
        self.on_the_way[request.ocid] -= 1
        self._receive(request)

    def _receive(self, request: Request) -> bool:
        """Take a request in; False where its id is known."""
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

    def _time_out(self, request: Request) -> None:
        self._post(request.timeout_url, json.dumps({"OriginatorConversationID": request.ocid}).encode())

    def _drop(self, request: Request) -> None:
        request.state = "expired"
        self._time_out(request)

    def _execute(self, request: Request) -> None:
        code = self._refusal(request)
        if code:
            request.state, request.code = "refused", code
        else:
            request.state, request.code, request.receipt = "paid", "0", self._id("SKG")
            self.book.append(Payment(request.ocid, request.amount, request.receipt))
        told = request.code
        if self.strikes("unknown code"):
            told = self._random.choice(["17", "26", "4711", "SFC_XX"])
        self._tell(request, told)

    def _refusal(self, request: Request) -> str:
        if request.phone in self.unregistered:
            return "2040"
        if self.no_float_until is not None and self._clock() < self.no_float_until:
            return "1"
        if self.strikes("no float"):
            self.no_float_until = self._clock() + timedelta(seconds=self._random.uniform(5, 90))
            return "1"
        if self.strikes("initiator locked"):
            return self._random.choice(["2001", "8006", "21"])
        if self.strikes("member's limit"):
            return self._random.choice(["4", "8"])
        return ""

    # --- what it tells -----------------------------------------------------------------------------------------------

    def _tell(self, request: Request, code: str) -> None:
        body = self.result(request, code)
        if self.strikes("result lost"):
            return
        wait = self._random.choice([0.01, 0.3, 1.0])
        if self.strikes("result late"):
            wait = self._random.choice([30.0, 200.0, 1500.0, 7200.0])
        for number in range(2 if self.strikes("result doubled") else 1):
            self._schedule(wait + 0.5 * number, "posts a result", lambda: self._post_result(request, code, body))

    def _post_result(self, request: Request, code: str, body: bytes) -> None:
        self._post(request.result_url, body)
        if code == "0":
            self.told.add(request.ocid)

    def _answer_once(self, ocid: str) -> Callable[[], bytes]:
        """One question's answer: the truth of the moment it is first given, or a lie; the same however often posted."""
        given: list[bytes] = []

        def answer() -> bytes:
            if not given:
                given.append(self._answer(ocid))
            return given[0]

        return answer

    def _answer(self, ocid: str) -> bytes:
        request = self.requests.get(ocid)
        if request is None or self.strikes("not found, untruly"):
            return self.status(None, self._random.choice(["49", "SFC_IC0003"]))
        if request.state in ("queued", "paid") and self.strikes("failed, untruly"):
            # One answer, however often it is posted: each question is a voice of its own.
            if self.may_be_denied(ocid, f"answer {self._id('Q')}"):
                return self.status(request, "Failed")
        status = {
            "queued": self._random.choice(["Initiated", "Pending", "Authorized"]),
            "paid": "Completed",
            "refused": self._random.choice(["Failed", "Declined"]),
            "expired": "Expired",
        }[request.state]
        return self.status(request, status)

    def result(self, request: Request, code: str) -> Any:
        """A result, written as it is posted."""
        return result_body(request, code, conversation_id=self._id("AG"))

    def status(self, request: Request | None, status: str) -> Any:
        """The answer to a question, written as it is posted."""
        return status_body(request, status)

    def _id(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}{self._numbers:07d}"


def result_body(
    request: Request, code: str, *, conversation_id: str, amount: int | None = None, receipt: str | None = None
) -> bytes:
    """The result of a B2C request, as Daraja posts it."""
    receipt = receipt or request.receipt
    result: dict[str, Any] = {
        "ResultType": 0,
        "ResultCode": int(code) if code.isdigit() else code,
        "ResultDesc": "The service request is processed successfully." if code == "0" else f"Refused with {code}.",
        "OriginatorConversationID": request.ocid,
        "ConversationID": conversation_id,
        "TransactionID": receipt if code == "0" else "SKG0000000",
    }
    if code == "0":
        result["ResultParameters"] = {
            "ResultParameter": [
                {"Key": "TransactionAmount", "Value": request.amount if amount is None else amount},
                {"Key": "TransactionReceipt", "Value": receipt},
                {"Key": "ReceiverPartyPublicName", "Value": f"{request.phone} - JOHN DOE"},
            ]
        }
    return json.dumps({"Result": result}).encode()


def status_body(request: Request | None, status: str, *, receipt: str | None = None) -> bytes:
    """The answer to a status query: about a request, or the code with which one is not found."""
    result: dict[str, Any] = {
        "ResultType": 0,
        "ResultCode": 0 if request else status,
        "ResultDesc": "The query's own.",
        "OriginatorConversationID": "12345-67890-1",
        "ConversationID": "AG_20260216_2",
        "TransactionID": "MBN0000000",
    }
    if request is not None:
        found = {
            "CreditPartyName": f"{request.phone} - JOHN DOE",
            "OriginatorConversationID": request.ocid,
            "TransactionStatus": status,
            "Amount": request.amount,
            "ReceiptNo": (receipt or request.receipt) if status == "Completed" else None,
        }
        result["ResultParameters"] = {"ResultParameter": [{"Key": k, "Value": v} for k, v in found.items()]}
    return json.dumps({"Result": result}).encode()
