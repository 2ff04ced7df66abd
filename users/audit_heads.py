"""Heads of the audit trail, kept in a file that the database cannot reach.

The hashes of the trail show that an entry was changed, but not that its end was cut off or that all of it was deleted.
So beat writes the number and the hash of the last entry to a file, and to the log. `verify_audit` compares each kept
head with the trail. A line of the file: time, database, number, hash. `database` tells apart databases that share a
file, such as one that was made again.
"""

import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.db import connection

from users.models import AuditEntry

log = logging.getLogger("kasoko.audit")


@dataclass(frozen=True)
class Head:
    """Number and hash of an entry that was the last one at some time."""

    number: int
    hash: str


def present() -> Head | None:
    """Return the head of the trail, or None if the trail is empty."""
    last = AuditEntry.objects.order_by("-number").values_list("number", "hash").first()
    return None if last is None else Head(*last)


def keep(file: Path, *, at: datetime) -> Head | None:
    """Append the trail's present head to the file and to the log, if it is not kept yet. Return it then.

    Raises: OSError if the file cannot be written.
    """
    head = present()
    if head is None or head in kept(file):
        return None
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="ascii") as heads:
        heads.write(f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} {database()} {head.number} {head.hash}\n")
        heads.flush()
        os.fsync(heads.fileno())
    # In two halves, because a log line masks 64 digits in a row as the token of a callback.
    log.info("Head of the audit trail: %s: %s %s", head.number, head.hash[:32], head.hash[32:])
    return head


def kept(file: Path) -> list[Head]:
    """Return the kept heads of this database, the oldest first.

    Raises: ValueError if a line is damaged; OSError if the file cannot be read.
    """
    if not file.exists():
        return []
    ours, heads = database(), []
    for number, line in enumerate(file.read_text(encoding="ascii").splitlines(), 1):
        parts = line.split()
        if len(parts) != 4 or not parts[2].isdigit() or len(parts[3]) != 64:
            raise ValueError(f"Line {number} of {file} is damaged: {line[:80]!r}.")
        if parts[1] == ours:
            heads.append(Head(int(parts[2]), parts[3]))
    return heads


def database() -> str:
    """Return a name that only this database has. A dump that is loaded elsewhere gets another one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT system_identifier || '-' || oid FROM pg_control_system(), pg_database"
            " WHERE datname = current_database()"
        )
        return str(cursor.fetchone()[0])
