"""Attempts of requests that our books had lost. The caller owns the database transaction."""

from datetime import datetime

from payments.ledger import journal
from payments.models import Attempt, Transaction
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts, day_limit
from payments.policy import Policy

State = Attempt.State
Status = Transaction.Status


def close_earlier(payout: Transaction, number: int, *, at: datetime) -> None:
    """Close the payout's open request if M-Pesa knows a later one, of `number`.

    The later request left only after the earlier one was proven unpaid. The row of that proof is lost. A request that a
    callback reports as paid stays open.
    Locks: the open Attempt, the member's DayTotal; the caller holds the Transaction.
    """
    earlier = attempts.open_attempt(payout)
    if earlier is not None and earlier.number < number and not earlier.paid_report:
        attempts.close_lost(
            payout, earlier, words=f"M-Pesa knows the later request {number}, so this one failed", at=at
        )


def reopen(
    payout: Transaction, number: int, *, sent_at: datetime, at: datetime, policy: Policy, addresses: Addresses
) -> Attempt:
    """Open the attempt of a request that M-Pesa reports and our books had lost, and ask M-Pesa about it now.

    M-Pesa has the id, so it is never sent again. If we owe the payout and none of its requests is open, the attempt is
    in doubt. Otherwise it begins FAILED, so that proof of payment is booked as a late payment. A payout that is still
    to be paid then waits for a person. It counts for the member's limit of the day on which it was seen.
    Locks: the open Attempt; the caller holds the Transaction.
    """
    other = attempts.open_attempt(payout)
    attempt = attempts.new_attempt(payout, number, at, policy, addresses, kind=Attempt.Kind.FOUND)
    attempt.posted_at, attempt.first_sent_at, attempt.known_at, attempt.next_query_at = None, sent_at, at, at
    attempt.counted_on = day_limit.day_of(sent_at)
    attempt.result_words = "Our books had lost this request. M-Pesa reported it."
    if other is None and journal.owed(payout.pk) == payout.amount:
        attempt.state, attempt.doubted_at = State.IN_DOUBT, at
        attempt.save()
        day_limit.count_left([(payout.user_id, attempt.amount)], day=day_limit.day_of(sent_at))
        journal.post([attempts.sent(attempt)], at=at)
        if payout.status == Status.FAILED:
            attempts.make_pending(payout, due_at=payout.due_at)
        if payout.status == Status.PENDING:
            attempts.start([payout.pk])
        return attempt
    attempt.state, attempt.closed_at = State.FAILED, at
    attempt.save()
    if payout.status in (Status.PENDING, Status.PROCESSING):
        reason = f"M-Pesa reports an earlier request {attempt}, which our books had lost. We ask M-Pesa."
        attempts.hold(payout, reason=reason)
    return attempt
