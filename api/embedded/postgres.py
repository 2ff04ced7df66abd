"""The embedded PostgreSQL: cluster, roles, database and readiness."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from .processes import run
from .server import HOST, Server

SUPERUSER = "kasoko_root"
# The owner of the database and its tables, and the role of the application.
OWNER, APPLICATION = "kasoko", "kasoko_app"


class Postgres(Server):
    """A PostgreSQL with the database `kasoko`, the role that owns it, and the application's role."""

    name = "postgres"
    # SIGTERM waits until all clients leave. SIGINT disconnects them.
    stop_signal = signal.SIGINT
    hard_stop_signal = signal.SIGQUIT

    @property
    def urls(self) -> dict[str, str]:
        place = f"{HOST}:{self.port}/kasoko"
        return {
            "DATABASE_URL": f"postgresql://{APPLICATION}:{self.passwords['application']}@{place}",
            "DATABASE_OWNER_URL": f"postgresql://{OWNER}:{self.passwords['app']}@{place}",
        }

    def _prepare(self, lock: int) -> None:
        if not self.directory.exists():
            self._initialise(lock)
        # No server of ours is alive while we hold the lock. A process that this file names is therefore not ours.
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        # An older version made clusters without the application's role.
        if not self._has_application_role.exists():
            self._run_single(self.directory, lock, self._application_role())
            self._has_application_role.touch()

    @property
    def _has_application_role(self) -> Path:
        return self.directory / "kasoko_application_role"

    def _application_role(self) -> str:
        """Return the statement that makes the application's role. The owner may become it, as in the tests."""
        missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{APPLICATION}')"
        make = f"CREATE ROLE {APPLICATION} LOGIN NOINHERIT ROLE {OWNER}"
        set_password = f"ALTER ROLE {APPLICATION} PASSWORD '{self.passwords['application']}'"
        return f"DO $$ BEGIN IF {missing} THEN {make}; END IF; {set_password}; END $$\n"

    def _run_single(self, directory: Path, lock: int, statements: str) -> None:
        """Run statements, one on each line, in the single-user mode. It needs no port and no client program."""
        single = ["--single", "-D", str(directory), "-c", "exit_on_error=on", "-c", "password_encryption=scram-sha-256"]
        run([str(self.program), *single, "postgres"], self.account, lock, statements)

    def _initialise(self, lock: int) -> None:
        """Make the cluster, its superuser, and the project's role and database. The last step, a rename, is atomic."""
        part = self.directory.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        self.make_directory(part)
        self._run_initdb(part, lock)
        role = f"CREATE ROLE {OWNER} LOGIN CREATEDB PASSWORD '{self.passwords['app']}'\n"
        self._run_single(part, lock, f"{role}CREATE DATABASE kasoko OWNER {OWNER}\n")
        part.replace(self.directory)

    def _run_initdb(self, directory: Path, lock: int) -> None:
        """Run initdb. It reads the superuser's password from a private file, which is deleted afterwards."""
        password = self.directory.parent / "initdb.password"
        password.unlink(missing_ok=True)
        with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.passwords["root"])
        options = ["--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", f"--pwfile={password}", "-U", SUPERUSER]
        try:
            if self.account:
                os.chown(password, self.account.pw_uid, self.account.pw_gid)
            run([str(self.program.with_name("initdb")), *options, "-D", str(directory)], self.account, lock)
        finally:
            password.unlink()

    def _command(self) -> list[str]:
        settings = [
            f"listen_addresses={HOST}",
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
            # A test commits no rows. Statistics that autovacuum takes during a test would say that tables are empty.
            settings += ["autovacuum=off"]
        return ["-D", str(self.directory), *(part for setting in settings for part in ("-c", setting))]

    def _stdin_text(self) -> str:
        return ""

    def _answers(self, pid: int) -> bool:
        try:
            lines = (self.directory / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        # The postmaster writes `ready` to its lock file when it alone holds the port and accepts clients.
        return len(lines) > 7 and lines[7].strip() == "ready" and int(lines[0]) == pid
