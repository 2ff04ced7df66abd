"""Status, stop and erase: the commands of a person for a checkout's servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

from . import places
from .state import STOP_SECONDS, EmbeddedServerError, Profile, announcement, keeper_is_alive, state_dir


def stop(base_dir: Path, profile: Profile) -> bool:
    """Stop a profile's servers, even if a process uses them. Return True if they ran.

    Raises: EmbeddedServerError if they have not stopped after twice STOP_SECONDS.
    """
    state = state_dir(base_dir, profile)
    if not state.is_dir() or not keeper_is_alive(state):
        return False
    deadline = time.monotonic() + 2 * STOP_SECONDS
    while keeper_is_alive(state):
        # A keeper that is starting or stopping has no announcement.
        if pid := announcement(state)["pid"]:
            os.kill(pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"The servers of {state} do not stop. Read keeper.log there.")
        time.sleep(0.05)
    return True


def erase(base_dir: Path, profile: Profile) -> None:
    """Stop a profile's servers and delete their databases, passwords and logs."""
    stop(base_dir, profile)
    state = state_dir(base_dir, profile)
    if place := places.place_elsewhere(state):
        places.erase_place(place)
    shutil.rmtree(state, ignore_errors=True)


def describe(base_dir: Path, profile: Profile) -> str:
    """Return the state of a profile's servers in a few lines, without passwords."""
    state = state_dir(base_dir, profile)
    if not state.is_dir() or not keeper_is_alive(state):
        return f"{profile}: not running"
    announced = announcement(state)
    urls = {key: url for server in announced["urls"].values() for key, url in server.items()}
    lines = [f"{profile}: running, keeper {announced['pid']}"]
    lines += [f"  {key}={re.sub(r':[^:@/]*@', ':***@', url)}" for key, url in urls.items()]
    return "\n".join(lines)
