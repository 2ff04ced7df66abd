"""Command that checks the audit trail for changed or missing entries: `python manage.py verify_audit`."""

import re
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from users import audit, audit_heads


def _noted(typed: str) -> tuple[int, str]:
    if not re.fullmatch(r"[1-9][0-9]{0,17}:[0-9a-f]{64}", typed):
        raise CommandError("--noted must be an entry's number and hash, as this command prints them: 12:<64 hex>.")
    number, _, hash_ = typed.partition(":")
    return int(number), hash_


class Command(BaseCommand):
    help = (
        "Verify the audit trail, and compare it with the heads in AUDIT_HEADS_FILE. Exits with 1 and names the first"
        " entry that was changed or is missing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--noted",
            default="",
            help="number:hash that an earlier run printed and that the trail must still contain; store it elsewhere",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        noted = [_noted(options["noted"])] if options["noted"] else []
        try:
            heads = audit_heads.kept(settings.AUDIT_HEADS_FILE)
        except (OSError, ValueError) as error:
            raise CommandError(f"The kept heads cannot be read: {error}", returncode=1) from error
        chain = audit.verify(expected=dict([*((head.number, head.hash) for head in heads), *noted]))
        if chain.difference is not None:
            raise CommandError(chain.difference, returncode=1)
        entries = "1 entry" if chain.entries == 1 else f"{chain.entries} entries"
        self.stdout.write(f"The audit trail is intact: {entries}, {chain.entries}:{chain.head}")
        self.stdout.write(f"It has all {len(heads)} kept heads of this database in {settings.AUDIT_HEADS_FILE}.")
