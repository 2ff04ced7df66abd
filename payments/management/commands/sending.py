"""The command `sending off --reason WHY | on [--by PHONE …]`, which is the kill switch.

Anyone who can run it may stop, without a PIN. The audit trail then names the server's user account. In production, and
once the act sending.on has a threshold, a start needs members of staff, each with a PIN and a code.
"""

import getpass
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from payments import wiring
from payments.management import signing
from payments.models import Breaker
from payments.payouts import breakers
from payments.payouts.operations import starting
from users import audit
from users.proposals import Proposed
from users.refusal import Refusal


class Command(BaseCommand):
    help = "Stop sending payouts, or send them again. Settlement, callbacks and status queries continue."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("state", choices=["off", "on"])
        parser.add_argument("--reason", default="", help="The reason for switching off, which the console shows.")
        parser.add_argument(
            "--by", nargs="+", default=[], metavar="PHONE", help="For on: the one or two people who start the sending."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        at, by = wiring.now(), audit.Actor(user_id=None, source=f"command by {getpass.getuser()}"[:64])
        if options["state"] == "off":
            breakers.switch_off(reason=options["reason"], by=by, at=at)
        else:
            if settings.PRODUCTION and not options["by"]:
                raise CommandError("Name who starts the sending: sending on --by PHONE [PHONE]. Sending is still off.")
            people = [signing.sign(number, act_name="sending.on", at=at) for number in options["by"]]
            try:
                done = starting.start(Breaker.Cause.SWITCH, people=people or [by], at=at)
            except Refusal as refusal:
                raise CommandError(str(refusal)) from refusal
            if isinstance(done, Proposed):
                raise CommandError(
                    f"Sending is still off: the payouts that wait need two people. Proposal {done.proposal_id} is made."
                    " Another person approves it in the console."
                )
            wiring.after_approval(done)
        self.stdout.write(f"Sending is {options['state']}.")
