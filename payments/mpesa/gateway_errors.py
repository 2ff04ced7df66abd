"""Errors of a call to Daraja, named by our knowledge of the money."""

from typing import Literal, TypeAlias

from payments.mpesa import refusals

Reason: TypeAlias = Literal["network", "auth", "throttle"]


class GatewayError(Exception):
    """A call that Daraja did not accept, or whose answer we do not have.

    `code` and `message` are Daraja's, or ours if Daraja gave none. The message is redacted.
    The text of an error states our knowledge of the money, then the details.
    """

    words = "Not accepted by Daraja"

    def __init__(self, code: str, message: str, *more: object) -> None:
        # Exception.args must hold every argument, because a task queue pickles the error.
        super().__init__(code, message, *more)
        self.code = code
        self.message = message

    @property
    def details(self) -> str:
        """The code and the message, or one of them, or an empty text."""
        return f"{self.code} {self.message}".strip()

    def __str__(self) -> str:
        return f"{self.words}: {self.details}" if self.details else self.words


class NotSent(GatewayError):
    """The request did not leave, or Daraja surely did not execute it. The same id may be sent again."""

    words = "Not sent"

    def __init__(
        self, reason: Reason, code: str = "", message: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.args = (reason, code, message, retry_after_seconds)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Rejected(GatewayError):
    """Daraja definitely refused the request and will not execute it."""

    words = "Rejected by Daraja"

    @property
    def our_fault(self) -> refusals.OurFault | None:
        """The fault of ours, or None if Daraja refuses the payee's field."""
        return refusals.our_fault(self.code, self.message)


class OutcomeUnknown(GatewayError):
    """Daraja may have executed the request. Conclude nothing, and ask with a status query.

    `duplicate`: Daraja has had this id before, so the result of an earlier request counts.
    """

    words = "Outcome unknown"

    def __init__(self, code: str = "", message: str = "", duplicate: bool = False) -> None:
        super().__init__(code, message, duplicate)
        self.duplicate = duplicate
