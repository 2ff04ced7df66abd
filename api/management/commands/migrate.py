"""`manage.py migrate`: Django's command, run as the owner of the tables."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import connections, transaction

from api import database_owner, database_roles


class Command(migrate.Command):
    """Migrate as the owner, then give the application's role its rights on every table."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate, and renew the rights. Idempotent. Raises: CommandError if the application's role is missing."""
        alias = options["database"]
        if settings.PRODUCTION and not database_owner.is_apart():
            raise CommandError(
                "In production the owner of the tables is not the role of DATABASE_URL. Set DATABASE_OWNER_URL for "
                "this command only."
            )
        with database_owner.connected(alias):
            super().handle(*args, **options)
            if options["plan"] or options["check_unapplied"] or not _is_whole(alias):
                return
            with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
                try:
                    database_roles.install(cursor, database_owner.application(), production=settings.PRODUCTION)
                except database_roles.CannotMakeRole as error:
                    raise CommandError(str(error)) from error


def _is_whole(alias: str) -> bool:
    """Return False after a migration backwards, to a time before the profile of the database."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.payments_databaseprofile') IS NOT NULL")
        return cursor.fetchone()[0]
