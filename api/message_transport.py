"""Celery's transport over Redis, which drops a message that nobody of us can have sent.

In Celery's own transport the error of an unreadable message ends the worker. So one line in Redis could end every
worker, or keep all of them from starting. Dropping a message is harmless: PostgreSQL says what is due, and the next
sweep does it.
"""

import logging
from collections.abc import Callable, Mapping
from queue import Empty
from typing import Any

from kombu.transport import redis
from redis.exceptions import ResponseError

log = logging.getLogger("kasoko.alarm")

# Our largest message, a preview of many outcomes, has a few thousand bytes.
MOST_CHARACTERS = 1_000_000


class QoS(redis.QoS):
    """The messages that are delivered and not finished. One that cannot be restored is dropped."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)
        except Exception as error:  # A message from outside may cause any error.
            if is_lost_connection(error, self.channel.connection_errors):
                raise
            log.warning("An unfinished message in Redis cannot be read and was dropped: %s", type(error).__name__)
            self.channel.delete_foreign_types(error)
            with self.pipe_or_acquire(client=client) as pipe:
                self._remove_from_indices(tag, pipe).execute()

    def restore_visible(self, *arguments: Any, **options: Any) -> None:
        try:
            super().restore_visible(*arguments, **options)
        except ResponseError as error:
            self.channel.delete_foreign_types(error)


class Channel(redis.Channel):
    """A channel that drops what it cannot read, from the queue and from the broadcasts to all workers."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        return self._read(super()._brpop_read, **options)

    def _receive_one(self, c: Any) -> Any:
        return self._read(super()._receive_one, c)

    def _read(self, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return read(*arguments, **options)
        except Exception as error:  # A message from outside may cause any error.
            if isinstance(error, Empty) or is_lost_connection(error, self.connection_errors):
                raise
            log.warning("A message in Redis cannot be read and was dropped: %s", type(error).__name__)
            self.delete_foreign_types(error)
            raise Empty from error

    def _size(self, queue: str) -> Any:
        try:
            return super()._size(queue)
        except ResponseError as error:
            self.delete_foreign_types(error, queue)
            return super()._size(queue)

    def delete_foreign_types(self, error: Exception, *queues: str) -> None:
        """Delete the keys of Celery that hold another type than Celery's, if the error says that one does."""
        if not (isinstance(error, ResponseError) and "WRONGTYPE" in str(error)):
            return
        types = {self.unacked_key: b"hash", self.unacked_index_key: b"zset"}
        types |= {
            self._q_for_pri(name, step): b"list"
            for name in (*self.active_queues, *queues)
            for step in self.priority_steps
        }
        with self.conn_or_acquire() as client:
            for key, expected in types.items():
                if client.type(key) not in (expected, b"none"):
                    client.delete(key)


class Transport(redis.Transport):
    """The transport of `redis://` and `rediss://` URLs; api/celery.py registers it."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if not _is_message(message):
            log.warning("A message in Redis has not the form of ours and was dropped from %s.", queue)
            return
        super()._deliver(message, queue)


def is_lost_connection(error: Exception, connection_errors: tuple[type[Exception], ...]) -> bool:
    """Return True if an error means that the broker is away. Kombu counts KeyError too, which a message can cause."""
    return isinstance(error, connection_errors) and not isinstance(error, KeyError)


def _is_message(raw: object) -> bool:
    """Return True if a message has the parts that Kombu reads before anyone can refuse it."""
    if not isinstance(raw, Mapping):
        return False
    properties, headers, body = raw.get("properties"), raw.get("headers"), raw.get("body")
    if not (isinstance(properties, Mapping) and isinstance(headers, Mapping) and isinstance(body, str)):
        return False
    route = properties.get("delivery_info")
    return (
        isinstance(route, Mapping)
        and isinstance(route.get("exchange"), str)
        and isinstance(route.get("routing_key"), str)
        and isinstance(properties.get("delivery_tag"), str)
        and properties.get("body_encoding") == "base64"
        and len(body) <= MOST_CHARACTERS
        and raw.get("content-type") == "application/json"
        and raw.get("content-encoding") == "utf-8"
        and not headers.get("compression")
    )
