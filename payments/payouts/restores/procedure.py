"""The procedure after a restore: list the payouts that may have left, then ask about each before it leaves."""

from collections.abc import Callable
from datetime import datetime

from payments.models import Restore
from payments.mpesa.callback_urls import Addresses
from payments.payouts.restores import asking, listing
from payments.policy import Policy

BATCH = 200


def advance(*, at: datetime, policy: Policy, addresses: Addresses, keep_going: Callable[[], bool]) -> None:
    """List payouts and open the requests that are asked about first, as far as `keep_going` allows.

    Idempotent: another call continues. Without a restore it reads one row.
    Locks: as `listing.list_payouts` and `asking.open_due`, one after the other.
    """
    if not Restore.objects.exists():
        return
    listing.list_payouts(at=at, keep_going=keep_going)
    while keep_going() and asking.ask_about_later(at=at, policy=policy, addresses=addresses, limit=BATCH):
        pass
    while keep_going() and asking.open_due(at=at, policy=policy, addresses=addresses, limit=BATCH) == BATCH:
        pass
