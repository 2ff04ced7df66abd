"""Records of the simulator's book: payments and deposits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Literal

from payments.mpesa.simulator import faults

# East Africa Time has no daylight saving, so the simulator needs no time zone database.
NAIROBI = timezone(timedelta(hours=3), "EAT")

State = Literal["accepted", "paid", "failed", "dropped"]
Event = dict[str, object]


@dataclass(slots=True)
class Payment:
    """One accepted B2C request.

    `state` is the true state of the money. `code` is the reported result code. Only code 17 may contradict `state`.
    The state "dropped" means that the request never reached M-Pesa's core.
    """

    ocid: str
    conversation_id: str
    amount: int
    phone: str
    request: Mapping[str, str]
    active_faults: faults.ActiveFaults
    accepted_at: datetime
    state: State = "accepted"
    code: str = ""
    receipt: str = ""
    charge: Decimal = Decimal(0)
    executed_at: datetime | None = None
    utility_after: int = 0
    charges_after: Decimal = Decimal(0)
    callbacks: list[tuple[str, str, datetime]] = field(default_factory=list)

    @property
    def reported(self) -> bool:
        """True if the result was posted, or was deliberately lost by a fault."""
        return any(kind == "result" for kind, _, _ in self.callbacks)

    @property
    def timed_out(self) -> bool:
        """True if the queue timeout was posted."""
        return any(kind == "timeout" for kind, _, _ in self.callbacks)

    @property
    def answered(self) -> bool:
        """True if a status query about this payment was answered."""
        return any(kind == "status" for kind, _, _ in self.callbacks)

    def summary(self) -> dict[str, object]:
        """Return the payment as JSON types, for people and tests."""
        return {
            "ocid": self.ocid,
            "conversation_id": self.conversation_id,
            "amount": self.amount,
            "phone": self.phone,
            "state": self.state,
            "result_code": self.code,
            "receipt": self.receipt,
            "charge": f"{self.charge:.2f}",
            "faults": self.active_faults.texts(),
            "accepted_at": self.accepted_at.isoformat(),
            "executed_at": self.executed_at and self.executed_at.isoformat(),
            "callbacks": [
                {"kind": kind, "outcome": outcome, "at": at.isoformat()} for kind, outcome, at in self.callbacks
            ],
        }


@dataclass(slots=True)
class Deposit:
    """One M-Pesa Express push. `code` is the result code, empty until the customer answers."""

    checkout_id: str
    merchant_id: str
    amount: int
    phone: str
    callback_url: str
    active_faults: faults.ActiveFaults
    accepted_at: datetime
    code: str = ""
    receipt: str = ""
    reported: bool = False

    def summary(self) -> dict[str, object]:
        """Return the deposit as JSON types, for people and tests."""
        return {
            "checkout_request_id": self.checkout_id,
            "amount": self.amount,
            "phone": self.phone,
            "result_code": self.code,
            "receipt": self.receipt,
            "accepted_at": self.accepted_at.isoformat(),
        }
