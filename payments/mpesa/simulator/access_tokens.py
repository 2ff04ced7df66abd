"""Access tokens of the simulator: issue, check and early end."""

import base64
import binascii
import hmac
import itertools
import threading
import time

from payments.mpesa.simulator import draws, replies
from payments.mpesa.simulator.messages import Refused
from payments.mpesa.simulator.terms import Terms


class AccessTokens:
    """The current access token. Each new token ends the previous token, as Daraja's portal says."""

    def __init__(self, *, terms: Terms, seed: int) -> None:
        self._terms, self._seed = terms, seed
        self._lock = threading.Lock()
        self._token, self._expires_at = "", 0.0
        self._numbers = itertools.count(1)

    def issue(self, *, authorization: str, grant_type: str) -> replies.Reply:
        """Issue a token. Raises: Refused for wrong credentials or another grant type."""
        if not self._has_valid_credentials(authorization):
            raise Refused(400, "400.008.01", "Invalid Authentication passed")
        if grant_type != "client_credentials":
            raise Refused(400, "400.008.02", "Invalid grant type passed")
        number = next(self._numbers)
        life = self._terms.token_life
        with self._lock:
            drawn = draws.draw(self._seed, "token", number, time.time_ns())
            self._token = base64.b64encode(f"{drawn:021d}".encode()).decode()
            self._expires_at = time.monotonic() + life
            token = self._token
        as_text = draws.fraction(self._seed, "expires_in", number) < 0.5
        return replies.reply({"access_token": token, "expires_in": str(life) if as_text else life})

    def check(self, authorization: str, error_code: str) -> None:
        """Refuse a call without the current token. `error_code` is the API's code for a bad token. Raises: Refused."""
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer" or not token:
            raise replies.bad_token("404.001.04", "")
        with self._lock:
            current = self._token if time.monotonic() < self._expires_at else ""
        if not current or not hmac.compare_digest(token.encode(), current.encode()):
            raise replies.bad_token(error_code, token)

    def end(self) -> str:
        """End the current token early and return this token."""
        with self._lock:
            ended, self._token = self._token, ""
        return ended

    def _has_valid_credentials(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            key, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        terms = self._terms
        key_fits = not terms.consumer_key or key == terms.consumer_key
        secret_fits = not terms.consumer_secret or secret == terms.consumer_secret
        return scheme == "Basic" and bool(key and secret) and key_fits and secret_fits
