"""`python manage.py reconcile`: the trial balance and a check of every invariant."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from payments.ledger import invariants, trial_balance


class Command(BaseCommand):
    help = (
        "Print the trial balance and check every invariant. Exit status: 0 if the books close; 1 if not, with a list "
        "of the differences."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        for line in trial_balance.trial_balance():
            self.stdout.write(f"{line.kind:<20} {line.debits:>18,.2f} {line.credits:>18,.2f} {line.balance:>18,.2f}")
        differences = invariants.differences()
        for difference in differences:
            self.stderr.write(str(difference))
        if differences:
            sys.exit(1)
        self.stdout.write(f"The books close: {len(invariants.INVARIANTS)} invariants hold.")
