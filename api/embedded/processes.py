"""Child processes of the keeper, and the account that they run as."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from .state import EmbeddedServerError

SYSTEM_USER = "kasoko-pg"
# The servers get no environment variable of the caller. PGHOST, LD_LIBRARY_PATH or an LC_ALL with a missing locale
# would break them.
SERVER_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def server_account() -> pwd.struct_passwd | None:
    """Return the account under which the servers run if root starts them, or None if we are not root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    return pwd.getpwnam("nobody")


def run_as(user: int, group: int) -> dict[str, Any]:
    """Return the subprocess arguments that change to a user and drop all groups of the caller."""
    return {"user": user, "group": group, "extra_groups": []}


def is_allowed(account: pwd.struct_passwd, operator: str, path: Path) -> bool:
    """Return True if `test <operator> <path>` succeeds in a shell that runs as the account.

    In this way the kernel itself checks modes, groups and mounts.
    """
    command = ["/bin/sh", "-c", 'test "$0" "$1"', operator, str(path)]
    answer = subprocess.run(command, check=False, cwd="/", env=SERVER_ENV, **run_as(account.pw_uid, account.pw_gid))
    return answer.returncode == 0


def spawn(
    command: list[str],
    account: pwd.struct_passwd | None,
    lock: int,
    output: int | IO[bytes],
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a program as the account. The program inherits the lock.

    On Linux the program gets `death_signal` when this process ends.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        # Python calls this function after it changed the user. A change after this call would clear the signal.
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:
                os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",
        umask=0o077,
        env=SERVER_ENV,
        pass_fds=(lock,),
        preexec_fn=die_with_parent,
        **(run_as(account.pw_uid, account.pw_gid) if account else {}),
    )


def run(command: list[str], account: pwd.struct_passwd | None, lock: int, stdin_text: str = "") -> str:
    """Run a program to its end with `stdin_text` as its input, and return its output.

    Raises: EmbeddedServerError, with the end of the output, if the program fails.
    """
    child = spawn(command, account, lock, subprocess.PIPE)
    output = child.communicate(stdin_text.encode())[0].decode(errors="replace")
    if child.returncode:
        raise EmbeddedServerError("\n".join([f"{command[0]} failed ({child.returncode}):", *output.splitlines()[-20:]]))
    return output
