"""What an operator may do about one payout: send it again, hold it, let it go, ask about it, pay it to the wallet
instead, say what became of it.

Nothing is done while money of the payout may be on its way, or after the books have stopped owing it.
Lock order: Transaction, Attempt, then wallets (ledger), then the end of the audit trail.
"""

import logging
from datetime import datetime

from django.db import transaction

from payments.ledger import journal
from payments.models import Attempt, Transaction
from payments.payouts import attempts
from users import audit
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")

Status = Transaction.Status


class TransactionNotFound(Refusal):
    """There is no transaction with that id."""


class PayoutNotRetryable(Refusal):
    """The payout has not failed for good, or money of it may be on its way: sending it again could pay twice."""


class NotToBeHeld(Refusal):
    """The payout does not wait to be sent, so it cannot be held back."""


class NotToBeReleased(Refusal):
    """The payout is neither held nor waiting, or money of it may be on its way."""


class NothingToAsk(Refusal):
    """The payout has no request of which M-Pesa may know what we do not."""


def retry(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Put a failed payout back to be sent, with a new attempt.

    Locks: Transaction.
    Raises: TransactionNotFound; PayoutNotRetryable.
    """
    with transaction.atomic(durable=True):
        payout, was = put_back(transaction_id, at=at)
        record("payout.retry", payout, was, by=by, at=at)
    return payout


def put_back(transaction_id: int, *, at: datetime) -> tuple[Transaction, dict[str, str]]:
    """What `retry` does, in the caller's transaction, which records it: the payout, and what it was before.

    Locks: Transaction.
    Raises: TransactionNotFound; PayoutNotRetryable.
    """
    payout = _owing(transaction_id, (Status.FAILED, Status.HELD), "Only a failed or held payout can be retried")
    was = snapshot(payout)
    payout.status, payout.due_at, payout.failed_at = Status.PENDING, at, None
    payout.reason = ""
    payout.save(update_fields=["status", "due_at", "failed_at", "reason"])
    # A request that M-Pesa had taken is asked about once more before another one leaves.
    taken = payout.attempts.exclude(conversation_id="", doubted_at=None).filter(kind=Attempt.Kind.B2C)
    last = taken.order_by("number").last()
    if last is not None:
        last.next_query_at = at
        last.save(update_fields=["next_query_at"])
    return payout, was


def retry_failed(*, since: datetime, by: audit.Actor, at: datetime) -> tuple[list[int], int]:
    """Retry every payout that failed at or after `since`: the ids retried, and how many could not be."""
    failed = Transaction.objects.filter(
        status=Status.FAILED, failed_at__gte=since, type=Transaction.Type.PAYOUT
    ).order_by("pk")
    retried, skipped = [], 0
    for transaction_id in list(failed.values_list("pk", flat=True)):
        try:
            retried.append(retry(transaction_id=transaction_id, by=by, at=at).pk)
        except PayoutNotRetryable:
            skipped += 1
    return retried, skipped


def redirect_to_wallet(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Pay a payout that failed for good into the member's wallet instead.

    Locks: Transaction, the wallet.
    Raises: TransactionNotFound; PayoutNotRetryable.
    """
    with transaction.atomic(durable=True):
        payout, was = pay_into_wallet(transaction_id, at=at)
        record("payout.to_wallet", payout, was, by=by, at=at)
    return payout


def pay_into_wallet(transaction_id: int, *, at: datetime) -> tuple[Transaction, dict[str, str]]:
    """What `redirect_to_wallet` does, in the caller's transaction, which records it; returns what `put_back` does.

    Locks: Transaction, the wallet.
    Raises: TransactionNotFound; PayoutNotRetryable.
    """
    payout = _owing(
        transaction_id, (Status.FAILED, Status.HELD), "Only a failed or held payout can go to the wallet instead"
    )
    was = snapshot(payout)
    wallet = journal.wallet(payout.user_id)
    journal.post([journal.Entry(f"redirect:{payout.pk}", journal.PAYABLE, wallet, payout.amount, payout.pk)], at=at)
    payout.status, payout.completed_at, payout.reason = Status.COMPLETED, at, "Paid into the wallet instead."
    payout.save(update_fields=["status", "completed_at", "reason"])
    return payout, was


def record(
    action: str, payout: Transaction, was: dict[str, str], *, by: audit.Actor, at: datetime, reason: str = ""
) -> None:
    """Add what was done about a payout to the audit trail, as the last thing in the caller's transaction."""
    audit.record(
        action=action,
        by=by,
        subject=f"transaction:{payout.pk}",
        before=was,
        after=snapshot(payout) | {"amount": payout.amount},
        at=at,
        reason=reason,
    )


def hold(*, transaction_id: int, reason: str, by: audit.Actor, at: datetime) -> Transaction:
    """Keep a payout that waits to be sent from leaving, until a person releases it.

    Locks: Transaction.
    Raises: TransactionNotFound; NotToBeHeld, where it has left already or needs no sending.
    """
    with transaction.atomic(durable=True):
        payout = _locked(transaction_id)
        if payout.status != Status.PENDING or payout.destination != Transaction.Destination.MPESA:
            raise NotToBeHeld(f"Only a payout that waits to be sent can be held; {payout.pk} is {payout.status}.")
        was = snapshot(payout)
        payout.status, payout.reason = Status.HELD, f"Held by a person: {reason.strip()}"[:300]
        payout.save(update_fields=["status", "reason"])
        record("payout.hold", payout, was, by=by, at=at, reason=reason)
    return payout


def release(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Let a held payout go, or make a waiting one due now. The market's hold, the switch and the pace still apply.

    Locks: Transaction.
    Raises: TransactionNotFound; NotToBeReleased; PayoutNotRetryable, as for a retry.
    """
    with transaction.atomic(durable=True):
        payout = _locked(transaction_id)
        was = snapshot(payout)
        if payout.attempts.filter(state=Attempt.State.PAID).exists():
            raise NotToBeReleased(f"An earlier request of payout {payout.pk} was paid: nothing more may leave for it.")
        # A request that never left keeps its id and goes with the payout; any other open one forbids to let it go.
        waits = payout.attempts.filter(state=Attempt.State.WAITING).exists()
        if payout.status == Status.HELD and not waits:
            payout, was = put_back(transaction_id, at=at)
        elif payout.status in (Status.HELD, Status.PENDING) and payout.destination == Transaction.Destination.MPESA:
            payout.status, payout.due_at, payout.reason = Status.PENDING, at, ""
            payout.save(update_fields=["status", "due_at", "reason"])
        else:
            raise NotToBeReleased(f"Only a held or waiting payout can be let go; {payout.pk} is {payout.status}.")
        record("payout.release", payout, was, by=by, at=at)
    return payout


def ask_now(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Make the question to M-Pesa about a payout's open request due now, rather than at its next turn. Idempotent.

    Locks: Transaction, Attempt.
    Raises: TransactionNotFound; NothingToAsk.
    """
    with transaction.atomic(durable=True):
        payout = _locked(transaction_id)
        attempt = attempts.open_attempt(payout)
        if attempt is None or attempt.state not in (Attempt.State.ACCEPTED, Attempt.State.IN_DOUBT):
            raise NothingToAsk(f"Transaction {payout.pk} has no request at M-Pesa whose fate is open.")
        attempt.next_query_at = at
        attempt.save(update_fields=["next_query_at"])
        record("payout.ask", payout, snapshot(payout), by=by, at=at)
    return payout


def _locked(transaction_id: int) -> Transaction:
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
    if payout is None:
        raise TransactionNotFound(f"There is no transaction {transaction_id}.")
    return payout


def _owing(transaction_id: int, statuses: tuple[str, ...], rule: str) -> Transaction:
    """The payout under lock, if nothing of it is on its way and the ledger still owes all of it."""
    payout = _locked(transaction_id)
    if payout.type != Transaction.Type.PAYOUT or payout.status not in statuses:
        raise PayoutNotRetryable(f"{rule}; transaction {transaction_id} is a {payout.type}, {payout.status}.")
    if payout.attempts.filter(state__in=Attempt.OPEN).exists():
        raise PayoutNotRetryable(f"Transaction {transaction_id} has a request whose fate is not known yet.")
    if payout.attempts.filter(next_query_at__isnull=False).exists():
        raise PayoutNotRetryable(
            f"A message claims that transaction {transaction_id} was paid after all: we are asking."
        )
    if journal.owed(payout.pk) != payout.amount:
        raise PayoutNotRetryable(f"The books no longer owe transaction {transaction_id} its whole amount.")
    return payout


def snapshot(payout: Transaction) -> dict[str, str]:
    return {"status": payout.status, "reason": payout.reason, "receipt": payout.receipt}
