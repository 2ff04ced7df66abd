"""The command `threshold market.resolve 50000` or `threshold market.resolve never`."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from users import audit, clock, figure_changes, figures
from users.refusal import Refusal


class Command(BaseCommand):
    help = (
        "Set the first threshold of an act: the amount in shillings above which the act takes two people, or never. "
        "Two people change it later, on the page Limits and law. Without arguments, list the thresholds."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("act", nargs="?", default="", help="The act, such as market.resolve.")
        parser.add_argument("amount", nargs="?", default="", help="Shillings, or never.")

    def handle(self, *args: Any, **options: Any) -> None:
        at = clock.database_time()
        if not options["act"]:
            for act_name in figure_changes.with_threshold():
                self.stdout.write(f"{act_name}: {figures.threshold(act_name, at) or 'not set'}")
            return
        by = audit.Actor(user_id=None, source="command")
        try:
            row = figure_changes.first_threshold(options["act"], options["amount"], by=by, at=at)
        except Refusal as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(f"{options['act']}: {row.value}")
