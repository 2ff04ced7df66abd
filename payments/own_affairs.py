"""Refusals of decisions by staff about their own stake, debt, dispute or payout.

The caller checks while it holds the lock on the row, so the result is still true when the decision is written.
"""

from collections.abc import Iterable

from markets.stakeholders import StakeInMarket, refuse_stakeholders
from payments.models import Dispute, Recovery, Settlement, Transaction
from users import audit
from users.refusal import Refusal

__all__ = [
    "OwnDebt",
    "OwnDispute",
    "OwnPayout",
    "StakeInMarket",
    "refuse_own_debt",
    "refuse_own_dispute",
    "refuse_own_payout",
    "refuse_stakeholders",
]


class OwnDebt(Refusal):
    """A person may not decide about their own debt."""


class OwnDispute(Refusal):
    """A person may not decide about their own dispute."""


class OwnPayout(Refusal):
    """A person may not decide about their own payout."""


def refuse_own_debt(recoveries: Iterable[Recovery], by: audit.Actor) -> None:
    """Refuse anyone who owes one of the recoveries. Raises: OwnDebt."""
    if any(recovery.user_id == by.user_id for recovery in recoveries):
        raise OwnDebt("You owe this money yourself. Another member of staff must decide about it.")


def refuse_own_dispute(dispute: Dispute, by: audit.Actor) -> None:
    """Refuse the member who opened the dispute. Raises: OwnDispute."""
    if dispute.user_id == by.user_id:
        raise OwnDispute("You opened this dispute yourself. Another member of staff must decide about it.")


def refuse_own_payout(payout: Transaction, by: audit.Actor) -> None:
    """Refuse the member whom the payout pays. Raises: OwnPayout."""
    if payout.user_id == by.user_id:
        raise OwnPayout("This is your own payout. Another member of staff must decide about it.")


def refuse_own_release(settlement: Settlement, by: audit.Actor) -> None:
    """Refuse anyone whom a payout of the settlement pays. Raises: OwnPayout."""
    if by.user_id is not None and Transaction.objects.filter(user_id=by.user_id, settlement=settlement).exists():
        raise OwnPayout("One of these payouts is your own. Another member of staff must decide about them.")
