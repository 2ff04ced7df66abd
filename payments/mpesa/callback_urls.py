"""The addresses M-Pesa answers to. Each request and each query has its own, with a token that nobody can guess.

A token is HMAC-SHA256 of what it is for, in hex: it can be made again for a resend of the same id, and hex cannot spell
any of the words that M-Pesa forbids in URLs. The database keeps its SHA-256 only.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from urllib.parse import urljoin


def token_hash(token: str) -> str:
    """What is stored of a token, and looked up when a callback brings one."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Addresses:
    """Makes callback addresses under `callback_url`, the public address of `…/b2c-callback/`."""

    callback_url: str
    key: str = field(repr=False)

    def token(self, subject: str) -> str:
        return hmac.new(self.key.encode(), f"kasoko.callback:{subject}".encode(), hashlib.sha256).hexdigest()

    def owns(self, token: str, subject: str) -> bool:
        """Whether `token` is the one that `subject` was given."""
        return hmac.compare_digest(token.encode(), self.token(subject).encode())

    def result(self, token: str) -> str:
        return urljoin(self.callback_url, f"{token}/")

    def timeout(self, token: str) -> str:
        return urljoin(self.callback_url, f"../b2c-timeout/{token}/")

    def status_result(self, token: str) -> str:
        return urljoin(self.callback_url, f"../status-result/{token}/")

    def balance_result(self, token: str) -> str:
        return urljoin(self.callback_url, f"../balance-result/{token}/")
