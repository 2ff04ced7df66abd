"""Decisions of staff on payouts: paid or not paid.

One person may decide that a small payout was paid. A large payout takes two people, and so does every decision as not
paid, because the member is then paid again. A failed payout may be decided as paid, always by two people, because
M-Pesa said otherwise. The first person's decision is stored as a Verdict. A second person confirms or refuses this
decision in their own session.
A decision ranks below M-Pesa's evidence. M-Pesa is asked about the receipt of a payout decided as paid, and later proof
to the contrary takes the decision back (evidence/rules).
Lock order: the receipt's advisory lock, Transaction, Verdict, Attempt, then wallets (ledger), then the end of the audit
trail.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from django.db import connection, transaction
from django.db.models import Q

from markets import locks
from markets.models import NAIROBI
from payments import own_affairs
from payments.ledger import journal
from payments.models import Attempt, Callback, Orphan, Transaction, Transfer, Verdict
from payments.payouts import attempts
from payments.payouts.evidence import booking
from payments.payouts.operations import actions
from payments.policy import Policy
from users import audit, phone, second_person
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")

Status = Transaction.Status
DECIDE = "payout.decide"
_NOT_DECIDABLE = (
    "Transaction {} cannot be decided: it must be held and have an open request. A failed one can be decided as paid."
)


class NotToBeDecided(Refusal):
    """The payout waits for no such decision, or M-Pesa's evidence or these people do not allow it."""


class DecisionNotOpen(Refusal):
    """No decision with this id waits for a second person."""


class SamePerson(Refusal):
    """The first person of a decision cannot also be the second."""


@dataclass(frozen=True)
class Finding:
    """One person's or two people's finding in M-Pesa's statement, with the evidence in words (`grounds`).

    With M-Pesa's `receipt` the payout was paid; an empty `receipt` means not paid. `statement_until` is the end of the
    statement that was checked, for a finding as not paid.
    """

    receipt: str
    grounds: str
    statement_until: datetime | None = None

    @property
    def normal(self) -> Self:
        """The same finding without blanks around its texts, with an upper-case receipt as M-Pesa writes it."""
        return replace(self, receipt=self.receipt.strip().upper(), grounds=self.grounds.strip())


def needs_two(payout: Transaction, policy: Policy, *, paid: bool, by: audit.Actor, at: datetime) -> bool:
    """Return True if this decision on the payout takes two people: always, or by the payout and the person's day."""
    is_open = payout.attempts.filter(state__in=Attempt.OPEN).exists()
    if not paid or payout.amount >= policy.confirm_above or not is_open:
        return True
    return second_person.would_be_needed(DECIDE, amount=payout.amount, by=by, at=at)


def decide_or_propose(
    *, transaction_id: int, finding: Finding, by: audit.Actor, at: datetime, policy: Policy
) -> Verdict | None:
    """Decide a held payout at once and return None, or store the first of two people's decision as a Verdict.

    Locks: the receipt's advisory lock, Transaction, Attempt.
    Raises: NotToBeDecided, also if a decision already waits for a second person; own_affairs.OwnPayout.
    """
    finding = finding.normal
    with transaction.atomic(durable=True):
        _lock_receipt(finding.receipt)
        payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
        if payout is None or not needs_two(payout, policy, paid=bool(finding.receipt), by=by, at=at):
            close_by_decision(transaction_id=transaction_id, finding=finding, by=[by], at=at, policy=policy)
            return None
        own_affairs.refuse_own_payout(payout, by)
        attempt = _decidable(payout, finding)
        _check_evidence(payout, attempt, finding, at, policy)
        if payout.verdicts.filter(closed_at__isnull=True).exists():
            raise NotToBeDecided(f"A decision on transaction {payout.pk} already waits for a second person.")
        if by.user_id is None or not finding.grounds:
            raise NotToBeDecided("A member of staff must decide and state the grounds.")
        verdict = Verdict.objects.create(
            transaction=payout,
            receipt=finding.receipt,
            grounds=finding.grounds,
            statement_until=finding.statement_until,
            proposed_by_id=by.user_id,
            proposed_from=by.source,
            proposed_at=at,
        )
        _record("payout.decision_proposed", verdict, by=by, at=at)
    return verdict


def confirm(*, verdict_id: int, by: audit.Actor, at: datetime, policy: Policy) -> Transaction:
    """Confirm a decision as the second person, and apply the decision.

    Locks: the receipt's advisory lock, Transaction, Verdict, Attempt.
    Raises: DecisionNotOpen; SamePerson; own_affairs.OwnPayout; NotToBeDecided, if evidence came meanwhile, another
    request was opened, or the payout was decided.
    """
    with transaction.atomic(durable=True):
        _lock_receipt(Verdict.objects.filter(pk=verdict_id).values_list("receipt", flat=True).first() or "")
        verdict = locked_open_verdict(verdict_id, Verdict.Kind.RESULT)
        if by.user_id is None or by.user_id == verdict.proposed_by_id:
            raise SamePerson("You made this decision. Another person must confirm it.")
        refuse_of_suspended(verdict)
        if verdict.transaction.attempts.filter(opened_at__gt=verdict.proposed_at).exists():
            raise NotToBeDecided(
                "This decision is about an earlier request of the payout. Another one was opened since. Nothing was"
                " decided. Reject this decision. Then decide about the new request."
            )
        verdict.closed_by_id, verdict.closed_at, verdict.confirmed = by.user_id, at, True
        verdict.save(update_fields=["closed_by", "closed_at", "confirmed"])
        first = audit.Actor(user_id=verdict.proposed_by_id, source=verdict.proposed_from)
        return close_by_decision(
            transaction_id=verdict.transaction_id,
            finding=Finding(verdict.receipt, verdict.grounds, verdict.statement_until),
            by=[first, by],
            at=at,
            policy=policy,
        )


def refuse_of_suspended(verdict: Verdict) -> None:
    """Refuse to confirm the decision of a person who was suspended meanwhile. Raises: NotToBeDecided."""
    if not verdict.proposed_by.is_active:
        raise NotToBeDecided(
            "The person who made this decision is suspended. Nothing was decided. Reject it, and decide again."
        )


def refuse(*, verdict_id: int, reason: str, by: audit.Actor, at: datetime, kind: str = "") -> Verdict:
    """Refuse or withdraw a decision that waits for a second person. The payout stays as it is.

    `kind` is the kind that the caller may refuse, or empty for any kind.
    Locks: Transaction, Verdict.
    Raises: DecisionNotOpen; own_affairs.OwnPayout.
    """
    with transaction.atomic(durable=True):
        verdict = locked_open_verdict(verdict_id, kind)
        own_affairs.refuse_own_payout(verdict.transaction, by)
        verdict.closed_by_id, verdict.closed_at, verdict.confirmed = by.user_id, at, False
        verdict.save(update_fields=["closed_by", "closed_at", "confirmed"])
        _record("payout.decision_refused", verdict, by=by, at=at, reason=reason)
    return verdict


def locked_open_verdict(verdict_id: int, kind: str = "") -> Verdict:
    """Lock a Verdict's Transaction, then the Verdict, and return the Verdict. It must still wait for a second person.

    `kind` is the kind that the caller carries out or refuses, or empty for any kind.
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
    said = {"receipt": verdict.receipt or "not paid"}
    if verdict.kind == Verdict.Kind.REISSUE:
        said = {"number": phone.masked(verdict.phone_number)}
    audit.record(
        action=action,
        by=by,
        subject=f"transaction:{verdict.transaction_id}",
        before={},
        after={"verdict": verdict.pk, **said},
        at=at,
        reason=reason or verdict.grounds,
    )


def decide(
    *, transaction_id: int, finding: Finding, by: Sequence[audit.Actor], at: datetime, policy: Policy
) -> Transaction:
    """Close a HELD payout's request by a decision of staff.

    Locks: the receipt's advisory lock, Transaction, Attempt.
    Raises: NotToBeDecided; own_affairs.OwnPayout.
    """
    finding = finding.normal
    with transaction.atomic(durable=True):
        _lock_receipt(finding.receipt)
        return close_by_decision(transaction_id=transaction_id, finding=finding, by=by, at=at, policy=policy)


def close_by_decision(
    *, transaction_id: int, finding: Finding, by: Sequence[audit.Actor], at: datetime, policy: Policy
) -> Transaction:
    """Do the work of `decide` in the caller's transaction, which holds the receipt's advisory lock.

    Locks: Transaction, Attempt.
    Raises: NotToBeDecided; own_affairs.OwnPayout.
    """
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).filter(pk=transaction_id).first()
    if payout is None:
        raise NotToBeDecided(_NOT_DECIDABLE.format(transaction_id))
    for person in by:
        own_affairs.refuse_own_payout(payout, person)
    attempt = _decidable(payout, finding)
    receipt, grounds = finding.receipt, finding.grounds
    deciders = list(dict.fromkeys(person.user_id for person in by if person.user_id is not None))
    if not deciders:
        raise NotToBeDecided("A member of staff must decide this payout.")
    if len(deciders) == 1 and (
        needs_two(payout, policy, paid=bool(receipt), by=by[0], at=at)
        or second_person.needed(DECIDE, amount=payout.amount, by=by[0], at=at)
    ):
        raise NotToBeDecided("Two different members of staff must decide this payout.")
    if not grounds:
        raise NotToBeDecided("State the grounds for the decision.")
    _check_evidence(payout, attempt, finding, at, policy)
    alarm.warning("Transaction %s decided by %s: %s (%s)", payout.pk, deciders, receipt or "not paid", grounds)
    before = actions.snapshot(payout)
    if receipt:
        is_proven = booking.suspended(attempt) is not None  # Then M-Pesa has confirmed the payment already.
        booking.pay(payout, attempt, receipt=receipt, at=at, policy=policy)
        if not is_proven:
            attempts.mark_decided(attempt, Attempt.Decision.PAID, ask_at=at)
    else:
        attempts.fail(payout, attempt, code="", words=f"Decided as not paid: {grounds}", at=at, policy=policy)
        attempts.mark_decided(attempt, Attempt.Decision.NOT_PAID, ask_at=None)
    for person in dict.fromkeys(by):
        actions.record(
            f"payout.decide_{'paid' if receipt else 'not_paid'}", payout, before, by=person, at=at, reason=grounds
        )
    return payout


# --- evidence that forbids a decision --------------------------------------------------------------------------------


def _lock_receipt(receipt: str) -> None:
    """Let only one transaction at a time decide with this receipt."""
    if receipt:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [locks.receipt_lock(receipt)])


def _decidable(payout: Transaction, finding: Finding) -> Attempt:
    """Lock and return the request that is decided: the open one of a held payout, or the last one if it failed.

    Raises: NotToBeDecided.
    """
    attempt = attempts.open_attempt(payout) if payout.status == Status.HELD else None
    if attempt is None and payout.status in (Status.HELD, Status.FAILED) and finding.receipt:
        attempt = _last_failed(payout)
    if attempt is None:
        raise NotToBeDecided(_NOT_DECIDABLE.format(payout.pk))
    return attempt


def _last_failed(payout: Transaction) -> Attempt | None:
    """Lock and return the last failed request of a payout. The whole amount must still be owed.

    Raises: NotToBeDecided.
    """
    ended = payout.attempts.filter(state=Attempt.State.FAILED, first_sent_at__isnull=False).order_by("number")
    attempt = ended.select_for_update(no_key=True, of=("self",)).last()
    if attempt is None or journal.owed(payout.pk) != payout.amount:
        return None
    if payout.attempts.filter(next_query_at__isnull=False).exists():
        raise NotToBeDecided("We are asking M-Pesa about this payout. Nothing was decided. Wait for its answer.")
    if attempt.phone_number != payout.receiver:
        raise NotToBeDecided("This request went to a number that is replaced now. Nothing was decided. Ask M-Pesa.")
    return attempt


def _check_evidence(payout: Transaction, attempt: Attempt, finding: Finding, at: datetime, policy: Policy) -> None:
    """Check that M-Pesa's own evidence allows the decision.

    Raises: NotToBeDecided.
    """
    ids = payout.attempts.values("originator_conversation_id")
    about = Q(attempt__transaction=payout) | Q(query__attempt__transaction=payout)
    about |= Q(originator_conversation_id__in=ids)
    if Callback.objects.filter(about, applied_at=None).exists():
        raise NotToBeDecided(
            "A message from M-Pesa about this payout has arrived and is not applied yet. Nothing was decided. "
            "Wait a minute, then look at the payout again."
        )
    if reported := actions.lost_request_of(payout):
        raise NotToBeDecided(f"{reported} Nothing was decided. Wait a minute, then look at the payout again.")
    suspended = booking.suspended(attempt)
    if suspended is not None and finding.receipt != suspended.receipt.upper():
        raise NotToBeDecided(
            f"M-Pesa has paid this request, with receipt {suspended.receipt}. Nothing was decided. "
            "Decide it as paid with this receipt."
        )
    if finding.receipt:
        _check_receipt(payout, attempt, finding.receipt)
    else:
        _check_not_paid(attempt, finding, at, policy)


def _check_receipt(payout: Transaction, attempt: Attempt, receipt: str) -> None:
    if attempt.first_sent_at is None:
        raise NotToBeDecided(
            "This request never left us, so M-Pesa cannot have paid it. Nothing was decided. "
            "Find the payment that this receipt belongs to."
        )
    holders = Attempt.objects.filter(receipt__iexact=receipt).exclude(pk=attempt.pk).select_related("transaction")
    used_by = {other.transaction for other in holders}
    used_by |= set(Transaction.objects.filter(receipt__iexact=receipt).exclude(pk=payout.pk))
    if Transfer.objects.filter(key=f"second:{receipt}").exists():
        raise NotToBeDecided(f"Receipt {receipt} is booked as a second payment already. Nothing was decided.")
    if Attempt.objects.filter(second_receipt__iexact=receipt).exists():
        raise NotToBeDecided(
            f"Receipt {receipt} is reported as the second payment of another request, and we ask M-Pesa about it."
            " Nothing was decided. Wait for its answer."
        )
    booked = Orphan.objects.filter(receipt__iexact=receipt, state__in=[Orphan.State.SUSPENSE, Orphan.State.CLAIMED])
    if lost := booked.exclude(originator_conversation_id=attempt.originator_conversation_id).first():
        raise NotToBeDecided(
            f"Receipt {receipt} belongs to request {lost}, which our books had lost. Nothing was decided. "
            "Check M-Pesa's statement again."
        )
    if used_by:
        owner = min(used_by, key=lambda other: other.pk)
        where = "another request of this payout" if owner.pk == payout.pk else f"payout {owner.pk}"
        raise NotToBeDecided(
            f"Receipt {receipt} already belongs to {where}. Nothing was decided. Check M-Pesa's statement again."
        )


def _check_not_paid(attempt: Attempt, finding: Finding, at: datetime, policy: Policy) -> None:
    """Check that M-Pesa was asked, or its statement checked, after the request could last be paid.

    Raises: NotToBeDecided.
    """
    if finding.statement_until is not None and finding.statement_until > at:
        raise NotToBeDecided("The statement cannot end in the future. Nothing was decided. Give the time of its end.")
    if attempt.first_sent_at is None:
        return
    sent_from = max(attempt.first_sent_at, attempt.cleared_at or attempt.first_sent_at)
    last_post = max(attempt.posted_at or attempt.first_sent_at, sent_from + policy.resend_horizon)
    answered = attempt.queries.filter(asked_at__gt=last_post, receipt="").exclude(verdict__in=["", "completed"])
    if finding.statement_until is not None and finding.statement_until > last_post:
        return
    if not answered.exists():
        raise NotToBeDecided(
            f"M-Pesa may have paid this request until {local_time(last_post)}. Nothing was decided. Wait for an answer"
            " to a status query after that time, or check a statement that goes further and give the time of its end."
        )


def local_time(at: datetime) -> str:
    """Return a time as people in Nairobi write it."""
    return f"{at.astimezone(NAIROBI):%d %B %Y, %H:%M} (Nairobi)"
