"""The supervisor, which starts all programs of a KASOKO, restarts dead programs and stops all.

It has one thread. Its caller waits in `Stack.until`, which restarts dead programs and obeys Ctrl-C and SIGTERM. Each
program leads its own process group, so Ctrl-C at the terminal reaches the supervisor only. The supervisor then stops
the programs in order. On Linux the programs are told to stop even if the supervisor is killed.
"""

import contextlib
import ctypes
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

BASE_DIR = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START_SECONDS = 60.0
DEATHS_ALLOWED, DEATHS_WITHIN_SECONDS = 5, 60.0
PAUSE_SECONDS = 0.05
# Settings that a developer exported for another installation must not reach this one. The URLs of servers may.
FOREIGN = ("MPESA_", "PAYOUT_", "DEBUG", "ALLOWED_HOSTS", "CSRF_", "TRUSTED_PROX", "SETTLEMENT_", "SWEEP_", "CELERY_",
           "GUNICORN_", "TOKEN_HOURS", "STAFF_", "STEP_UP_")  # fmt: skip
SERVERS = ("DATABASE_URL", "DATABASE_OWNER_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class StackError(RuntimeError):
    """A program that does not run, or a wait that took too long. The message has the end of the log."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the user wants to end the run. `signal_number` says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@dataclass
class Program:
    """One program of the stack: its command, and a test that it works. The supervisor sets `child` and `deaths`."""

    name: str
    command: tuple[str, ...]
    ready: Callable[["Program"], bool]
    log: Path
    stop_seconds: float = 10.0
    child: "subprocess.Popen[bytes] | None" = None
    deaths: list[float] = field(default_factory=list)


class Stack:
    """The programs of one checkout. At the end of its `with` block it stops them, the last started first.

    `state` is the directory of logs and pids. `say` prints one line for the user.
    """

    def __init__(self, state: Path, say: Callable[[str], None]) -> None:
        self.state, self.say = state, say
        self.programs: list[Program] = []
        self._signal = 0
        for directory in (state, state / "logs", state / "pids"):
            directory.mkdir(mode=0o700, exist_ok=True)

    def __enter__(self) -> "Stack":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup makes the process ignore the hang-up signal. It stays ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self.programs):
            self._stop(program)

    def start(self, *programs: Program) -> None:
        """Start programs together and wait until each works. Raises: StackError; Interrupted."""
        for program in programs:
            program.log.unlink(missing_ok=True)
            self.programs.append(program)
            self._launch(program)
        for program in programs:
            self.until(lambda program=program: program.ready(program), what=f"{program.name} to start", of=program)  # type: ignore[misc]

    def until(
        self,
        condition: Callable[[], bool],
        *,
        what: str,
        seconds: float = START_SECONDS,
        of: Program | None = None,
    ) -> None:
        """Wait until a condition is true, and tend the programs. Raises: StackError after `seconds`; Interrupted."""
        deadline = time.monotonic() + seconds
        self.tend()
        while not condition():
            if time.monotonic() > deadline:
                raise StackError(f"Waited {seconds:.0f} s in vain for {what}.{_tail(of.log) if of else ''}")
            time.sleep(PAUSE_SECONDS)
            self.tend()

    def tend(self) -> None:
        """Restart dead programs. Raises: StackError if a program died too often within a minute; Interrupted."""
        if self._signal:
            raise Interrupted(self._signal)
        for program in self.programs:
            if program.child is None or program.child.poll() is None:
                continue
            cause = self._bury(program)
            now = time.monotonic()
            program.deaths = [at for at in program.deaths if now - at < DEATHS_WITHIN_SECONDS] + [now]
            if len(program.deaths) > DEATHS_ALLOWED:
                raise StackError(
                    f"{program.name} died {len(program.deaths)} times within a minute ({cause}).{_tail(program.log)}"
                )
            self.say(f"{program.name} died ({cause}) and is started again.")
            self._launch(program)

    def _launch(self, program: Program) -> None:
        supervisor_pid = os.getpid()

        def stop_with_supervisor() -> None:
            if _libc is not None:
                _libc.prctl(1, int(signal.SIGTERM))
                if os.getppid() != supervisor_pid:
                    os._exit(1)

        with program.log.open("ab") as log:
            program.child = subprocess.Popen(
                program.command,
                cwd=BASE_DIR,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=stop_with_supervisor,
            )
        self._pid_file(program).write_text(f"{program.child.pid}\n")

    def _bury(self, program: Program) -> str:
        """Kill the rest of a program's group, and return its signal or exit status in words."""
        child, program.child = program.child, None
        if child is None:
            return "not running"
        # While a process of the group lives, the system gives the group's number to no other process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
        self._pid_file(program).unlink(missing_ok=True)
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def _stop(self, program: Program) -> None:
        child = program.child
        if child is None:
            return
        # Only the leader gets the signal. It stops its own children in its own order.
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(program.stop_seconds)
        self._bury(program)

    def _pid_file(self, program: Program) -> Path:
        return self.state / "pids" / program.name

    def _note(self, number: int, _: FrameType | None) -> None:
        # The signal is only noted, because an exception at this moment could lose a child that was just started.
        self._signal = self._signal or number


# --- which programs --------------------------------------------------------------------------------------------------


def isolate(environment: MutableMapping[str, str]) -> None:
    """Remove from an environment the settings, `.env` file and proxies of other installations."""
    for name in [name for name in environment if name.startswith(FOREIGN) and name not in SERVERS]:
        del environment[name]
    environment.setdefault("KASOKO_ENV_FILE", os.devnull)
    environment["NO_PROXY"] = environment["no_proxy"] = f"{HOST},localhost"


def free_port(preferred: int = 0) -> int:
    """Return a free port: the preferred one, or one below the range of the system's outgoing connections."""
    for port in [preferred] * bool(preferred) + [15_000 + secrets.randbelow(17_000) for _ in range(100)]:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            return port
    raise StackError("No free port was found.")


def programs(
    *, state: Path, web_port: int, simulator_port: int, book: Path, phone_faults: list[str]
) -> tuple[Program, ...]:
    """Return the simulator, web, worker and beat, in the order of their start.

    `phone_faults` are options of the simulator, such as `254712345678=callback_lost`.
    """
    logs = state / "logs"
    python = sys.executable
    sandbox = (python, "manage.py", "daraja_sandbox", "--port", str(simulator_port), "--book", str(book))
    faults = tuple(word for fault in phone_faults for word in ("--phone-fault", fault))
    web = (python, "-m", "gunicorn", "api.wsgi:application", "--bind", f"{HOST}:{web_port}", "--workers", "1")
    threads = ("--threads", "8", "--graceful-timeout", "5", "--no-control-socket", "--access-logfile", "-")
    celery = (python, "-m", "celery", "-A", "api")
    schedule = str(state / "logs" / "celerybeat-schedule")
    return (
        Program("simulator", sandbox + faults, _answers(simulator_port, "/sandbox/health"), logs / "simulator.log"),
        Program("web", web + threads, _answers(web_port, "/readyz"), logs / "web.log"),
        Program(
            "worker",
            (*celery, "worker", "-l", "info", "--concurrency=2"),
            _wrote(b" ready."),
            logs / "worker.log",
            stop_seconds=20.0,
        ),
        Program("beat", (*celery, "beat", "-l", "info", "-s", schedule), _wrote(b"beat: Starting"), logs / "beat.log"),
    )


def _answers(port: int, path: str) -> Callable[[Program], bool]:
    def answers(_: Program) -> bool:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return answers


def _wrote(words: bytes) -> Callable[[Program], bool]:
    return lambda program: words in program.log.read_bytes()


def _tail(log: Path, lines: int = 20) -> str:
    try:
        last = log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return ""
    return f" The end of {log}:\n" + "\n".join(last)
