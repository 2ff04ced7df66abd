"""The scripted M-Pesa as the pure world has it: what it tells are values instead of bytes."""

from collections.abc import Callable
from random import Random
from typing import Any

from soak.simulation.provider import Provider, Request
from soak.simulation.rows import Answer, Result

VERDICTS = {"Completed": "completed", "Failed": "failed", "Declined": "failed", "Expired": "failed"}


class PureProvider(Provider):
    """`touch` is called with the id of what it learns or pays, so that the payout of that is judged."""

    def __init__(
        self, random: Random, rates: dict[str, float], *, touch: Callable[[str], None], **settings: Any
    ) -> None:
        super().__init__(random, rates, **settings)
        self._touch = touch

    def result(self, request: Request, code: str) -> Result:
        self._touch(request.ocid)
        if code != "0":
            return Result(request.ocid, code, self._id("AG"))
        return Result(request.ocid, code, self._id("AG"), request.amount, request.phone, request.receipt)

    def status(self, request: Request | None, status: str) -> Answer:
        if request is None:
            return Answer("not_found")
        verdict = VERDICTS.get(status, "unknown")
        receipt = request.receipt if verdict == "completed" else None
        return Answer(verdict, request.ocid, request.amount, request.phone, receipt)

    def _receive(self, request: Request) -> bool:
        self._touch(request.ocid)
        return super()._receive(request)
