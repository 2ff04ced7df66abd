"""Credentials of one shortcode at Daraja."""

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, repr=False)
class Credentials:
    """Keys of one shortcode at Daraja. `security_credential` is the encrypted password.

    Only STK push (a payment prompt on the member's phone) uses `passkey`.
    """

    base_url: str
    consumer_key: str
    consumer_secret: str
    initiator_name: str
    security_credential: str
    shortcode: str
    passkey: str = ""
    transaction_command: str = "BusinessPayment"

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The Daraja base URL must be http(s)://host, not {self.base_url!r}.")
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    def __repr__(self) -> str:
        return f"Credentials({self.base_url}, shortcode {self.shortcode}, secrets redacted)"

    @property
    def token_name(self) -> str:
        """Name under which workers with the same URL and consumer key share an access token.

        The name is a hash and does not reveal the key.
        """
        return hashlib.sha256(f"{self.base_url}\n{self.consumer_key}".encode()).hexdigest()[:32]
