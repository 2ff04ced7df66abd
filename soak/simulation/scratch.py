"""Scratch database of the simulation, and nested transactions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from testing import database


@contextmanager
def rolled_back() -> Iterator[None]:
    """Open a transaction in which durable services may run, and roll it back at the end."""
    with nestable():
        yield
        transaction.set_rollback(True)


@contextmanager
def nestable() -> Iterator[None]:
    """Open a transaction in which the services' durable transactions become savepoints."""
    block = transaction.atomic()
    # Django's own test cases set this flag for the same purpose.
    vars(block)["_from_testcase"] = True
    with block:
        yield


@contextmanager
def scratch_database() -> Iterator[None]:
    """Make a migrated database for this process on the server of the settings. Remove it at the end."""
    settings = connection.settings_dict
    name, test_name = settings["NAME"], settings["TEST"]["NAME"]
    settings["TEST"]["NAME"] = f"simulation_{name}_{os.getpid()}"
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)
        settings["TEST"]["NAME"] = test_name


def vacuum() -> None:
    """Remove the dead rows that rolled-back seeds leave in the tables. Dead rows slow down later seeds.

    VACUUM is possible only outside a transaction.
    """
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("VACUUM")
