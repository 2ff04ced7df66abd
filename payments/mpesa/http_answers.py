"""Daraja's HTTP answers: reading and classification. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Self

from payments.mpesa.strict_json import Unreadable, read_message

MAX_BODY_BYTES = 64 * 1024

# Both lists are allow-lists. A code that is on neither list leaves the money in doubt.
_REJECTED_RESPONSE_CODES = frozenset({"23", "24", "25", "29", "100000005", "100000007", "100000010", "100000014"})
# 403.002.1001: the app lacks the product, or our address is not allowed. Such a request never reaches M-Pesa's core.
_REJECTED_ERROR_CODES = frozenset({"400.002.02", "400.002.05", "400.003.02", "403.002.1001", "405.001"})
_AUTH_CODES = frozenset({"404.001.03", "404.001.04", "400.003.01", "400.008.01", "400.008.02"})
_THROTTLE_CODES = frozenset({"500.003.02", "500.003.03"})
_AUTH_WORDS = re.compile(r"(?i)invalid[ _]access[ _]?token|access[ _]token (?:has )?expired|no apiproduct match found")
_DUPLICATE_WORDS = re.compile(r"(?i)duplicate")
_THROTTLE_WORDS = re.compile(r"(?i)spike ?arrest|quota violation|rate ?limit")


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer. `fields` is None if the body is not a JSON object."""

    status: int
    fields: dict[str, Any] | None
    retry_after_seconds: float | None

    @classmethod
    def of(cls, status: int, body: bytes, retry_after: str) -> Self:
        """Build an answer from the HTTP parts. A body longer than MAX_BODY_BYTES has no fields."""
        return cls(status, _object_or_none(body), _seconds_or_none(retry_after))

    def text(self, name: str) -> str:
        """Return a text or number field as text; "" if it is absent or of another type."""
        value = (self.fields or {}).get(name)
        is_scalar = isinstance(value, str | int | Decimal) and not isinstance(value, bool)
        return str(value).strip() if is_scalar else ""

    @property
    def is_2xx(self) -> bool:
        return 200 <= self.status < 300

    @property
    def code(self) -> str:
        return self._error("errorCode") or self.text("ResponseCode") or self._of_fault("errorcode", "faultcode")

    @property
    def message(self) -> str:
        return self._error("errorMessage") or self.text("ResponseDescription") or self._of_fault("faultstring")

    def _error(self, name: str) -> str:
        # Some of Daraja's servers write `ErrorCode` and `ErrorMessage`.
        return self.text(name) or self.text(name[:1].upper() + name[1:])

    @cached_property
    def _fault(self) -> dict[str, Any]:
        """The fields of the fault that Daraja's proxy sends instead of Daraja's own error.

        Its forms are {fault: {faultstring, detail: {errorcode}}} and {Envelope: {Body: {Fault: {faultcode, faultstring,
        detail: {source: {errorcode}}}}}}, with or without a prefix such as `soap:`.
        """
        body = _inner(_inner(self.fields, "envelope"), "body")
        fault = _inner(self.fields, "fault") or _inner(body, "fault")
        detail = _inner(fault, "detail")
        return {**_by_lower_name(_inner(detail, "source")), **_by_lower_name(detail), **_by_lower_name(fault)}

    def _of_fault(self, *names: str) -> str:
        return next((text.strip() for name in names if isinstance(text := self._fault.get(name), str)), "")

    @property
    def is_auth_error(self) -> bool:
        """True if Daraja refused the access token.

        HTTP 401 always says so, even without a body that we can read: a product's proxy, a gateway and a firewall each
        have their own. The errors for a bad token also come with 400, 404, 500 and, without any id, with 200.
        """
        if self.status == 401:
            return True
        if self.fields is None or (self.is_2xx and (self.text("ResponseCode") or self.text("ConversationID"))):
            return False
        return self.code in _AUTH_CODES or self.code.startswith("401.") or bool(_AUTH_WORDS.search(self.message))

    @property
    def refuses_token(self) -> bool:
        return self.is_auth_error and not self.is_duplicate

    @property
    def is_throttle(self) -> bool:
        if self.is_2xx:
            return False
        if self.status == 429 or self.code in _THROTTLE_CODES or self.code.startswith("policies.ratelimit."):
            return True
        return bool(self._fault and _THROTTLE_WORDS.search(self.message))

    @property
    def is_duplicate(self) -> bool:
        return bool(_DUPLICATE_WORDS.search(self.message))

    @property
    def is_rejection(self) -> bool:
        if self.is_2xx:
            return self.text("ResponseCode") in _REJECTED_RESPONSE_CODES
        return 400 <= self.status < 500 and (self.code in _REJECTED_ERROR_CODES or self.code.startswith("404."))


def _object_or_none(body: bytes) -> dict[str, Any] | None:
    try:
        return read_message(body, max_bytes=MAX_BODY_BYTES)
    except Unreadable:
        return None


def _by_lower_name(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object's fields by name, in lower case and without a prefix such as `soap:`."""
    return {name.rpartition(":")[2].lower(): value for name, value in fields.items()}


def _inner(fields: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """Return the object in a field of an object, or an empty object."""
    value = _by_lower_name(fields or {}).get(name)
    return value if isinstance(value, dict) else {}


def _seconds_or_none(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,5}", text.strip()) else None
