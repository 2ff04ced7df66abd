"""Celery's consumer, which refuses messages that name no task of ours and survives messages of any content.

Celery's own consumer ends the worker at some of them, and stores a failure under the id that the message gives.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from celery.worker import consumer

from api.message_transport import is_lost_connection

log = logging.getLogger("kasoko.alarm")

# Celery has tasks of its own, which run any other task many times. We use none of them.
OURS = ("payments.", "users.")
MOST_RETRIES = 1_000
# Parts of a message that we never send: a later time, groups, and tasks that follow this one.
_NEVER_SENT = ("eta", "group", "group_index", "callbacks", "errbacks", "chain", "chord")


class Consumer(consumer.Consumer):
    """The consumer that the setting CELERY_WORKER_CONSUMER names."""

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        receive = super().create_task_handler(*arguments, **options)

        def receive_ours(message: Any) -> None:
            try:
                name = message.headers.get("task")
                if not (isinstance(name, str) and name.startswith(OURS) and name in self.app.tasks):
                    log.warning("A message that names no task of ours was refused: %.100r", name)
                elif not (_are_ours(message.headers) and _is_call(message.payload)):
                    log.warning("A message for %s has not the form of ours and was refused.", name)
                else:
                    receive(message)
                    return
            except Exception as error:  # A message from outside may cause any error.
                if is_lost_connection(error, self.connection_errors):
                    raise
                log.warning("A message in the queue was refused: %s: %.200s", type(error).__name__, error)
            if not message.acknowledged:
                message.reject_log_error(log, self.connection_errors)

        return receive_ours


def _are_ours(headers: Mapping[str, Any]) -> bool:
    """Return True if the headers have the types that our publishers send."""
    expires, limits, retries = headers.get("expires"), headers.get("timelimit"), headers.get("retries")
    return (
        isinstance(headers.get("id"), str)
        and all(
            headers.get(name) is None or isinstance(headers[name], str) for name in ("root_id", "parent_id", "origin")
        )
        and (expires is None or (isinstance(expires, str) and bool(datetime.fromisoformat(expires))))
        and limits in (None, [None, None])
        and type(retries) is int
        and 0 <= retries <= MOST_RETRIES
        and headers.get("ignore_result") in (None, True, False)
        and not any(headers.get(name) for name in (*_NEVER_SENT, "stamps", "stamped_headers"))
    )


def _is_call(payload: Any) -> bool:
    """Return True if a decoded body has arguments and nothing else: no task that follows this one."""
    if not (isinstance(payload, (list, tuple)) and len(payload) == 3):
        return False
    arguments, keywords, embedded = payload
    return (
        isinstance(arguments, (list, tuple))
        and isinstance(keywords, dict)
        and isinstance(embedded, dict)
        and not any(embedded.get(name) for name in _NEVER_SENT)
    )
