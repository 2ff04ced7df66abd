"""The lease, by which a process obtains the servers and keeps them running."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from . import control, files
from .processes import run_as
from .state import (
    REMEDIES,
    START_SECONDS,
    EmbeddedServerError,
    Profile,
    announcement,
    keeper_is_alive,
    state_dir,
)

LAUNCHES_ALLOWED = 4

_leases: dict[Path, int] = {}


def ensure(base_dir: Path, *, postgres: bool, redis: bool, profile: Profile = "durable") -> dict[str, str]:
    """Start this checkout's servers if they do not run, and return their URLs.

    PostgreSQL appears as DATABASE_URL. Redis appears as CELERY_BROKER_URL, CELERY_RESULT_BACKEND and CACHE_URL, which
    are its databases 0, 1 and 2. The calling process and its forks keep the servers alive until they end. The profile
    `fast` is a second pair of servers for tests. It is faster, because it gives up durability.
    Idempotent: a second call returns the servers that the first one started.
    Raises: EmbeddedServerError, with the end of the server's log, after START_SECONDS at the latest.
    """
    wanted = [name for name, asked in (("postgres", postgres), ("redis", redis)) if asked]
    if not wanted:
        return {}
    state = state_dir(base_dir, profile)
    deadline = time.monotonic() + START_SECONDS
    try:
        for directory in (state.parent, state) if profile == "fast" else (state,):
            directory.mkdir(mode=0o700, exist_ok=True)
            # Root's servers run as another user, who must pass through this directory to the data. Mode 0711 allows
            # this, but no listing.
            if os.geteuid() == 0 and directory.stat().st_uid == 0:
                directory.chmod(0o711)
        _hold_lease(state, deadline)
        if not (state / "secrets.json").exists():
            sys.stderr.write("Setting up this checkout's own servers, once. This takes a few seconds.\n")
        return _await_servers(state, profile, wanted, deadline)
    except OSError as error:
        raise EmbeddedServerError(
            f"Servers cannot be kept in {state} ({error}). Run as its owner, or set DATABASE_URL and CELERY_BROKER_URL."
        ) from error


def leave(base_dir: Path, profile: Profile) -> None:
    """Give the lease back. If nobody else holds it, stop the servers at once instead of after the grace period.

    Raises: EmbeddedServerError if they have not stopped after twice STOP_SECONDS.
    """
    state = state_dir(base_dir, profile)
    if state not in _leases:
        return
    os.close(_leases.pop(state))
    # Hold the lock until the servers are down, so that a new user waits and does not get servers that are stopping.
    with files.open_lock(state / "lease") as lease:
        if files.lock(lease, fcntl.LOCK_EX):
            control.stop(base_dir, profile)


def _hold_lease(state: Path, deadline: float) -> None:
    if state in _leases:
        return
    descriptor = files.open_private(state / "lease", os.O_RDWR)
    # The keeper takes the lease exclusively only while it stops the servers. A new user waits until they are down.
    if not files.lock(descriptor, fcntl.LOCK_SH, deadline):
        os.close(descriptor)
        raise EmbeddedServerError(f"The servers of {state} have not finished stopping. Read the logs there.")
    _leases[state] = descriptor


def _request(state: Path, name: str) -> int:
    """Ask the keeper for a server, and return the time of the request in nanoseconds."""
    path = state / f"want-{name}"
    os.close(files.open_private(path, os.O_WRONLY))
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    return path.stat().st_mtime_ns


def _await_servers(state: Path, profile: Profile, wanted: list[str], deadline: float) -> dict[str, str]:
    """Wait for the keeper to announce the servers. Start a keeper when none is alive."""
    requested_at = {name: _request(state, name) for name in wanted}
    launches = 0
    while time.monotonic() < deadline and launches < LAUNCHES_ALLOWED:
        if not keeper_is_alive(state, forget=True):
            _launch_keeper(state, profile)
            launches += 1
            # A keeper that was ending may have read and removed the first request.
            requested_at = {name: _request(state, name) for name in wanted}
        announced = announcement(state)
        for name, moment in requested_at.items():
            refusal = announced["refused"].get(name)
            # An older refusal answers an earlier request. The missing program may be installed by now.
            if refusal and refusal["asked_at"] >= moment:
                raise EmbeddedServerError(refusal["message"])
        if all(name in announced["urls"] for name in wanted):
            return {key: url for name in wanted for key, url in announced["urls"][name].items()}
        time.sleep(0.03)
    logs = "\n".join(f"{log}:\n{files.tail(log)}" for log in (state / f"{name}.log" for name in ("keeper", *wanted)))
    raise EmbeddedServerError(
        f"The servers did not start in {START_SECONDS:.0f} s. {REMEDIES} The ends of the logs:\n{logs}"
    )


def _launch_keeper(state: Path, profile: Profile) -> None:
    log = state / "keeper.log"
    owner = state.stat()
    # In a checkout that is not root's, root runs the keeper as the owner. The owner can then use all files later.
    as_owner = run_as(owner.st_uid, owner.st_gid) if os.geteuid() == 0 and owner.st_uid != 0 else {}
    with files.append(log) as output:
        # The program forks and returns with the lock held. The keeper is then not our child, and Ctrl-C cannot end it.
        launched = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).resolve().parent), str(state), profile],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=False,
            **as_owner,
        )
    if launched.returncode:
        raise EmbeddedServerError(f"The keeper of the servers did not start. The end of {log}:\n{files.tail(log)}")
