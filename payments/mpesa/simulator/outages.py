"""Outages of the simulator, which concern every request from one moment to another.

In an outage of the kind `silent`, no request is answered or carried out. In `unanswered`, requests are carried out and
not answered. In `refused`, every payment request is refused for a field of the merchant.
"""

import threading

KINDS = ("silent", "unanswered", "refused")
PAYMENT_PATH = "/mpesa/b2c/v3/paymentrequest"
# (HTTP status, error code, message). Source: Daraja portal, B2C page, error table.
REFUSAL = (400, "400.002.02", "Bad Request - Invalid InitiatorName")


class Outages:
    """The outage of a simulator, and the number of payment requests that arrived during it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._kind = ""
        self._arrived = 0

    def begin(self, kind: str) -> None:
        """Begin an outage, and count from 0. Raises: ValueError for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not an outage; the outages are {', '.join(KINDS)}")
        with self._lock:
            self._kind, self._arrived = kind, 0
            self._over.clear()

    def end(self) -> None:
        """End the outage. Requests that were held lose their connections. Idempotent."""
        with self._lock:
            self._kind = ""
            self._over.set()

    @property
    def arrived(self) -> int:
        """The number of payment requests that arrived during the present outage, or during the last one."""
        with self._lock:
            return self._arrived

    def kind_for(self, path: str) -> str:
        """Return the kind of outage that a request to `path` meets, or "". Count a payment request."""
        if path.startswith("/sandbox/"):
            return ""
        with self._lock:
            is_payment = path.rstrip("/") == PAYMENT_PATH
            if self._kind and is_payment:
                self._arrived += 1
            return self._kind if is_payment or self._kind != "refused" else ""

    def wait(self, seconds: float) -> bool:
        """Wait until the outage is over, at most `seconds`. Return True if it is over."""
        return self._over.wait(seconds)
