"""Scripted M-Pesa for the pure machine, which exchanges plain objects instead of HTTP messages.

A row of the pure machine replaces each callback address.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from soak.simulation.provider import Provider, Request
from soak.simulation.pure.rows import Answer, Attempt, Orphan, Question, Result

ANSWERS_BY_STATUS = {"Completed": "completed", "Failed": "failed", "Declined": "failed", "Expired": "failed"}
PureRequest = Request[Attempt]


class PureProvider(Provider[Attempt, Question | Orphan, Result | Answer | None]):
    """M-Pesa that calls `mark_for_check` with each id that it receives or reports.

    The judge then checks the payout of that id.
    """

    def __init__(
        self, random: Random, rates: dict[str, float], *, mark_for_check: Callable[[str], None], **settings: Any
    ) -> None:
        super().__init__(random, rates, **settings)
        self._mark_for_check = mark_for_check

    def result(self, request: PureRequest, code: str) -> Result:
        self._mark_for_check(request.ocid)
        if code != "0":
            return Result(request.ocid, code, self._id("AG"))
        return Result(request.ocid, code, self._id("AG"), request.amount, request.phone, request.receipt)

    def status(self, request: PureRequest | None, status: str) -> Answer:
        if request is None:
            return Answer("not_found")
        verdict = ANSWERS_BY_STATUS.get(status, "unknown")
        receipt = request.receipt if verdict == "completed" else None
        return Answer(verdict, request.ocid, request.amount, request.phone, receipt)

    def timeout(self, request: PureRequest) -> None:
        return None

    def question_timeout(self) -> None:
        return None

    def _receive(self, request: PureRequest) -> bool:
        self._mark_for_check(request.ocid)
        return super()._receive(request)
