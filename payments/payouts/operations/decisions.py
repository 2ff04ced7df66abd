"""A person's word on a held payout, given in the console: small amounts by one, large ones by two, each in their turn.

The first person's word is kept as a Verdict; the second one confirms or refuses just that, from a session of their own.
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


class VerdictNotOpen(Refusal):
    """There is no such word that still waits for a second person."""


class SamePerson(Refusal):
    """The second word on a large payout must be another person's."""


def needs_two(payout: Transaction, policy: Policy) -> bool:
    return payout.amount >= policy.confirm_above


def give(
    *, transaction_id: int, receipt: str, grounds: str, by: audit.Actor, at: datetime, policy: Policy
) -> Verdict | None:
    """Say what became of a held payout: it is decided at once (None), or waits as a Verdict for a second person.

    Locks: Transaction, Attempt.
    Raises: interventions.NotToBeDecided, also where a word waits already.
    """
    with transaction.atomic(durable=True):
        payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
        if payout is None or not needs_two(payout, policy):
            close_by_decision(
                transaction_id=transaction_id, receipt=receipt, grounds=grounds, by=[by], at=at, policy=policy
            )
            return None
        if payout.status != Transaction.Status.HELD or attempts.open_attempt(payout) is None:
            raise NotToBeDecided(f"Transaction {payout.pk} is not held with a request whose fate is open.")
        if payout.verdicts.filter(closed_at__isnull=True).exists():
            raise NotToBeDecided(f"A word on transaction {payout.pk} waits for its second person already.")
        if by.user_id is None or not grounds.strip():
            raise NotToBeDecided("It takes a person, and the grounds in words.")
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
    """Add the second person's word, which decides the payout.

    Locks: Transaction, Verdict, Attempt.
    Raises: VerdictNotOpen; SamePerson; interventions.NotToBeDecided, where the payout is decided meanwhile.
    """
    with transaction.atomic(durable=True):
        verdict = _open(verdict_id)
        if by.user_id is None or by.user_id == verdict.proposed_by_id:
            raise SamePerson("The second word must be another person's than the first.")
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
    """Take a waiting word back: by the one who gave it, or by anybody else who may decide. The payout stays held.

    Locks: Transaction, Verdict.
    Raises: VerdictNotOpen.
    """
    with transaction.atomic(durable=True):
        verdict = _open(verdict_id)
        verdict.closed_by_id, verdict.closed_at, verdict.confirmed = by.user_id, at, False
        verdict.save(update_fields=["closed_by", "closed_at", "confirmed"])
        _record("payout.decision_refused", verdict, by=by, at=at, reason=reason)


def _open(verdict_id: int) -> Verdict:
    transaction_id = Verdict.objects.filter(pk=verdict_id).values_list("transaction", flat=True).first()
    if transaction_id is not None:
        Transaction.objects.select_for_update(no_key=True, of=("self",)).get(pk=transaction_id)
    waiting = Verdict.objects.select_for_update(no_key=True, of=("self",)).filter(closed_at__isnull=True)
    verdict = waiting.filter(pk=verdict_id).first()
    if verdict is None:
        raise VerdictNotOpen("That word no longer waits for a second person.")
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


class NotToBeDecided(Refusal):
    """The payout is not held with a request in doubt, or the people are not those who may decide it."""


def decide(
    *, transaction_id: int, receipt: str, grounds: str, by: Sequence[audit.Actor], at: datetime, policy: Policy
) -> Transaction:
    """Close a HELD payout's doubtful request by a person's word: paid, with M-Pesa's `receipt`, or not paid (empty).

    From `confirm_above` shillings on it takes two people. `grounds` says what the statement shows.
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
    """What `decide` does, in the caller's transaction.

    Locks: Transaction, Attempt.
    Raises: NotToBeDecided.
    """
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
    attempt = attempts.open_attempt(payout) if payout is not None and payout.status == Status.HELD else None
    if payout is None or attempt is None:
        raise NotToBeDecided(f"Transaction {transaction_id} is not held with a request whose fate is open.")
    people = 2 if payout.amount >= policy.confirm_above else 1
    deciders = list(dict.fromkeys(person.user_id for person in by if person.user_id is not None))
    if len(deciders) < people or not grounds.strip():
        raise NotToBeDecided(f"It takes {people} different members of staff, and the grounds in words.")
    alarm.warning("Transaction %s decided by %s: %s (%s)", payout.pk, deciders, receipt or "not paid", grounds)
    was = actions.snapshot(payout)
    if receipt:
        booking.pay(payout, attempt, receipt=receipt, at=at, policy=policy)
    else:
        attempts.fail(payout, attempt, code="", words=f"Not paid, says a person: {grounds}", at=at, policy=policy)
    for person in dict.fromkeys(by):
        actions.record(
            f"payout.decide_{'paid' if receipt else 'not_paid'}", payout, was, by=person, at=at, reason=grounds
        )
    return payout
