"""State changes of attempts and their payouts."""

from datetime import datetime, timedelta

from payments.ledger import journal, receivables
from payments.models import Attempt, Transaction
from payments.mpesa import result_codes
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import breakers
from payments.policy import Policy

State = Attempt.State
Status = Transaction.Status

LONGEST_WAIT = timedelta(minutes=5)


# --- changes of state ------------------------------------------------------------------------------------------------


def fail(payout: Transaction, attempt: Attempt, *, code: str, words: str, at: datetime, policy: Policy) -> str:
    """Mark an attempt as proven failed, and move its amount back from in-flight to payable.

    Returns the callback's outcome in words.
    A fault of ours (no float, wrong credentials) makes the payout pending again. A fault of the member's, or an unknown
    fault, makes the payout FAILED.
    Locks: none further; the caller holds the Transaction and the Attempt.
    """
    attempt.state, attempt.closed_at, attempt.next_query_at, attempt.resend_at = State.FAILED, at, None, None
    attempt.result_code, attempt.result_words = code[:20], words[:300]
    attempt.paid_report = Attempt.PaidReport.NONE
    attempt.save()
    entry = journal.Entry(f"return:{attempt.pk}", journal.IN_FLIGHT, journal.PAYABLE, attempt.amount, payout.pk)
    journal.post([entry], at=at)
    if payout.status == Status.PENDING:  # The request waited to be sent again, or staff recorded the attempt.
        payout.status = Status.PROCESSING
        payout.save(update_fields=["status"])
    payout.reason = f"{code} {words}".strip()[:300]
    breakers.watch(at=at, policy=policy)
    paid_after_all = payout.attempts.filter(state=State.PAID).order_by("number").last()
    if paid_after_all is not None:
        return _set_off(payout, paid_after_all, at)
    if receivables.was_recalled(payout.pk):
        return _cancel(payout, at)
    if result_codes.meaning(code).fault == "ours" and payout.status == Status.PROCESSING:
        payout.status = Status.PENDING
        payout.due_at = at + min(policy.retry_after * 2 ** min(attempt.number, 10), LONGEST_WAIT)
        breakers.trip_by_code(code, reason=words, at=at, policy=policy)
    else:
        payout.status, payout.failed_at = Status.FAILED, at
    payout.save(update_fields=["status", "reason", "due_at", "failed_at"])
    return f"failed: {payout.reason}"


def _set_off(payout: Transaction, paid_after_all: Attempt, at: datetime) -> str:
    """Set the payout off against the member's debt, and complete the payout. Returns the callback's outcome in words.

    The member owes us this debt, because an earlier attempt was paid after all.
    """
    wallet, receivable = journal.wallet(payout.user_id), journal.receivable(payout.user_id)
    owed, written_off = receivables.record_repayment(
        settlement_id=payout.settlement_id, user_id=payout.user_id, amount=payout.amount
    )
    parts = [
        journal.Entry(f"redirect:{payout.pk}", journal.PAYABLE, wallet, payout.amount, payout.pk),
        journal.Entry(f"setoff:{paid_after_all.pk}", wallet, receivable, owed, payout.pk),
        journal.Entry(f"unwrite:{payout.pk}", wallet, journal.BAD_DEBT, written_off, payout.pk),
    ]
    journal.post([part for part in parts if part.amount > 0], at=at)
    payout.status, payout.completed_at, payout.receipt = Status.COMPLETED, at, paid_after_all.receipt
    payout.reason = f"Paid by the earlier request {paid_after_all}, which we had recorded as failed."
    payout.save(update_fields=["status", "completed_at", "receipt", "reason"])
    return "failed; an earlier request had paid, so the debt is settled"


def _cancel(payout: Transaction, at: datetime) -> str:
    """Cancel a payout that is proven unpaid. Its settlement was undone while the payout was under way."""
    receivables.reverse_recall(payout, at=at)
    if payout.status == Status.PROCESSING:
        payout.status = Status.FAILED
        payout.save(update_fields=["status"])
    payout.status = Status.CANCELLED
    payout.reason = f"Its settlement was undone, and it was not paid: {payout.reason}"[:300]
    payout.save(update_fields=["status", "reason"])
    return "failed, and cancelled: its settlement was undone"


def doubt(attempt: Attempt, *, ask_at: datetime, at: datetime) -> None:
    """Mark an attempt as in doubt, with a status query due at `ask_at` at the latest.

    A pending payout becomes PROCESSING. If it stayed pending, it would be sent again.
    """
    attempt.state = State.IN_DOUBT
    attempt.doubted_at = attempt.doubted_at or at
    attempt.next_query_at = min(attempt.next_query_at or ask_at, ask_at)
    attempt.save()
    Transaction.objects.filter(pk=attempt.transaction_id, status=Status.PENDING).update(status=Status.PROCESSING)


def mark_known(attempt: Attempt, *, at: datetime) -> None:
    """Record that M-Pesa has received a request with this id.

    From now on we only ask about the id and never send it again. The result of the request remains unknown.
    """
    attempt.known_at, attempt.resend_at = attempt.known_at or at, None
    attempt.save(update_fields=["known_at", "resend_at"])


# --- new and open attempts -------------------------------------------------------------------------------------------


def new_attempt(
    payout: Transaction, number: int, at: datetime, policy: Policy, addresses: Addresses, kind: str = Attempt.Kind.B2C
) -> Attempt:
    """Return a new attempt to pay a payout, in state SENDING and not saved yet."""
    ocid = f"{payout.external_ref}-{number}"
    return Attempt(
        transaction=payout,
        settlement_id=payout.settlement_id,
        number=number,
        kind=kind,
        originator_conversation_id=ocid,
        token_hash=token_hash(addresses.token(ocid)),
        amount=payout.amount,
        phone_number=payout.phone_number,
        state=State.SENDING,
        opened_at=at,
        posted_at=at,
        first_sent_at=at,
        next_query_at=at + policy.query_after,
    )


def within_horizon(attempt: Attempt, at: datetime, policy: Policy) -> bool:
    """Return True if the attempt's id may still be sent again.

    M-Pesa does not publish how long its check for duplicates remembers an id. We therefore send an id again for a
    limited time only.
    """
    return attempt.first_sent_at is None or at < attempt.first_sent_at + policy.resend_horizon


def locked(attempt_id: int) -> tuple[Transaction, Attempt]:
    """Lock and return an attempt's transaction and the attempt.

    Locks: Transaction, then Attempt.
    """
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).get(attempts=attempt_id)
    attempt = Attempt.objects.select_for_update(no_key=True, of=("self",)).get(pk=attempt_id)
    attempt.transaction = payout
    return payout, attempt


def open_attempt(payout: Transaction) -> Attempt | None:
    """Lock and return the payout's open attempt, or return None if it has no open attempt."""
    return payout.attempts.select_for_update(no_key=True, of=("self",)).filter(state__in=Attempt.OPEN).first()
