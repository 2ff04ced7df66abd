"""`manage.py database_roles`: the application's role in PostgreSQL and its rights."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from api import database_owner, database_roles


class Command(BaseCommand):
    """Make the role of DATABASE_URL and give it its rights, or check them."""

    help = "Make the role of DATABASE_URL, set its password and grant its rights. migrate grants them too."

    def add_arguments(self, parser: CommandParser) -> None:
        choice = parser.add_mutually_exclusive_group()
        choice.add_argument("--check", action="store_true", help="change nothing; exit 1 if the role may do too much")
        choice.add_argument(
            "--development",
            action="store_true",
            help="let this database's balances be assigned, as in development; never for real money",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Grant the rights. Idempotent. Raises: CommandError."""
        if options["check"]:
            with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
                found = database_roles.problems(cursor)
            if found:
                raise CommandError("\n".join(found))
            self.stdout.write("The application's role has the rights that it needs, and no others.")
            return
        if options["development"] and settings.PRODUCTION:
            raise CommandError("PROFILE is production, so this database keeps the guards of production.")
        application = database_owner.application()
        with (
            database_owner.connected(DEFAULT_DB_ALIAS),
            transaction.atomic(),
            connections[DEFAULT_DB_ALIAS].cursor() as cursor,
        ):
            if options["development"]:
                database_roles.set_production(cursor, production=False)
            try:
                database_roles.install(cursor, application, production=settings.PRODUCTION)
            except database_roles.CannotMakeRole as error:
                raise CommandError(str(error)) from error
            if database_owner.is_apart() and database_roles.may_make_roles(cursor):
                database_roles.set_password(cursor, application)
        self.stdout.write(f"The role {application.role} has its rights.")
