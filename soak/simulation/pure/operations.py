"""Manual actions on payouts of the pure machine: retry, pay to the wallet, decide."""

from datetime import datetime

from soak.simulation.pure.attempts import Refused
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.rows import Attempt, Message, Payout


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
    if perhaps_received and perhaps_received[-1].state != "REVERSED":
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
    if machine.must_ask_first(payout):
        raise Refused("a request of it may have left before commits were lost: retry it first")
    machine.touched.add(payout)
    machine.book.post(f"redirect:{payout.ref}", f"payable:{payout.ref}", f"wallet:{payout.member}", payout.amount)
    payout.redirected = True
    payout.move("COMPLETED")


def decide(
    machine: Machine,
    payout: Payout,
    *,
    receipt: str,
    people: int,
    at: datetime,
    statement_until: datetime | None = None,
) -> None:
    """Mark a held payout's open request as paid or failed, as M-Pesa's statement shows. Raises: Refused.

    If no request is open, two people may mark the last failed request as paid.

    `receipt` is the receipt in the statement, or "" if the statement shows no payment until `statement_until`.
    """
    attempt = payout.open if payout.status == "HELD" else None
    if attempt is None and payout.status in ("HELD", "FAILED") and receipt:
        attempt = _last_failed(machine, payout)
    if attempt is None:
        raise Refused("the payout has no request to decide")
    if people < (2 if not receipt or payout.amount >= machine.policy.confirm_above or payout.open is None else 1):
        raise Refused("too few people")
    if any(_about(message) is payout for message in machine.unapplied):
        raise Refused("a message is not applied yet")
    machine.touched.add(payout)
    if receipt:
        if attempt.first_sent_at is None:
            raise Refused("it never left")
        asked_about = any(a.second.upper() == receipt for p in machine.payouts for a in p.attempts)
        if asked_about or f"second:{receipt}" in machine.book.keys or machine.receipt_taken(receipt, by=attempt):
            raise Refused("the receipt belongs to another payment")
        machine.pay(attempt, receipt=receipt, at=at)
        attempt.decision, attempt.ask_at = "paid", at
        return
    _check_not_paid(machine, attempt, statement_until)
    machine.fail(attempt, code="", at=at)
    attempt.decision = "not_paid"
    if attempt.asked_first:  # The people have read M-Pesa's statement of the lost time.
        machine.asked_first.add(payout.ref)


def _last_failed(machine: Machine, payout: Payout) -> Attempt | None:
    """Return the last failed request that left. Raises: Refused, if M-Pesa is being asked."""
    failed = [a for a in payout.attempts if a.state == "FAILED" and a.first_sent_at is not None]
    if not failed or machine.book.held[f"payable:{payout.ref}"] != payout.amount:
        return None
    if any(attempt.ask_at is not None for attempt in payout.attempts):
        raise Refused("we are asking whether it was paid")
    return failed[-1]


def _about(message: Message) -> Payout:
    about = message.about
    return about.payout if isinstance(about, Attempt) else about.attempt.payout


def _check_not_paid(machine: Machine, attempt: Attempt, statement_until: datetime | None) -> None:
    """Check for an answer or a statement later than the last moment at which M-Pesa may pay the request."""
    if attempt.first_sent_at is None:
        return
    last = max(attempt.posted_at, attempt.first_sent_at + machine.policy.resend_horizon)
    answered = any(
        question.asked_at > last and not question.receipt and question.verdict not in ("", "completed")
        for question in attempt.questions
    )
    if not answered and (statement_until is None or statement_until <= last):
        raise Refused("M-Pesa may have paid it")
