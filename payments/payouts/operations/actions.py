"""Manual actions on one payout: retry, hold, release, ask M-Pesa, pay into the wallet.

No action moves money while a request of the payout may still be paid, or after the payout's debt is settled.
Lock order: Transaction, Attempt, then wallets (ledger), then the end of the audit trail.
"""

import hashlib
import logging
from datetime import datetime

from django.db import transaction

from payments import own_affairs
from payments.ledger import journal
from payments.models import AskFirst, Attempt, Orphan, Transaction
from payments.payouts import attempt_limit, attempts, eligibility
from users import audit, phone, proposals, second_person
from users.models import Proposal
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")

Status = Transaction.Status
TO_WALLET = "payout.to_wallet"
# The reason of a payout that a dispute keeps back (payments/dispute_holds).
DISPUTED = "The member disputes it. It waits for the decision on the dispute."


class TransactionNotFound(Refusal):
    """There is no transaction with that id."""


class PayoutNotRetryable(Refusal):
    """The payout is neither failed nor held, or a request of it may still be paid, or its amount is no longer owed."""


class PayoutStopped(PayoutNotRetryable):
    """The payout's settlement is undone, its undo is proposed, or its payouts are within their hold."""


class HeldByPerson(PayoutNotRetryable):
    """A person holds the payout. It must be released first."""


class NumberChanged(PayoutNotRetryable):
    """The member's number is no longer the one to which the payout would be sent."""


class NotToBeHeld(Refusal):
    """The payout does not wait to be sent to M-Pesa, so it cannot be held."""


class NotToBeReleased(Refusal):
    """The payout is neither held nor pending, or an earlier request of it was paid."""


class NothingToAsk(Refusal):
    """The payout has no request at M-Pesa with an unknown result."""


def retry(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Make a failed or held payout pending again, to be sent with a new attempt to the same number.

    Locks: Transaction.
    Raises: TransactionNotFound; own_affairs.OwnPayout; PayoutNotRetryable; PayoutStopped; HeldByPerson; NumberChanged.
    """
    with transaction.atomic(durable=True):
        payout, before = make_pending_again(transaction_id, by=by, at=at)
        record("payout.retry", payout, before, by=by, at=at)
    return payout


def make_pending_again(transaction_id: int, *, by: audit.Actor, at: datetime) -> tuple[Transaction, dict[str, str]]:
    """Do the work of `retry` in the caller's transaction. The caller must record the action (`record`).

    Returns the payout, and the snapshot of its state before the retry.
    Locks: Transaction.
    Raises: as `retry`.
    """
    rule = "Only a failed or held payout can be retried"
    payout = owing(transaction_id, (Status.FAILED, Status.HELD), rule, by=by, at=at)
    refuse_without_numbers(payout)
    if differs := number_differs(payout):
        raise NumberChanged(differs)
    before = snapshot(payout)
    attempts.make_pending(payout, due_at=at)
    ask_about_last(payout, at=at)
    return payout, before


def refuse_without_numbers(payout: Transaction) -> None:
    """Refuse another request of a payout whose requests have used up the numbers. Raises: PayoutNotRetryable."""
    if payout.attempts.filter(number__gte=attempt_limit.LARGEST_NUMBER).exists():
        raise PayoutNotRetryable(
            f"{attempt_limit.NO_NUMBERS} No money moved. Pay transaction {payout.pk} to the wallet."
        )


def number_differs(payout: Transaction) -> str:
    """Return a sentence if the member's number is no longer the payout's receiver, or an empty string."""
    present = payout.user.phone_number
    if present == payout.receiver or payout.destination != Transaction.Destination.MPESA:
        return ""
    return (
        f"Transaction {payout.pk} would go to {phone.masked(payout.receiver)}, but the member's number is now"
        f" {phone.masked(present)}. No money moved. Re-issue it to the member's new number, which takes two people,"
        " or pay it to the wallet."
    )


def ask_about_last(payout: Transaction, *, at: datetime) -> None:
    """Ask once more about the last request that M-Pesa may have taken, before a new request leaves."""
    taken = payout.attempts.exclude(conversation_id="", doubted_at=None).filter(kind=Attempt.Kind.B2C)
    last = taken.order_by("number").last()
    # M-Pesa has said the last word about a payment that it reversed.
    if last is not None and last.state != Attempt.State.REVERSED:
        attempts.ask_at(last, at)


def redirect_to_wallet(
    *, transaction_id: int, by: audit.Actor, at: datetime, reason: str = ""
) -> Transaction | proposals.Proposed:
    """Pay a failed or held payout into the member's wallet instead, or propose it if it needs a second person.

    Locks: Transaction, the actor's acts of this kind, the wallet.
    Raises: TransactionNotFound; own_affairs.OwnPayout; PayoutNotRetryable; PayoutStopped; HeldByPerson;
    proposals.ProposalWaits; proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        payout = owed_to_wallet(transaction_id, by=by, at=at)
        subject = f"transaction:{payout.pk}"
        proposals.refuse_while_one_waits(subject)
        if second_person.needed(TO_WALLET, amount=payout.amount, by=by, at=at):
            draft = proposals.Draft(TO_WALLET, subject, _hash_of_wallet(payout), reason, payout.amount)
            return proposals.make(draft, by=by, at=at)
        payout, before = pay_into_wallet(transaction_id, by=by, at=at)
        record(TO_WALLET, payout, before, by=by, at=at, reason=reason)
    return payout


def procedures() -> dict[str, proposals.Procedure]:
    """Return the procedure of an approved payment to the wallet, by the name of the act."""
    return {
        TO_WALLET: proposals.Procedure(
            lock=lambda proposal: _locked(proposal.subject_id),
            hash_now=lambda payout, proposal, at: _hash_of_wallet(payout),
            carry_out=_approved_to_wallet,
            words=lambda proposal: [
                f"Pay payout {proposal.subject_id} to the member's wallet instead of over M-Pesa.",
                "The member may bet with the money or withdraw it. Nothing is sent over M-Pesa.",
            ],
            refuse_own=own_affairs.refuse_own_payout,
        )
    }


def _approved_to_wallet(payout: Transaction, proposal: Proposal, by: audit.Actor, at: datetime) -> Transaction:
    paid, before = pay_into_wallet(payout.pk, by=by, at=at)
    proposer = audit.Actor(user_id=proposal.proposed_by_id or proposal.first_approved_by_id, source="proposal")
    for person in (proposer, by):
        record(TO_WALLET, paid, before, by=person, at=at, reason=proposal.reason)
    return paid


def _hash_of_wallet(payout: Transaction) -> str:
    """Hash the payout and its amount. A payout that is no longer owed is refused when it is carried out."""
    return hashlib.sha256(f"{payout.pk} {payout.amount} wallet".encode()).hexdigest()


def pay_into_wallet(transaction_id: int, *, by: audit.Actor, at: datetime) -> tuple[Transaction, dict[str, str]]:
    """Do the work of `redirect_to_wallet` in the caller's transaction. The caller must record the action (`record`).

    Returns as `make_pending_again`.

    Locks: Transaction, the wallet.
    Raises: as `redirect_to_wallet`.
    """
    payout = owed_to_wallet(transaction_id, by=by, at=at)
    before = snapshot(payout)
    attempts.complete_in_wallet(payout, at=at)
    return payout, before


def owed_to_wallet(transaction_id: int, *, by: audit.Actor, at: datetime) -> Transaction:
    """Lock and return a failed or held payout that may go to the wallet instead. Raises: as `redirect_to_wallet`."""
    rule = "Only a failed or held payout can go to the wallet instead"
    payout = owing(transaction_id, (Status.FAILED, Status.HELD), rule, by=by, at=at)
    _refuse_wallet_if_maybe_sent(payout)
    return payout


def record(
    action: str, payout: Transaction, before: dict[str, str], *, by: audit.Actor, at: datetime, reason: str = ""
) -> None:
    """Record a manual action in the audit trail, as the last statement of the caller's transaction."""
    audit.record(
        action=action,
        by=by,
        subject=f"transaction:{payout.pk}",
        before=before,
        after=snapshot(payout) | {"amount": payout.amount},
        at=at,
        reason=reason,
    )


def hold(*, transaction_id: int, reason: str, by: audit.Actor, at: datetime) -> Transaction:
    """Hold a pending payout until a person releases it.

    Locks: Transaction.
    A person may also hold a payout that a dispute keeps back. Then the decision on the dispute does not free it.
    Raises: TransactionNotFound; own_affairs.OwnPayout; NotToBeHeld, if the payout is not pending or goes to a wallet.
    """
    with transaction.atomic(durable=True):
        payout = _locked(transaction_id)
        own_affairs.refuse_own_payout(payout, by)
        is_pending = payout.status == Status.PENDING and payout.destination == Transaction.Destination.MPESA
        if not is_pending and not is_kept_back(payout):
            raise NotToBeHeld(f"Only a pending payout can be held. Payout {payout.pk} is {payout.status}.")
        before = snapshot(payout)
        attempts.hold(payout, reason=f"Held by a person: {reason.strip()}", by_person=True)
        record("payout.hold", payout, before, by=by, at=at, reason=reason)
    return payout


def is_kept_back(payout: Transaction) -> bool:
    """Return True if a dispute keeps the payout back, and no person holds it."""
    return payout.status == Status.HELD and payout.reason == DISPUTED and not payout.held_by_person


def release(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Release a held payout, or make a pending payout due now. The switch and the pace still apply.

    If the member's number has changed, a held payout becomes FAILED. A person then re-issues it or pays it to the
    wallet. If M-Pesa turned its request away before, the payout stays held, and M-Pesa is asked about the request.
    Locks: Transaction, its open Attempt, the member's DayTotal.
    Raises: TransactionNotFound; own_affairs.OwnPayout; NotToBeReleased; PayoutNotRetryable; PayoutStopped.
    """
    with transaction.atomic(durable=True):
        payout = _locked(transaction_id)
        own_affairs.refuse_own_payout(payout, by)
        before = snapshot(payout)
        if eligibility.is_paid(payout):
            raise NotToBeReleased(f"An earlier request of payout {payout.pk} was paid. It must not be paid again.")
        if payout.status == Status.HELD:
            _end_hold(payout, at=at)
        elif payout.status == Status.PENDING and payout.destination == Transaction.Destination.MPESA:
            _refuse_while_stopped(payout, at)
            attempts.make_pending(payout, due_at=at)
        else:
            raise NotToBeReleased(
                f"Only a held or pending payout can be released. Payout {payout.pk} is {payout.status}."
            )
        record("payout.release", payout, before, by=by, at=at)
    return payout


def _end_hold(payout: Transaction, *, at: datetime) -> None:
    differs = number_differs(payout)
    # A WAITING request keeps its id and its number, and is sent again with the payout. Any other open request forbids a
    # release.
    waiting = attempts.open_attempt(payout)
    if waiting is not None and waiting.state == Attempt.State.WAITING:
        _refuse_while_stopped(payout, at)
        if differs and waiting.first_sent_at is not None:
            # M-Pesa turned it away once. Two people decide about it, as about any request that may have left.
            attempts.doubt(waiting, ask_at=at, at=at)
            return
        if not differs:
            attempts.make_pending(payout, due_at=at)
            return
        words = "Not sent: the member's number has changed"
        attempts.fail_and_hold(payout, waiting, code="", words=words, reason=payout.reason, at=at)
    _check_owed(payout, (Status.HELD,), "Only a held payout can be released", at=at)
    if differs:
        attempts.end_hold_unsent(payout, reason=f"Its hold is ended. {differs}", at=at)
        return
    refuse_without_numbers(payout)
    attempts.make_pending(payout, due_at=at)
    ask_about_last(payout, at=at)


def ask_now(*, transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Make the next status query about a payout's open request due now. Idempotent.

    Locks: Transaction, Attempt.
    Raises: TransactionNotFound; NothingToAsk.
    """
    with transaction.atomic(durable=True):
        payout = _locked(transaction_id)
        attempt = attempts.open_attempt(payout)
        if attempt is None or attempt.state not in (Attempt.State.ACCEPTED, Attempt.State.IN_DOUBT):
            raise NothingToAsk(f"Payout {payout.pk} has no request at M-Pesa with an unknown result.")
        attempts.ask_at(attempt, at)
        record("payout.ask", payout, snapshot(payout), by=by, at=at)
    return payout


def _locked(transaction_id: int) -> Transaction:
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
    if payout is None:
        raise TransactionNotFound(f"There is no transaction {transaction_id}.")
    return payout


def owing(transaction_id: int, statuses: tuple[str, ...], rule: str, *, by: audit.Actor, at: datetime) -> Transaction:
    """Lock and return a payout whose whole amount is still owed, that no person holds and no settlement stops.

    Raises: TransactionNotFound; own_affairs.OwnPayout; PayoutNotRetryable; PayoutStopped; HeldByPerson.
    """
    payout = _locked(transaction_id)
    own_affairs.refuse_own_payout(payout, by)
    _check_owed(payout, statuses, rule, at=at)
    if payout.status == Status.HELD and payout.held_by_person:
        raise HeldByPerson(f"Transaction {transaction_id} is held. No money moved. Release it first. {payout.reason}")
    return payout


def _check_owed(payout: Transaction, statuses: tuple[str, ...], rule: str, *, at: datetime) -> None:
    """Check that a payout's whole amount is still owed, and that none of its requests may still be paid.

    Raises: PayoutNotRetryable; PayoutStopped.
    """
    if payout.type != Transaction.Type.PAYOUT or payout.status not in statuses:
        raise PayoutNotRetryable(f"{rule}. Transaction {payout.pk} is a {payout.type}, {payout.status}.")
    if payout.attempts.filter(state__in=Attempt.OPEN).exists():
        raise PayoutNotRetryable(f"Transaction {payout.pk} has a request with an unknown result.")
    if payout.attempts.filter(next_query_at__isnull=False).exists():
        raise PayoutNotRetryable(
            f"A message reports that transaction {payout.pk} was paid after all. We are asking M-Pesa."
        )
    if reported := lost_request_of(payout):
        raise PayoutNotRetryable(f"{reported} No money moved. Wait a minute, then look at the payout again.")
    if journal.owed(payout.pk) != payout.amount:
        raise PayoutNotRetryable(f"The books no longer owe the whole amount of transaction {payout.pk}.")
    _refuse_while_stopped(payout, at)


def lost_request_of(payout: Transaction) -> str:
    """Return a sentence if M-Pesa reports a request of the payout that our books do not have, or an empty string.

    The next sweep gives the request to the payout.
    """
    unresolved = Orphan.objects.filter(external_ref=payout.external_ref, state__in=Orphan.UNRESOLVED)
    reported = unresolved.filter(is_supposed=False).first()
    return f"M-Pesa reports request {reported} of this payout, which our books had lost." if reported else ""


def _refuse_while_stopped(payout: Transaction, at: datetime) -> None:
    if stop := eligibility.stop_of(payout, at=at):
        raise PayoutStopped(stop)
    if eligibility.is_unasked(payout):
        raise PayoutNotRetryable(
            f"Transaction {payout.pk} may have left before a restore of the database. No money moved. M-Pesa is being"
            " asked. Wait for its answer."
        )


def _refuse_wallet_if_maybe_sent(payout: Transaction) -> None:
    """Refuse the wallet to a payout that may have left before a restore, until M-Pesa did not know any such request."""
    listed = AskFirst.objects.filter(transaction=payout, ended_at=None).select_related("restore").first()
    if listed is None:
        return
    tried = set(payout.attempts.values_list("number", flat=True))
    ids = Orphan.objects.filter(external_ref=payout.external_ref).exclude(state__in=Orphan.UNRESOLVED)
    asked = {int(ocid.rpartition("-")[2]) for ocid in ids.values_list("originator_conversation_id", flat=True)}
    if set(range(max(tried, default=0) + 1, listed.last_number + 1)) - asked:
        raise PayoutNotRetryable(
            f"Payout {payout.pk} may have left before a restore, so it cannot go to the wallet. No money moved. Retry"
            " it, or re-issue it if the member's number has changed. M-Pesa is asked first, and the payout leaves only"
            " if M-Pesa does not know it."
        )
    is_decided = listed.restore.decided_at is not None or payout.pk in eligibility.decided_alone([payout.pk])
    if listed.restore.needs_decision and not is_decided:
        raise PayoutNotRetryable(
            f"Payout {payout.pk} may have left before a restore. No money moved. M-Pesa may have forgotten it, so two"
            " people must decide first. See the runbook: After a restore from a backup."
        )


def snapshot(payout: Transaction) -> dict[str, str]:
    """Return the columns of a payout that the audit trail shows before and after a manual action."""
    return {"status": payout.status, "reason": payout.reason, "receipt": payout.receipt}
