"""Decisions of staff on held payouts: one person decides a small payout, two people a large one.

The first person's decision on a large payout is stored as a Verdict. A second person confirms or refuses this decision
in their own session.
Lock order: Transaction, Verdict, Attempt, then wallets (ledger), then the end of the audit trail.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from django.db import transaction

from payments.models import Transaction, Verdict
from payments.payouts import attempts
from payments.payouts.evidence import booking
from payments.payouts.operations import actions
from payments.policy import Policy
from users import audit
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")

Status = Transaction.Status
_NOT_DECIDABLE = "Transaction {} cannot be decided: it must be held and have an open request."


class NotToBeDecided(Refusal):
    """The payout is not HELD, or it has no open request, or these people may not decide it."""


class DecisionNotOpen(Refusal):
    """No decision with this id waits for a second person."""


class SamePerson(Refusal):
    """The first person of a decision cannot also be the second."""


def needs_two(payout: Transaction, policy: Policy) -> bool:
    """Return True if a decision on this payout takes two people."""
    return payout.amount >= policy.confirm_above


def decide_or_propose(
    *, transaction_id: int, receipt: str, grounds: str, by: audit.Actor, at: datetime, policy: Policy
) -> Verdict | None:
    """Decide a small held payout at once and return None, or store the first decision on a large one as a Verdict.

    Locks: Transaction, Attempt.
    Raises: NotToBeDecided, also if a decision already waits for a second person.
    """
    with transaction.atomic(durable=True):
        payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
        if payout is None or not needs_two(payout, policy):
            close_by_decision(
                transaction_id=transaction_id, receipt=receipt, grounds=grounds, by=[by], at=at, policy=policy
            )
            return None
        if payout.status != Transaction.Status.HELD or attempts.open_attempt(payout) is None:
            raise NotToBeDecided(_NOT_DECIDABLE.format(payout.pk))
        if payout.verdicts.filter(closed_at__isnull=True).exists():
            raise NotToBeDecided(f"A decision on transaction {payout.pk} already waits for a second person.")
        if by.user_id is None or not grounds.strip():
            raise NotToBeDecided("A member of staff must decide and state the grounds.")
        verdict = Verdict.objects.create(
            transaction=payout,
            receipt=receipt.strip(),
            grounds=grounds.strip(),
            proposed_by_id=by.user_id,
            proposed_from=by.source,
            proposed_at=at,
        )
        _record("payout.decision_proposed", verdict, by=by, at=at)
    return verdict


def confirm(*, verdict_id: int, by: audit.Actor, at: datetime, policy: Policy) -> Transaction:
    """Confirm a decision as the second person, and apply the decision.

    Locks: Transaction, Verdict, Attempt.
    Raises: DecisionNotOpen; SamePerson; NotToBeDecided, if the payout was decided meanwhile.
    """
    with transaction.atomic(durable=True):
        verdict = locked_open_verdict(verdict_id, Verdict.Kind.RESULT)
        if by.user_id is None or by.user_id == verdict.proposed_by_id:
            raise SamePerson("You made this decision. Another person must confirm it.")
        verdict.closed_by_id, verdict.closed_at, verdict.confirmed = by.user_id, at, True
        verdict.save(update_fields=["closed_by", "closed_at", "confirmed"])
        first = audit.Actor(user_id=verdict.proposed_by_id, source=verdict.proposed_from)
        return close_by_decision(
            transaction_id=verdict.transaction_id,
            receipt=verdict.receipt,
            grounds=verdict.grounds,
            by=[first, by],
            at=at,
            policy=policy,
        )


def refuse(*, verdict_id: int, reason: str, by: audit.Actor, at: datetime) -> None:
    """Refuse or withdraw a decision that waits for a second person. The payout stays held.

    Locks: Transaction, Verdict.
    Raises: DecisionNotOpen.
    """
    with transaction.atomic(durable=True):
        verdict = locked_open_verdict(verdict_id)
        verdict.closed_by_id, verdict.closed_at, verdict.confirmed = by.user_id, at, False
        verdict.save(update_fields=["closed_by", "closed_at", "confirmed"])
        _record("payout.decision_refused", verdict, by=by, at=at, reason=reason)


def locked_open_verdict(verdict_id: int, kind: str = "") -> Verdict:
    """Lock a Verdict's Transaction, then the Verdict, and return the Verdict. It must still wait for a second person.

    `kind` is the kind that the caller carries out, or empty for any kind.
    Raises: DecisionNotOpen.
    """
    transaction_id = Verdict.objects.filter(pk=verdict_id).values_list("transaction", flat=True).first()
    if transaction_id is not None:
        Transaction.objects.select_for_update(no_key=True, of=("self",)).get(pk=transaction_id)
    waiting = Verdict.objects.select_for_update(no_key=True, of=("self",)).filter(closed_at__isnull=True)
    verdict = waiting.filter(pk=verdict_id).first()
    if verdict is None or kind not in ("", verdict.kind):
        raise DecisionNotOpen("This decision no longer waits for a second person.")
    return verdict


def _record(action: str, verdict: Verdict, *, by: audit.Actor, at: datetime, reason: str = "") -> None:
    audit.record(
        action=action,
        by=by,
        subject=f"transaction:{verdict.transaction_id}",
        before={},
        after={"verdict": verdict.pk, "receipt": verdict.receipt or "not paid"},
        at=at,
        reason=reason or verdict.grounds,
    )


def decide(
    *, transaction_id: int, receipt: str, grounds: str, by: Sequence[audit.Actor], at: datetime, policy: Policy
) -> Transaction:
    """Close a HELD payout's request by a decision of staff.

    With M-Pesa's `receipt` the request is paid; an empty `receipt` means not paid. `grounds` states the evidence in
    words. An amount of `confirm_above` shillings or more takes two people.
    Locks: Transaction, Attempt.
    Raises: NotToBeDecided.
    """
    with transaction.atomic(durable=True):
        return close_by_decision(
            transaction_id=transaction_id, receipt=receipt, grounds=grounds, by=by, at=at, policy=policy
        )


def close_by_decision(
    *, transaction_id: int, receipt: str, grounds: str, by: Sequence[audit.Actor], at: datetime, policy: Policy
) -> Transaction:
    """Do the work of `decide` in the caller's transaction.

    Locks: Transaction, Attempt.
    Raises: NotToBeDecided.
    """
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
    attempt = attempts.open_attempt(payout) if payout is not None and payout.status == Status.HELD else None
    if payout is None or attempt is None:
        raise NotToBeDecided(_NOT_DECIDABLE.format(transaction_id))
    people = 2 if payout.amount >= policy.confirm_above else 1
    deciders = list(dict.fromkeys(person.user_id for person in by if person.user_id is not None))
    if len(deciders) < people:
        who = "A member of staff" if people == 1 else "Two different members of staff"
        raise NotToBeDecided(f"{who} must decide this payout.")
    if not grounds.strip():
        raise NotToBeDecided("State the grounds for the decision.")
    alarm.warning("Transaction %s decided by %s: %s (%s)", payout.pk, deciders, receipt or "not paid", grounds)
    before = actions.snapshot(payout)
    if receipt:
        booking.pay(payout, attempt, receipt=receipt, at=at, policy=policy)
    else:
        attempts.fail(payout, attempt, code="", words=f"Decided as not paid: {grounds}", at=at, policy=policy)
    for person in dict.fromkeys(by):
        actions.record(
            f"payout.decide_{'paid' if receipt else 'not_paid'}", payout, before, by=person, at=at, reason=grounds
        )
    return payout
