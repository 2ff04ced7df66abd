"""Scripted M-Pesa with one outage, for `outages`."""

from typing import Any

from payments.mpesa import client, gateway_errors
from soak.simulation.daraja import DarajaProvider, DarajaRequest
from soak.simulation.provider import OUR_FIELDS


class OutageProvider(DarajaProvider):
    """M-Pesa with one outage. `arrived` counts the requests that came during the outage."""

    outage = ""
    arrived = 0

    def pay(self, **request: Any) -> client.Accepted:
        if self.outage:
            self.arrived += 1
        if self.outage == "refused":
            raise gateway_errors.Rejected("400.002.02", f"Bad Request - Invalid {self._random.choice(OUR_FIELDS)}")
        if self.outage == "failing":
            raise gateway_errors.Rejected("400.002.02", "Bad Request - Invalid PartyB")
        if self.outage == "silent":
            if self._random.random() < 0.5:
                super().pay(**request)
            raise gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)")
        return super().pay(**request)

    def ask_status(self, **question: Any) -> client.Accepted:
        if self.outage == "silent":
            raise gateway_errors.OutcomeUnknown(message="no complete answer from Daraja (timeout)")
        if self.outage == "no results":
            return client.Accepted(self._id("AG"), self._id("Q"))
        return super().ask_status(**question)

    def _tell(self, request: DarajaRequest, code: str) -> None:
        if self.outage not in ("silent", "no results"):
            super()._tell(request, code)
