"""Simulated crashes at any SQL statement, to test that work can be resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection


class Crash(Exception):
    """A simulated kill of the worker."""


@contextmanager
def crash_at_statement(number: int) -> Iterator[list[str]]:
    """Raise Crash at the `number`th statement. Yield the list of statements so far. Savepoints do not count."""
    sent: list[str] = []

    def execute(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
            sent.append(sql)
            if len(sent) == number:
                raise Crash(sql)
        return call(sql, params, many, context)

    with connection.execute_wrapper(execute):
        yield sent
