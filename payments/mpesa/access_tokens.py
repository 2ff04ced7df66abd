"""OAuth access token that all workers share in Redis."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import redis
from redis.exceptions import LockError

from payments.mpesa.gateway_errors import NotSent
from payments.mpesa.sealing import Seal

Fetch: TypeAlias = Callable[[], tuple[str, int]]


class Tokens(Protocol):
    """A store of the OAuth token. `fetch` returns a new token and its life in seconds."""

    def get(self, fetch: Fetch) -> str: ...

    def drop(self, token: str) -> None: ...


class SharedTokens:
    """One OAuth token in Redis for all workers, because each new token ends the previous token.

    One worker renews the token shortly before its end: 60 s before, or a quarter of its life if that is less. Meanwhile
    all other workers use the old token. Redis alone counts its life, because the clocks of hosts differ.
    The token is encrypted with `seal`. A value that we did not write counts as missing, so a new token is fetched.
    Units: `name` is `Credentials.token_name`.
    Source: Daraja portal, page Authorization.
    """

    _DROP = "if redis.call('HGET', KEYS[1], 'mark') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

    def __init__(
        self,
        redis_client: redis.Redis,
        *,
        name: str,
        seal: Seal,
        wait_seconds: float = 1.0,
        lock_seconds: float = 10.0,
    ) -> None:
        self._redis = redis_client
        self._key = f"daraja:token:{name}"
        self._seal = seal
        self._wait_seconds = wait_seconds
        self._lock_seconds = lock_seconds
        self._news: float | None = None

    def get(self, fetch: Fetch) -> str:
        """Return the shared token. Fetch a new one under the lock if there is none or if its end is near.

        Raises: NotSent if another worker holds the lock for too long; RedisError; every error of `fetch`.
        """
        token, is_fresh = self._read()
        if token and is_fresh:
            return token
        lock = self._redis.lock(f"{self._key}:lock", timeout=self._lock_seconds, sleep=0.02)
        if not lock.acquire(blocking=not token, blocking_timeout=self._wait_seconds if not token else None):
            if token:
                return token
            raise NotSent("network", message="another worker is still fetching the access token")
        try:
            token, is_fresh = self._read()
            if token and is_fresh:
                return token
            asked_at = time.monotonic()
            value = self._write(*fetch())
            self._news = asked_at
            return value
        except NotSent:
            # The old token is valid until its end, even if no new token can be fetched.
            if token:
                return token
            raise
        finally:
            # The lock may have expired while we fetched. Its new holder fetches again, which is harmless.
            with suppress(LockError):
                lock.release()

    def age_of_news(self) -> float | None:
        """Return the seconds since this process asked for the latest token that M-Pesa issued.

        Returns None if it has issued none to this process since the last call. A new token shows that the host answers.
        """
        asked_at, self._news = self._news, None
        return None if asked_at is None else time.monotonic() - asked_at

    def drop(self, token: str) -> None:
        """Delete `token` if it is still the shared token. A newer token stays. Raises: RedisError."""
        try:
            self._redis.eval(self._DROP, 1, self._key, self._seal.mark(token))
        except redis.ResponseError:
            self._redis.delete(self._key)  # Somebody stored another type. The next worker fetches a token.

    def _read(self) -> tuple[str, bool]:
        """Return the stored token, or "" if there is none, and True if its end is not near."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(self._key, "value", "margin")
            pipeline.pttl(self._key)
            fields, left_milliseconds = pipeline.execute(raise_on_error=False)
        if isinstance(fields, redis.ResponseError):
            return "", False  # Somebody stored another type. `_write` replaces it.
        sealed, margin = (field.decode(errors="replace") if isinstance(field, bytes) else field for field in fields)
        value = self._seal.open(sealed or "", place=self._key)
        try:
            return value, bool(value) and left_milliseconds > 1_000 * float(margin or "")
        except ValueError:
            return "", False

    def _write(self, value: str, life_seconds: int) -> str:
        token: dict[Any, Any] = {
            "value": self._seal.close(value, place=self._key),
            "mark": self._seal.mark(value),
            "margin": min(60.0, life_seconds / 4),
        }
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(self._key)
            pipeline.hset(self._key, mapping=token)
            pipeline.expire(self._key, life_seconds)
            pipeline.execute()
        return value
