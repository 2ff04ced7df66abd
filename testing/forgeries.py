"""Values that somebody with access to Redis might write under our keys."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

LARGE_BYTES = 8 * 1024 * 1024
Forge = Callable[[redis.Redis, str], Any]


class _CreatesFile:
    """An object whose pickle creates a file when somebody loads it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self._path), "w")


def forged_pickle(path: Path) -> bytes:
    """Return a pickle that creates the file `path` when it is loaded."""
    return pickle.dumps(_CreatesFile(path))


def _text(stored: bytes) -> Forge:
    return lambda server, key: server.set(key, stored)


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "garbage": b"\x00\xff\xfe garbage",
    "JSON": b'{"a": [1, {"b": null}]}',
    "number": b"1" * 5_000,
    "nested": b"[" * 200_000,
    "large": b"9" * LARGE_BYTES,
}
FORGERIES: dict[str, Forge] = {
    **{name: _text(stored) for name, stored in TEXTS.items()},
    "list": lambda server, key: server.rpush(key, b"x"),
    "hash": lambda server, key: server.hset(key, "value", "x"),
    "set": lambda server, key: server.sadd(key, b"x"),
}


def forge(server: redis.Redis, key: str, name: str, path: Path) -> None:
    """Replace the value of `key` by the named forgery, or by a pickle that creates the file `path`."""
    server.delete(key)
    if name == "pickle":
        server.set(key, forged_pickle(path))
    else:
        FORGERIES[name](server, key)


NAMES = [*FORGERIES, "pickle"]
