"""The terms of a simulated provider."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """How this provider behaves. Times in seconds; empty credentials accept any that are not empty.

    `tps` is the number of payment requests accepted in one second, 0 for no limit.
    """

    callback_delay: float = 0.2
    tps: int = 0
    token_life: int = 3599
    not_found_code: str = "49"
    consumer_key: str = ""
    consumer_secret: str = ""
    passkey: str = ""
