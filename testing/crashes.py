"""Crashes at any statement, to test that work can be resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection


class Crash(Exception):
    """The worker died here."""


@contextmanager
def crash_at_statement(number: int) -> Iterator[list[str]]:
    """Let the worker die when it sends the `number`th statement that does something; the list is what it sent."""
    sent: list[str] = []

    def execute(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
            sent.append(sql)
            if len(sent) == number:
                raise Crash(sql)
        return call(sql, params, many, context)

    with connection.execute_wrapper(execute):
        yield sent
