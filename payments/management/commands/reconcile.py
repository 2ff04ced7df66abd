"""`python manage.py reconcile`: do the books close?"""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from payments.ledger import invariants, trial_balance


class Command(BaseCommand):
    help = "Check every invariant of the money. Exit 0 when the books close, else 1 with the first that differs."

    def handle(self, *args: Any, **options: Any) -> None:
        for line in trial_balance.trial_balance():
            self.stdout.write(f"{line.kind:<20} {line.debits:>18,.2f} {line.credits:>18,.2f} {line.balance:>18,.2f}")
        found = invariants.differences()
        for difference in found:
            self.stderr.write(str(difference))
        if found:
            sys.exit(1)
        self.stdout.write(f"The books close: {len(invariants.INVARIANTS)} invariants hold.")
