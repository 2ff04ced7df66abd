"""Errors of a call to Daraja, named by what we then know of the money."""

from typing import Literal, TypeAlias

Reason: TypeAlias = Literal["network", "auth", "throttle"]


class GatewayError(Exception):
    """A call that Daraja did not accept, or whose answer we do not have.

    `code` and `message` are Daraja's. They are ours if Daraja gave none. The message is redacted.
    """

    def __init__(self, code: str, message: str, *more: object) -> None:
        # Exception.args holds every argument, so that a task queue can pickle the error.
        super().__init__(code, message, *more)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.code} {self.message}".replace("  ", " ").strip()


class NotSent(GatewayError):
    """The request did not leave, or Daraja surely did not execute it. The same id may be sent again."""

    def __init__(
        self, reason: Reason, code: str = "", message: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.args = (reason, code, message, retry_after_seconds)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Rejected(GatewayError):
    """Daraja definitely refused the request and will not execute it."""


class OutcomeUnknown(GatewayError):
    """Daraja may have executed the request. Ask with a status query; conclude nothing.

    `duplicate`: Daraja has seen this id before, so an earlier request with it counts.
    """

    def __init__(self, code: str = "", message: str = "", duplicate: bool = False) -> None:
        super().__init__(code, message, duplicate)
        self.duplicate = duplicate
