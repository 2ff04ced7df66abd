"""Directory of the servers' files: in the checkout, or in /var/lib/kasoko.

It is in /var/lib/kasoko if the account cannot enter the checkout.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
from pathlib import Path

from .processes import is_allowed

ROOT_PLACE = Path("/var/lib/kasoko")


def choose_place(state: Path, account: pwd.struct_passwd | None) -> Path:
    """Return the directory of the servers' files, and create one elsewhere if the account cannot use `state`."""
    if account is None:
        return state
    place = place_elsewhere(state)
    if place is None:
        if _can_keep(state, account):
            return state
        place = ROOT_PLACE / f"{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-{secrets.token_hex(4)}"
        place.mkdir(parents=True)
        for directory in (ROOT_PLACE, place):
            directory.chmod(0o711)
    (place / "origin").write_text(str(state))
    (state / "place").write_text(str(place))
    # A checkout may have been moved to a directory that the account cannot enter. Its databases move to `place`.
    for engine in ("postgresql", "valkey", "redis"):
        for directory in state.glob(f"{engine}*[0-9]"):
            directory.rename(place / directory.name)
    return place


def place_elsewhere(state: Path) -> Path | None:
    """Return the directory outside the checkout that an earlier start chose, if it still belongs to this checkout."""
    try:
        place = Path((state / "place").read_text())
        origin = Path((place / "origin").read_text())
    except FileNotFoundError:
        return None
    # A moved checkout keeps its servers' files. A copy, whose original still exists, gets its own files.
    return place if origin == state or not (origin / "place").exists() else None


def erase_place(place: Path) -> None:
    """Delete a directory outside the checkout, and the common parent if no other checkout uses it."""
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        # This fails if another checkout has a directory there, and it should.
        ROOT_PLACE.rmdir()


def _can_keep(state: Path, account: pwd.struct_passwd) -> bool:
    """Return True if the account can enter `state` and own directories there. Some mounts allow no new owner."""
    probe = state / "probe"
    probe.mkdir(mode=0o700, exist_ok=True)
    try:
        os.chown(probe, account.pw_uid, account.pw_gid)
        return is_allowed(account, "-w", probe)
    except OSError:
        return False
    finally:
        probe.rmdir()
