"""`python manage.py sending off --reason WHY | on`: the kill switch.

It asks for no PIN: whoever can run it holds the machine. The audit trail names the account on the machine.
"""

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from payments.payouts import breakers
from users import audit


class Command(BaseCommand):
    help = "Stop payouts from leaving, or let them leave again. Settling, callbacks and questions go on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("state", choices=["off", "on"])
        parser.add_argument("--reason", default="", help="Why it is switched off; shown to whoever looks.")

    def handle(self, *args: Any, **options: Any) -> None:
        at, by = timezone.now(), audit.Actor(user_id=None, source=f"command by {getpass.getuser()}"[:64])
        if options["state"] == "off":
            breakers.switch_off(reason=options["reason"], by=by, at=at)
        else:
            breakers.switch_on(by=by, at=at)
        self.stdout.write(f"Sending is {options['state']}.")
