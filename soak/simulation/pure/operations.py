"""Manual actions on payouts of the pure machine: retry, pay to the wallet, decide."""

from datetime import datetime

from soak.simulation.pure.attempts import Refused
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.rows import Payout


def retry(machine: Machine, payout: Payout, *, at: datetime) -> None:
    """Schedule a failed payout again. Raises: Refused.

    Before it is sent, a status query goes out about the last request that M-Pesa may have received.
    """
    machine.check_owed(payout)
    machine.touched.add(payout)
    payout.due_at, payout.failed_at = at, None
    payout.move("PENDING")
    perhaps_received = [
        attempt for attempt in payout.attempts if attempt.acknowledged or attempt.doubted_at is not None
    ]
    if perhaps_received:
        perhaps_received[-1].ask_at = at


def retry_failed(machine: Machine, *, since: datetime, at: datetime) -> int:
    """Retry every payout that failed at or after `since`, and return the number of retried payouts."""
    retried = 0
    for payout in machine.payouts:
        if payout.status == "FAILED" and payout.failed_at is not None and payout.failed_at >= since:
            try:
                retry(machine, payout, at=at)
            except Refused:
                continue
            retried += 1
    return retried


def redirect(machine: Machine, payout: Payout, *, at: datetime) -> None:
    """Pay a failed payout into the member's wallet instead. Raises: Refused."""
    machine.check_owed(payout)
    machine.touched.add(payout)
    machine.book.post(f"redirect:{payout.ref}", f"payable:{payout.ref}", f"wallet:{payout.member}", payout.amount)
    payout.redirected = True
    payout.move("COMPLETED")


def decide(machine: Machine, payout: Payout, *, receipt: str, people: int, at: datetime) -> None:
    """Mark a held payout's open request as paid or failed, as M-Pesa's statement shows. Raises: Refused.

    `receipt` is the receipt in the statement, or "" if the statement shows no payment.
    """
    attempt = payout.open
    if payout.status != "HELD" or attempt is None:
        raise Refused("the payout is not held, or has no open request")
    if people < (2 if payout.amount >= machine.policy.confirm_above else 1):
        raise Refused("too few people")
    if receipt:
        machine.pay(attempt, receipt=receipt, at=at)
    else:
        machine.fail(attempt, code="", at=at)
