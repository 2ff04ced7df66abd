"""`python manage.py sending off --reason WHY | on`: the kill switch."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from payments import breakers


class Command(BaseCommand):
    help = "Stop payouts from leaving, or let them leave again. Settling, callbacks and questions go on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("state", choices=["off", "on"])
        parser.add_argument("--reason", default="", help="Why it is switched off; shown to whoever looks.")

    def handle(self, *args: Any, **options: Any) -> None:
        at = timezone.now()
        if options["state"] == "off":
            breakers.switch_off(reason=options["reason"], by_user_id=None, at=at)
        else:
            breakers.switch_on(at=at)
        self.stdout.write(f"Sending is {options['state']}.")
