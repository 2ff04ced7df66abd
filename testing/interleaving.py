"""Forced interleavings: another worker acts just before a chosen statement of this connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from testing.builders import begin


@contextmanager
def before_statement(text: str, act: Callable[[], Any]) -> Iterator[None]:
    """Run `act` once on another connection, just before the first statement of the block that contains `text`.

    Only for tests with `transactional_db`.
    Raises: AssertionError, if no statement contained `text`.
    """
    acted: list[Any] = []

    def execute(call: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if text in sql and not acted:
            acted.append(begin(act).result(timeout=60))
        return call(sql, params, many, context)

    with connection.execute_wrapper(execute):
        yield
    assert acted, f"No statement contained {text!r}."
