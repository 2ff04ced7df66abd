"""The connection of the owner of the tables, for the commands that change them."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import connections

from api import database_roles

LOGIN = ("USER", "PASSWORD", "HOST", "PORT")


def application() -> database_roles.Login:
    """Return the login of the application's role, from DATABASE_URL."""
    return database_roles.Login(settings.DATABASE_APPLICATION["USER"], settings.DATABASE_APPLICATION["PASSWORD"])


def is_apart() -> bool:
    """Return True if the owner and the application are two roles."""
    return settings.DATABASE_OWNER["USER"] != application().role


@contextmanager
def connected(alias: str) -> Iterator[None]:
    """Let this thread's connection log in as the owner. Afterwards the next statement logs in as before."""
    connection = connections[alias]
    before = {key: connection.settings_dict[key] for key in LOGIN}
    connection.close()
    connection.settings_dict.update({key: settings.DATABASE_OWNER[key] for key in LOGIN})
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(before)
