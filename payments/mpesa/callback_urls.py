"""Callback addresses with a secret token for each request and each query.

M-Pesa posts its results to these addresses. A token is the HMAC-SHA256 of its subject in hex, so a resend of the same
id gets the same token. Hexadecimal digits cannot form any of the words that M-Pesa forbids in URLs.
The database stores only the SHA-256 of a token.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urljoin

# A urljoin for each payout took a tenth of the time that a payout costs.
_joined = lru_cache(maxsize=32)(urljoin)


def token_hash(token: str) -> str:
    """Return the hash under which the database stores and finds a token."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Addresses:
    """Builder of callback addresses under `callback_url`, the public address of `…/b2c-callback/`."""

    callback_url: str
    key: str = field(repr=False)

    def token(self, subject: str) -> str:
        return hmac.new(self.key.encode(), f"kasoko.callback:{subject}".encode(), hashlib.sha256).hexdigest()

    def owns(self, token: str, subject: str) -> bool:
        """Return True if `token` is the token of `subject`."""
        return hmac.compare_digest(token.encode(), self.token(subject).encode())

    def result(self, token: str) -> str:
        return f"{_joined(self.callback_url, '.')}{token}/"

    def timeout(self, token: str) -> str:
        return f"{_joined(self.callback_url, '../b2c-timeout/')}{token}/"

    def status_result(self, token: str) -> str:
        return f"{_joined(self.callback_url, '../status-result/')}{token}/"

    def balance_result(self, token: str) -> str:
        return f"{_joined(self.callback_url, '../balance-result/')}{token}/"
