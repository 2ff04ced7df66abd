"""Private files and file locks of a state directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def lock(descriptor: int, kind: int, deadline: float = 0.0) -> bool:
    """Take a flock and return True, or return False at `deadline` (seconds of the monotonic clock)."""
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.02)


def open_private(path: Path, flags: int) -> int:
    """Open a file that only the owner of its directory may read. Create it if it does not exist."""
    descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


@contextlib.contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """Open a lock file for the length of a `with` block. The lock itself is not taken."""
    descriptor = open_private(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def append(path: Path) -> IO[bytes]:
    """Open a private file for appending."""
    return open(open_private(path, os.O_WRONLY | os.O_APPEND), "ab")


def write_json(path: Path, content: object) -> None:
    """Replace a JSON file atomically."""
    part = path.with_suffix(".part")
    with open(open_private(part, os.O_WRONLY | os.O_TRUNC), "w") as file:
        json.dump(content, file)
    part.replace(path)


def read_or_create_json(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a JSON file. If it does not exist, create it with the result of `make`."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads(path.read_text()))
    write_json(path, content := make())
    return content


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log, or the reason why it cannot be read."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error})"
