"""`python manage.py verify_audit`: is every decision still there as it was recorded?"""

import re
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from users import audit


def _noted(typed: str) -> tuple[int, str]:
    if not re.fullmatch(r"[1-9][0-9]{0,17}:[0-9a-f]{64}", typed):
        raise CommandError("--noted must be an entry's number and hash, as a verification prints them: 12:<64 hex>.")
    number, _, hash_ = typed.partition(":")
    return int(number), hash_


class Command(BaseCommand):
    help = "Verify the audit trail. Exits 1 with the first entry that differs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--noted", default="", help="number:hash of an earlier verification, kept elsewhere, that must still hold"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        chain = audit.verify(expected=_noted(options["noted"]) if options["noted"] else None)
        if chain.difference is not None:
            raise CommandError(chain.difference, returncode=1)
        self.stdout.write(f"The audit trail holds: {chain.entries} entries, {chain.entries}:{chain.head}")
