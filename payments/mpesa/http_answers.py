"""Daraja's HTTP answers: reading and classification. Pure."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from payments.mpesa.strict_json import Unreadable, read_object

MAX_BODY_BYTES = 64 * 1024

# Both lists are allow-lists. A code that is on neither list leaves the money in doubt.
_REJECTED_RESPONSE_CODES = frozenset({"23", "24", "25", "29", "100000005", "100000007", "100000010", "100000014"})
_REJECTED_ERROR_CODES = frozenset({"400.002.02", "400.002.05", "400.003.02", "405.001"})
_AUTH_CODES = frozenset({"404.001.03", "404.001.04", "400.003.01", "400.008.01", "400.008.02"})
_THROTTLE_CODES = frozenset({"500.003.02", "500.003.03"})
_AUTH_WORDS = re.compile(r"(?i)invalid[ _]access[ _]?token|access[ _]token (?:has )?expired|no apiproduct match found")
_DUPLICATE_WORDS = re.compile(r"(?i)duplicate")


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
        return self.text("errorCode") or self.text("ResponseCode") or self._fault("errorcode")

    @property
    def message(self) -> str:
        return self.text("errorMessage") or self.text("ResponseDescription") or self._fault("faultstring")

    def _fault(self, name: str) -> str:
        """Return a field of the error that Daraja's proxy sends: {fault: {faultstring, detail: {errorcode}}}."""
        fault = (self.fields or {}).get("fault")
        detail = fault.get("detail") if isinstance(fault, dict) else None
        value = {**(detail if isinstance(detail, dict) else {}), **(fault if isinstance(fault, dict) else {})}.get(name)
        return value.strip() if isinstance(value, str) else ""

    @property
    def is_auth_error(self) -> bool:
        # The HTTP status decides nothing: the errors for a bad token come with 400, 401, 404 and 500.
        if self.fields is None or self.is_2xx:
            return False
        return self.code in _AUTH_CODES or self.code.startswith("401.") or bool(_AUTH_WORDS.search(self.message))

    @property
    def refuses_token(self) -> bool:
        return self.is_auth_error and not self.is_duplicate

    @property
    def is_throttle(self) -> bool:
        if self.is_2xx:
            return False
        return self.status == 429 or self.code in _THROTTLE_CODES or self.code.startswith("policies.ratelimit.")

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
        return read_object(body, max_bytes=MAX_BODY_BYTES)
    except Unreadable:
        return None


def _seconds_or_none(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,5}", text.strip()) else None
