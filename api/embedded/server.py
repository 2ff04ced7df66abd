"""Base class of the two embedded servers, PostgreSQL and Valkey: start, wait until ready, stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from . import files
from .processes import spawn
from .state import START_SECONDS, STOP_SECONDS, EmbeddedServerError, Profile

HOST = "127.0.0.1"


@dataclass
class Server(ABC):
    """A server's directory, passwords and port, and its process while it runs."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    hard_stop_signal: ClassVar[signal.Signals]

    state: Path
    profile: Profile
    account: pwd.struct_passwd | None
    program: Path
    directory: Path
    passwords: dict[str, str]
    port: int = 0
    child: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def urls(self) -> dict[str, str]:
        """The server's URLs. The keys are the names of the settings that hold the URLs."""

    @abstractmethod
    def _prepare(self, lock: int) -> None:
        """Make the data directory ready for a start. The lock is held, so no earlier server of ours is alive."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the arguments of the program."""

    @abstractmethod
    def _stdin_text(self) -> str:
        """Return the text for the program's standard input."""

    @abstractmethod
    def _answers(self, pid: int) -> bool:
        """Return True if our child takes connections. Another process on the same port does not count."""

    @property
    def log(self) -> Path:
        return self.state / f"{self.name}.log"

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def start(self) -> None:
        """Run the server on the port of the last run, or on a free port, and return when it answers.

        Raises: EmbeddedServerError, with the end of the log; OSError.
        """
        with files.open_lock(self.directory.parent / f"{self.name}.lock") as lock:
            self._await_predecessor(lock)
            self._take_ownership()
            self._prepare(lock)
            for port in [self.port] if self.port else self._ports():
                self.port = port
                if self._run_until_ready(lock):
                    files.write_json(self.state / f"{self.name}-port.json", {"port": port})
                    return
                if _is_port_free(port):
                    break
        raise EmbeddedServerError(f"{self.program} did not start. The end of {self.log}:\n{files.tail(self.log)}")

    def stop(self) -> None:
        """Stop the server cleanly. If it does not end in STOP_SECONDS, stop it hard."""
        if self.child is None:
            return
        for next_signal in (self.stop_signal, self.hard_stop_signal, signal.SIGKILL):
            if self.child.poll() is None:
                self.child.send_signal(next_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.child.wait(STOP_SECONDS)

    def make_directory(self, path: Path) -> None:
        """Create a directory that belongs to the server's account."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def _await_predecessor(self, lock: int) -> None:
        # Servers inherit this lock, so it is free only when the last process of an earlier server is gone.
        if not files.lock(lock, fcntl.LOCK_EX, time.monotonic() + 3):
            with contextlib.suppress(ValueError, OSError):
                os.kill(int(os.pread(lock, 20, 0)), self.stop_signal)
            if not files.lock(lock, fcntl.LOCK_EX, time.monotonic() + STOP_SECONDS):
                raise EmbeddedServerError(f"An earlier {self.name} still runs on {self.directory} and does not stop.")

    def _take_ownership(self) -> None:
        # A copied directory belongs to the user who copied it, and the account may have changed since.
        if self.account and self.directory.exists() and self.directory.stat().st_uid != self.account.pw_uid:
            for path in (*self.directory.rglob("*"), self.directory):
                os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def _ports(self) -> list[int]:
        """Return free ports: the port of the last run, then random ports below the range for outgoing connections."""
        last = files.read_or_create_json(self.state / f"{self.name}-port.json", lambda: {"port": 0})["port"]
        candidates = ([last] if last else []) + [15_000 + secrets.randbelow(17_000) for _ in range(8)]
        return [port for port in candidates if _is_port_free(port)]

    def _run_until_ready(self, lock: int) -> bool:
        """Start the server on `self.port` and wait until it answers. Return False if it ended instead."""
        with files.append(self.log) as log:
            child = spawn([str(self.program), *self._command()], self.account, lock, log, self.stop_signal)
        self.child = child
        os.pwrite(lock, f"{child.pid:<20}".encode(), 0)
        if child.stdin:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(self._stdin_text().encode())
        deadline = time.monotonic() + START_SECONDS - 5
        while child.poll() is None:
            if self._answers(child.pid):
                return True
            if time.monotonic() > deadline:
                self.stop()
            time.sleep(0.02)
        return False


def _is_port_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True
