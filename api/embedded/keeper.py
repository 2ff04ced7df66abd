"""The keeper: a detached process that owns the servers of one state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from . import files, places, programs
from .postgres import Postgres
from .processes import server_account
from .server import Server
from .state import REMEDIES, EmbeddedServerError, Profile
from .valkey import Valkey

# `app` is the owner's password: older versions had no other role.
PASSWORDS = {"root", "app", "application", "redis"}
ENGINES: dict[str, type[Server]] = {engine.name: engine for engine in (Postgres, Valkey)}


class Keeper:
    """The servers of one state directory, and the loop that starts, restarts and stops them."""

    def __init__(self, state: Path, profile: Profile) -> None:
        self.state = state
        self.profile = profile
        self.grace_seconds = float(os.environ.get("KASOKO_EMBEDDED_GRACE_SECONDS", "5"))
        self.place = state
        self.servers: dict[str, Server] = {}
        self.refused: dict[str, dict[str, Any]] = {}
        self.asked_to_stop = False

    def keep(self, own_lock: int) -> None:
        """Start requested servers, restart dead ones, and stop all when nobody holds the lease any more."""
        self._announce()
        last_used = time.monotonic()
        with files.open_lock(self.state / "lease") as lease:
            while not self.asked_to_stop and self._state_is_ours(own_lock):
                self._start_requested_servers()
                if not files.lock(lease, fcntl.LOCK_EX):
                    last_used = time.monotonic()
                elif time.monotonic() - last_used > self.grace_seconds:
                    break
                else:
                    fcntl.flock(lease, fcntl.LOCK_UN)
                time.sleep(0.1)
            for name in ("ready.json", *(f"want-{engine}" for engine in ENGINES)):
                (self.state / name).unlink(missing_ok=True)
            for server in self.servers.values():
                server.stop()
            if self.profile == "fast" and self.place != self.state:
                # Tests leave nothing outside the checkout.
                places.erase_place(self.place)
                (self.state / "place").unlink(missing_ok=True)

    def stop(self, *_: object) -> None:
        """Ask the loop to end. A signal handler."""
        self.asked_to_stop = True

    def make_server(self, name: str) -> Server:
        """Find a server's program and directory, and return the server without starting it.

        Raises: EmbeddedServerError; OSError.
        """
        program = programs.find_program(name)
        if program is None:
            raise EmbeddedServerError("no program was found, neither in a wheel nor in the system.")
        account = server_account()
        self.place = places.choose_place(self.state, account)
        program = programs.reachable_program(program, self.place, account)
        directory = programs.data_directory(name, program, self.place, account, self.profile)
        passwords = files.read_or_create_json(
            self.state / "secrets.json", lambda: {user: secrets.token_urlsafe(24) for user in PASSWORDS}
        )
        if PASSWORDS - passwords.keys():
            passwords |= {user: secrets.token_urlsafe(24) for user in PASSWORDS - passwords.keys()}
            files.write_json(self.state / "secrets.json", passwords)
        return ENGINES[name](self.state, self.profile, account, program, directory, passwords)

    def _state_is_ours(self, own_lock: int) -> bool:
        # Somebody who deletes the state directory wants no servers.
        with contextlib.suppress(FileNotFoundError):
            return (self.state / "keeper.lock").stat().st_ino == os.fstat(own_lock).st_ino
        return False

    def _announce(self) -> None:
        urls = {name: server.urls for name, server in self.servers.items()}
        files.write_json(self.state / "ready.json", {"pid": os.getpid(), "urls": urls, "refused": self.refused})

    def _start_requested_servers(self) -> None:
        for name in ENGINES:
            try:
                requested_at = (self.state / f"want-{name}").stat().st_mtime_ns
            except FileNotFoundError:
                continue
            server = self.servers.get(name)
            if server and server.is_running:
                continue
            if name in self.refused and self.refused[name]["asked_at"] >= requested_at:
                continue
            try:
                server = server or self.make_server(name)
                server.start()
            except (EmbeddedServerError, OSError, subprocess.SubprocessError) as error:
                self.servers.pop(name, None)
                self.refused[name] = {"asked_at": requested_at, "message": f"No {name}: {error}\n{REMEDIES}"}
            else:
                self.servers[name] = server
                self.refused.pop(name, None)
            self._announce()


def start(state: Path, profile: Profile) -> None:
    """Fork the keeper of a state directory and return. Do nothing if a keeper already runs there."""
    keeper = Keeper(state, profile)
    with files.open_lock(state / "keeper.lock") as own_lock:
        # A second keeper waits two seconds for a first keeper that is ending. The lock is taken before the fork, so
        # that the caller sees a live keeper when this program returns.
        if not files.lock(own_lock, fcntl.LOCK_EX, time.monotonic() + 2) or os.fork():
            return
        # Handlers instead of SIG_IGN, because the servers would inherit SIG_IGN.
        signal.signal(signal.SIGTERM, keeper.stop)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        os.chdir("/")
        keeper.keep(own_lock)
