"""Copies of the database's heartbeat in Redis and in a file, which a restore of the database does not change."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

log = logging.getLogger(__name__)

KEY = "kasoko:database_heartbeat"
# A larger count is not ours: at a beat a second it takes 100 billion years. The column holds twice as much.
MOST_BEATS = 2**62
# A copy has about 100 characters. More is not ours and is not read.
LONGEST = 1_000


@dataclass(frozen=True)
class Copy:
    """A heartbeat as it was copied: the database's own id, the counter, and the place of the copy in words."""

    database: str
    beats: int
    place: str


@dataclass(frozen=True)
class Copies:
    """Reads and writes the two copies. A place that cannot be read or written is skipped, with a line in the log."""

    connection: redis.Redis
    path: Path

    def read(self) -> list[Copy]:
        """Return the copies that exist. A missing copy proves nothing, because Redis and the file may be emptied."""
        texts = {"Redis": self._from_redis(), str(self.path): self._from_file()}
        copies = [_parse(text, place) for place, text in texts.items() if text]
        return [copy for copy in copies if copy is not None]

    def write(self, *, database: str, beats: int) -> None:
        """Store the heartbeat in both places. Call it only after the commit of the heartbeat."""
        text = json.dumps({"database": database, "beats": beats})
        try:
            self.connection.set(KEY, text)
        except redis.RedisError as error:
            log.warning("The heartbeat is not copied to Redis: %s", error)
        # Threads and processes write at the same time, so each writes its own file and renames it.
        written = self.path.with_name(f"{self.path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            written.write_text(text, encoding="ascii")
            written.replace(self.path)
        except OSError as error:
            log.warning("The heartbeat is not copied to %s: %s", self.path, error)
            written.unlink(missing_ok=True)

    def _from_redis(self) -> str:
        try:
            stored = self.connection.getrange(KEY, 0, LONGEST)
        except redis.RedisError as error:
            log.warning("The heartbeat's copy in Redis cannot be read: %s", error)
            return ""
        return stored.decode("ascii", "replace") if isinstance(stored, bytes) else ""

    def _from_file(self) -> str:
        try:
            with self.path.open(encoding="ascii", errors="replace") as file:
                return file.read(LONGEST)
        except OSError:
            return ""


def _parse(text: str, place: str) -> Copy | None:
    """Return the copy that a text holds, or None if the text is damaged."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, Mapping):
        return None
    database, beats = fields.get("database"), fields.get("beats")
    if not isinstance(database, str) or type(beats) is not int or not 0 <= beats <= MOST_BEATS:
        return None
    return Copy(database, beats, place)
