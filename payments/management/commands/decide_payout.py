"""The command `decide_payout 42 --receipt SGL12AB34C | --not-paid`, for decisions on held payouts."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from payments import own_affairs, wiring
from payments.management import signing
from payments.payouts.operations import decisions
from payments.policy import Policy


class Command(BaseCommand):
    help = (
        "Decide a HELD payout as paid or not paid, or a FAILED payout as paid, by M-Pesa's statement. A large payout, a"
        " FAILED payout and every --not-paid take two people."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("transaction_id", type=int)
        decision = parser.add_mutually_exclusive_group(required=True)
        decision.add_argument("--receipt", default="", help="The payout was paid. M-Pesa's receipt from the statement.")
        decision.add_argument("--not-paid", action="store_true", help="The statement shows no payment of this payout.")
        parser.add_argument(
            "--statement-until",
            type=datetime.fromisoformat,
            help="For --not-paid: the end of the statement that you checked, as 2026-02-17T18:00+03:00.",
        )
        parser.add_argument("--grounds", required=True, help="The evidence in words.")
        parser.add_argument(
            "--by", nargs="+", required=True, metavar="PHONE", help="The people who decide. The command asks for PINs."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        at, until = wiring.now(), options["statement_until"]
        if until is not None and (until.tzinfo is None or until > at):
            raise CommandError("--statement-until needs a time zone and lies in the past. Nothing was decided.")
        people = [signing.sign(number, act_name="payout.decide", at=at) for number in options["by"]]
        try:
            payout = decisions.decide(
                transaction_id=options["transaction_id"],
                finding=decisions.Finding(options["receipt"], options["grounds"], until),
                by=people,
                at=at,
                policy=Policy.from_settings(settings),
            )
        except (decisions.NotToBeDecided, own_affairs.OwnPayout) as refusal:
            raise CommandError(f"{refusal} Nothing was decided.") from refusal
        payout.refresh_from_db()
        self.stdout.write(f"Transaction {payout.pk} is {payout.status}.")
