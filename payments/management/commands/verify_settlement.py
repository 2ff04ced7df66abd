"""`python manage.py verify_settlement FILE [--bets bets.jsonl] [--books]`: verify a certificate."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from payments.settlement.certificates import document, issuing


class Command(BaseCommand):
    help = (
        "Verify a settlement from its certificate alone. Exit status: 0 if the certificate is correct; 1 if not, "
        "with the first difference."
    )
    # The command must also work without a database.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="The saved body of GET /api/markets/<id>/settlement/.")
        parser.add_argument("--bets", type=Path, help="The saved bets.jsonl of a large market.")
        parser.add_argument("--books", action="store_true", help="Compare with this database's books as well.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            body = json.loads(options["file"].read_text(encoding="utf-8"))
            with _opened(options["bets"]) as bets:
                document.check(body, bets)
            if options["books"]:
                with _opened(options["bets"]) as bets:
                    issuing.compare_with_books(body, bets)
        except OSError as error:
            raise CommandError(str(error), returncode=1) from error
        except ValueError as error:
            raise CommandError(f"{options['file']} is not JSON: {error}", returncode=1) from error
        except document.Differs as difference:
            raise CommandError(str(difference), returncode=1) from difference
        stated = body["settlement"]
        self.stdout.write(f"It holds: {stated['bets']} bets, {stated['equation']}, {body['settlement_hash']}")


def _opened(path: Path | None) -> Any:
    return nullcontext() if path is None else path.open(encoding="utf-8")
