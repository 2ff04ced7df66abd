"""Scripted M-Pesa of the pure world: its messages are values, and its addresses are rows."""

from collections.abc import Callable
from random import Random
from typing import Any

from soak.simulation.provider import Provider, Request
from soak.simulation.pure.rows import Answer, Attempt, Question, Result

VERDICTS = {"Completed": "completed", "Failed": "failed", "Declined": "failed", "Expired": "failed"}
PureRequest = Request[Attempt]


class PureProvider(Provider[Attempt, Question, Result | Answer | None]):
    """M-Pesa that calls `touch` with each id that it receives or reports, so that its payout is judged."""

    def __init__(
        self, random: Random, rates: dict[str, float], *, touch: Callable[[str], None], **settings: Any
    ) -> None:
        super().__init__(random, rates, **settings)
        self._touch = touch

    def result(self, request: PureRequest, code: str) -> Result:
        self._touch(request.ocid)
        if code != "0":
            return Result(request.ocid, code, self._id("AG"))
        return Result(request.ocid, code, self._id("AG"), request.amount, request.phone, request.receipt)

    def status(self, request: PureRequest | None, status: str) -> Answer:
        if request is None:
            return Answer("not_found")
        verdict = VERDICTS.get(status, "unknown")
        receipt = request.receipt if verdict == "completed" else None
        return Answer(verdict, request.ocid, request.amount, request.phone, receipt)

    def timeout(self, request: PureRequest) -> None:
        return None

    def question_timeout(self) -> None:
        return None

    def _receive(self, request: PureRequest) -> bool:
        self._touch(request.ocid)
        return super()._receive(request)
