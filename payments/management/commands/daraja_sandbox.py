"""`python manage.py daraja_sandbox`: simulator of M-Pesa Daraja for development, tests and rehearsals."""

import sys

from django.core.management.base import BaseCommand, CommandParser

from payments.mpesa.simulator import server


class Command(BaseCommand):
    """Edge: run the simulator, which uses neither the database nor the settings."""

    help = "Run a simulator of Safaricom's Daraja that records every payment. It prints its base URL first."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the simulator's options."""
        server.add_arguments(parser)

    def handle(self, *args: object, **options: object) -> None:
        """Serve until stopped."""
        sys.exit(server.serve(options))
