"""Planted bugs in what people may do with a payout, and in a second payment under one id (`staffed`)."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from payments.models import Transaction
from payments.payouts import attempts
from payments.payouts.evidence import booking
from payments.payouts.operations import actions
from soak.simulation import staffed
from soak.simulation.planting import Catalogue, instead_of
from soak.simulation.staffed import StaffedWorld

BUGS = Catalogue()


@BUGS.bug("retry of a payout that a person holds", "D4: a hold binds every road", simulate=staffed.run)
def _(world: StaffedWorld) -> Iterator[None]:
    original = actions.owing

    def owing(transaction_id: int, *arguments: Any, **more: Any) -> Transaction:
        Transaction.objects.filter(pk=transaction_id, status="HELD").update(held_by_person=False)
        return original(transaction_id, *arguments, **more)

    with instead_of(actions, "owing", owing):
        yield


@BUGS.bug(
    "re-issue to the old number", "D14: a re-issued payout goes to the number that two people saw", simulate=staffed.run
)
def _(world: StaffedWorld) -> Iterator[None]:
    def reissue(payout: Transaction, *, phone_number: str, at: datetime) -> None:
        attempts.make_pending(payout, due_at=at)

    with instead_of(attempts, "reissue", reissue):
        yield


@BUGS.bug(
    "second receipt not booked",
    "D4: what M-Pesa takes twice under one id is booked, not only told",
    simulate=staffed.run,
)
def _(world: StaffedWorld) -> Iterator[None]:
    with instead_of(booking, "_book_second_receipt", lambda *_, **__: "a second receipt"):
        yield
