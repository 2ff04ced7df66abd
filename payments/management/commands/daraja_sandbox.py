"""`python manage.py daraja_sandbox`: an M-Pesa Daraja simulator for development, tests and rehearsals."""

import sys

from django.core.management.base import BaseCommand, CommandParser

from payments.mpesa.simulator import server


class Command(BaseCommand):
    """Edge: runs the simulator, which uses neither the database nor the settings."""

    help = "Run a simulator of Safaricom's Daraja with a book of who was paid what. Prints its base URL first."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the simulator's own command line."""
        server.add_arguments(parser)

    def handle(self, *args: object, **options: object) -> None:
        """Serve until stopped."""
        sys.exit(server.serve(options))
