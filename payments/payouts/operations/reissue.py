"""Re-issue of a payout to the member's new number, by two people.

A payout keeps the number that the member had when it was created. If the number has changed since, a retry is refused,
because the old number may belong to another person by now. One person proposes the new number, and a second person
confirms it. The payout's next request then goes to the new number.
Lock order: Transaction, Verdict, Attempt, then the end of the audit trail.
"""

from datetime import datetime

from django.db import transaction

from payments.models import Transaction, Verdict
from payments.payouts import attempts, eligibility
from payments.payouts.operations import actions, decisions
from users import audit, phone

Status = Transaction.Status
_RULE = "Only a failed or held payout can be re-issued"


def propose(*, transaction_id: int, grounds: str, by: audit.Actor, at: datetime) -> Verdict:
    """Propose to send a payout to the member's present number. `grounds` says how the number was checked.

    Locks: Transaction.
    Raises: actions.TransactionNotFound; actions.PayoutNotRetryable; actions.PayoutStopped; actions.HeldByPerson;
    own_affairs.OwnPayout; decisions.NotToBeDecided, if the number has not changed, or a decision already waits.
    """
    with transaction.atomic(durable=True):
        payout = _reissuable(transaction_id, by, at)
        if by.user_id is None or not grounds.strip():
            raise decisions.NotToBeDecided("A member of staff must propose this and state the grounds.")
        if payout.verdicts.filter(closed_at__isnull=True).exists():
            raise decisions.NotToBeDecided(f"A decision on transaction {payout.pk} already waits for a second person.")
        verdict = Verdict.objects.create(
            transaction=payout,
            kind=Verdict.Kind.REISSUE,
            phone_number=payout.user.phone_number,
            grounds=grounds.strip()[:300],
            proposed_by_id=by.user_id,
            proposed_from=by.source,
            proposed_at=at,
        )
        audit.record(
            action="payout.reissue_proposed",
            by=by,
            subject=f"transaction:{payout.pk}",
            before={"number": phone.masked(payout.receiver)},
            after={"verdict": verdict.pk, "number": phone.masked(verdict.phone_number)},
            at=at,
            reason=verdict.grounds,
        )
    return verdict


def confirm(*, verdict_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Confirm a re-issue as the second person. The payout becomes pending, and its next request has the new number.

    Locks: Transaction, Verdict, Attempt.
    Raises: as `propose`; decisions.DecisionNotOpen; decisions.SamePerson; actions.NumberChanged, if the member's number
    has changed again.
    """
    with transaction.atomic(durable=True):
        verdict = decisions.locked_open_verdict(verdict_id, Verdict.Kind.REISSUE)
        payout = _reissuable(verdict.transaction_id, by, at)
        if by.user_id is None or by.user_id == verdict.proposed_by_id:
            raise decisions.SamePerson("You proposed this. Another person must confirm it.")
        decisions.refuse_of_suspended(verdict)
        if payout.user.phone_number != verdict.phone_number:
            raise actions.NumberChanged(
                f"The member's number has changed again since this was proposed, to"
                f" {phone.masked(payout.user.phone_number)}. No money moved. Reject it and propose the new number."
            )
        verdict.closed_by_id, verdict.closed_at, verdict.confirmed = by.user_id, at, True
        verdict.save(update_fields=["closed_by", "closed_at", "confirmed"])
        before = _snapshot(payout)
        attempts.reissue(payout, phone_number=verdict.phone_number, at=at)
        actions.ask_about_last(payout, at=at)
        first = audit.Actor(user_id=verdict.proposed_by_id, source=verdict.proposed_from)
        for person in (first, by):
            audit.record(
                action="payout.reissue",
                by=person,
                subject=f"transaction:{payout.pk}",
                before=before,
                after=_snapshot(payout) | {"amount": payout.amount},
                at=at,
                reason=verdict.grounds,
            )
    return payout


def _reissuable(transaction_id: int, by: audit.Actor, at: datetime) -> Transaction:
    """Lock and return a payout that may be re-issued to the member's present number by this person."""
    payout = actions.owing(transaction_id, (Status.FAILED, Status.HELD), _RULE, by=by, at=at)
    actions.refuse_without_numbers(payout)
    if not actions.number_differs(payout):
        raise decisions.NotToBeDecided(
            f"Transaction {payout.pk} already goes to the member's present number. Retry it, or pay it to the wallet."
        )
    if eligibility.is_paid(payout, payout.user.phone_number):
        raise decisions.NotToBeDecided(
            f"M-Pesa paid an earlier request of transaction {payout.pk} to the member's present number. No money moved."
            " Ask the member about that payment. Pay this to the wallet only if the money did not come."
        )
    return payout


def _snapshot(payout: Transaction) -> dict[str, str]:
    return actions.snapshot(payout) | {"number": phone.masked(payout.receiver)}
