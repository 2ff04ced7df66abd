"""The two roles of the test database.

Tests log in as the owner, and each new connection then becomes the application's role, with its rights in production.
So a right that the product lacks fails a test. A test that needs the owner, such as one that disables a trigger, says
`with database.as_owner():`. A test of the role itself logs in as the application with `application_url()`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from django.db import connection
from psycopg2.extensions import TRANSACTION_STATUS_INERROR

from api import database_roles
from payments.models import DatabaseProfile

# The URL of the application's login, with the name of another database. Without it the tests run as the owner.
APPLICATION_URL = "KASOKO_TEST_APPLICATION_URL"


def application_role() -> str:
    """Return the name of the application's role, or an empty string if the tests run as the owner."""
    return urlsplit(os.environ.get(APPLICATION_URL, "")).username or ""


def application_url() -> str:
    """Return the URL by which the application logs in to the test database."""
    name = connection.settings_dict["NAME"]
    return urlsplit(os.environ[APPLICATION_URL])._replace(path=f"/{name}").geturl()


@contextmanager
def acting_as_application() -> Iterator[None]:
    """Give the application's role its rights, and make every new connection act as it."""
    role, options = application_role(), connection.settings_dict["OPTIONS"]
    if not role:
        yield
        return
    with connection.cursor() as cursor:
        database_roles.grant(cursor, role)
    before = options["options"]
    options["options"] = f"{before} -c role={role}"
    connection.close()
    try:
        yield
    finally:
        connection.close()
        options["options"] = before


@contextmanager
def as_owner() -> Iterator[None]:
    """Act as the owner of the tables on this thread's connection. A rollback ends it too."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        role = cursor.fetchone()[0]
        cursor.execute("SET ROLE NONE")
    try:
        yield
    finally:
        # A failed transaction takes no statement. Its rollback takes back our SET too.
        if connection.connection.info.transaction_status != TRANSACTION_STATUS_INERROR:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('role', %s, false)", [role])


@contextmanager
def in_production() -> Iterator[None]:
    """Switch on the database's guards of production, without the rights of production."""
    _set_production(True)
    try:
        yield
    finally:
        _set_production(False)


def _set_production(production: bool) -> None:
    with as_owner():
        DatabaseProfile.objects.update(production=production)
