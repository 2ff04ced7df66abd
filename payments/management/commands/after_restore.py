"""The command `after_restore`: report a restore, see its progress, or decide about the payouts that may have left."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.dateparse import parse_datetime

from markets.models import NAIROBI
from payments import wiring
from payments.management import signing
from payments.payouts.restores import asking, decisions, detection
from payments.policy import Policy
from users.refusal import Refusal


class Command(BaseCommand):
    help = (
        "Report that the database was restored. Payouts stop leaving until those that may have left are listed."
        " With --list only show the restores. With --decide record the decision of two people."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--at", metavar="TIME", help="The time of the backup, such as 2026-02-16T21:45+03:00.")
        parser.add_argument("--list", action="store_true", help="Only show the restores and their progress.")
        parser.add_argument("--decide", metavar="REF", help="A payout's reference, or all. It did not leave.")
        parser.add_argument("--by", metavar="PHONE", help="The first person. The command asks for the PIN.")
        parser.add_argument("--second", metavar="PHONE", help="The second person. The command asks for the PIN.")
        parser.add_argument("--reason", default="", help="The evidence in words, such as the statement that was read.")

    def handle(self, *args: Any, **options: Any) -> None:
        at = wiring.now()
        if options["decide"]:
            self._decide(options, at)
        elif not options["list"]:
            restore = detection.report(survived_at=_moment(options["at"]), at=at, policy=Policy.from_settings(settings))
            self.stdout.write(
                f"Restore {restore.pk} is recorded. Sending is stopped. A worker now lists the payouts that may have"
                f" left since {_nairobi(restore.survived_at)}."
            )
        self._show()

    def _decide(self, options: dict[str, Any], at: datetime) -> None:
        people = [
            signing.sign(number, act_name="restore.decide", at=at)
            for number in (options["by"], options["second"])
            if number
        ]
        try:
            decisions.decide(reference=options["decide"], grounds=options["reason"], by=people, at=at)
        except Refusal as refusal:
            raise CommandError(f"{refusal} Nothing was decided.") from refusal
        self.stdout.write("Decided. M-Pesa is asked once more. Payouts that it does not know then leave.")

    def _show(self) -> None:
        for restore, waiting in asking.progress():
            self.stdout.write(
                f"Restore {restore.pk} to {_nairobi(restore.survived_at)}, noticed {_nairobi(restore.noticed_at)}:"
                f" {restore.state}, {waiting} payouts wait for M-Pesa's answer. {restore.sign}"
            )


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise CommandError(f"{text} is not a time such as 2026-02-16T21:45+03:00. Nothing was recorded.")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=NAIROBI)


def _nairobi(moment: datetime) -> str:
    return f"{moment.astimezone(NAIROBI):%Y-%m-%d %H:%M:%S}"
