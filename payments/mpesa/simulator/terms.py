"""Terms of a simulated provider: delays, limits and credentials."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """Behaviour of one simulated provider.

    Units: times in seconds; `tps` is the number of payment requests accepted in one second, or 0 for no limit.
    An empty credential accepts any credential that is not empty.
    """

    callback_delay: float = 0.2
    tps: int = 0
    token_life: int = 3599
    not_found_code: str = "49"
    consumer_key: str = ""
    consumer_secret: str = ""
    passkey: str = ""
