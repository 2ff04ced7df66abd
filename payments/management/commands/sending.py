"""The command `sending off --reason WHY | on`, which is the kill switch.

It asks for no PIN, because anyone who can run it controls the server. The audit trail names the server's user account.
"""

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from payments import wiring
from payments.payouts import breakers
from users import audit


class Command(BaseCommand):
    help = "Stop sending payouts, or send them again. Settlement, callbacks and status queries continue."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("state", choices=["off", "on"])
        parser.add_argument("--reason", default="", help="The reason for switching off, which the console shows.")

    def handle(self, *args: Any, **options: Any) -> None:
        at, by = wiring.now(), audit.Actor(user_id=None, source=f"command by {getpass.getuser()}"[:64])
        if options["state"] == "off":
            breakers.switch_off(reason=options["reason"], by=by, at=at)
        else:
            breakers.switch_on(by=by, at=at)
        self.stdout.write(f"Sending is {options['state']}.")
