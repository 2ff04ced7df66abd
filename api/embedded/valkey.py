"""The embedded Valkey (or Redis): configuration and readiness."""

from __future__ import annotations

import signal
import socket

from .server import HOST, Server

REDIS_DATABASES = 128
# The settings that take the URLs of databases 0, 1 and 2.
URL_SETTINGS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")


class Valkey(Server):
    """A Valkey or Redis with one password and REDIS_DATABASES databases."""

    name = "redis"
    stop_signal = signal.SIGTERM
    hard_stop_signal = signal.SIGKILL

    @property
    def urls(self) -> dict[str, str]:
        url = f"redis://:{self.passwords['redis']}@{HOST}:{self.port}"
        return {name: f"{url}/{number}" for number, name in enumerate(URL_SETTINGS)}

    def _prepare(self, lock: int) -> None:
        self.make_directory(self.directory)

    def _command(self) -> list[str]:
        return ["-"]

    def _stdin_text(self) -> str:
        """Return the configuration. It goes to standard input because every user can read a command line."""
        appendonly = "no" if self.profile == "fast" else "yes"
        return (
            f'bind {HOST}\nport {self.port}\ndir "{self.directory}"\nrequirepass {self.passwords["redis"]}\n'
            f'appendonly {appendonly}\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
            f"databases {REDIS_DATABASES}\n"
        )

    def _answers(self, pid: int) -> bool:
        hello = f"AUTH {self.passwords['redis']}\r\nPING\r\nINFO server\r\nQUIT\r\n".encode()
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(hello)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return False
        return b"+PONG" in answer and b"process_id:%d\r" % pid in answer
