"""`manage.py erase_member`: destroy the key of a member's personal texts, for ever."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from api import database_owner
from users import audit, clock, erasure


class Command(BaseCommand):
    """Erase a member's personal texts. Only the owner of the tables may do it, so it needs DATABASE_OWNER_URL."""

    help = (
        "Destroy the key of a member's personal texts: phone numbers and reasons in the audit trail, notices and notes."
        " Nobody can read them again, and the trail still verifies. The member must be suspended and have no money"
        " here. First check that the legal time of retention is over (the page Limits and law has it)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("member_id", type=int, help="the number of the member, as their page shows it")
        parser.add_argument("--reason", required=True, help="kept in the audit trail; without personal data")

    def handle(self, *args: Any, **options: Any) -> None:
        """Destroy the key and record it. Raises: CommandError; then nothing was erased."""
        by, at = audit.Actor(user_id=None, source="command"), clock.database_time()
        with database_owner.connected(DEFAULT_DB_ALIAS):
            try:
                member = erasure.erase(member_id=options["member_id"], reason=options["reason"], by=by, at=at)
            except erasure.ErasureRefused as refusal:
                raise CommandError(str(refusal)) from refusal
        self.stdout.write(f"The personal texts of {member} are erased.")
