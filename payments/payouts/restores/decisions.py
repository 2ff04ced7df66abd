"""Decisions of two people after a restore: listed payouts did not leave, so the same ids may be sent.

A decision holds for one payout or for all payouts of a restore. M-Pesa is asked once more before each request leaves.
If M-Pesa knows the id, its word counts and nothing is sent.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from django.db import transaction

from payments import own_affairs
from payments.models import AskFirst, Attempt, Restore, RestoreDecision, Transaction
from payments.payouts.restores import changes, listing
from users import audit, proposals
from users.refusal import Refusal

alarm = logging.getLogger("kasoko.alarm")

State = Restore.State
Status = Transaction.Status


class NothingToDecide(Refusal):
    """There is no restore to decide about, or the payout does not wait for this decision."""


def propose(*, reference: str, grounds: str, by: audit.Actor, at: datetime) -> RestoreDecision:
    """Store the first person's decision for one payout (its external reference) or for "all".

    Locks: the Restore.
    Raises: NothingToDecide; proposals.PersonNeeded, without a person or grounds; own_affairs.OwnPayout.
    """
    with transaction.atomic(durable=True):
        restore, payout = _locked_subject(reference)
        return _propose(restore, payout, grounds=grounds, by=by, at=at)


def confirm(*, decision_id: int, by: audit.Actor, at: datetime) -> RestoreDecision:
    """Confirm a decision as the second person, and carry it out.

    Locks: the Restore, the decision, Transactions by id, their Attempts; then as `listing.end_stop`.
    Raises: NothingToDecide; proposals.ProposerCannotApprove; own_affairs.OwnPayout.
    """
    with transaction.atomic(durable=True):
        decision = _locked_decision(decision_id)
        _confirm(decision, by=by, at=at)
    return decision


def refuse(*, decision_id: int, by: audit.Actor, at: datetime, reason: str) -> None:
    """Refuse or withdraw a decision that waits for a second person. The payouts go on waiting.

    Locks: the Restore, the decision, the end of the audit trail.
    Raises: NothingToDecide; own_affairs.OwnPayout.
    """
    with transaction.atomic(durable=True):
        decision = _locked_decision(decision_id)
        _refuse_own_payout(decision.restore, decision.transaction, by)
        decision.closed_by_id, decision.closed_at, decision.confirmed = by.user_id, at, False
        decision.save(update_fields=["closed_by", "closed_at", "confirmed"])
        _record("restore.decision_refused", decision, by=by, at=at, reason=reason)


def decide(*, reference: str, grounds: str, by: Sequence[audit.Actor], at: datetime) -> RestoreDecision:
    """Propose and confirm a decision in one call, by two people who have both proved who they are.

    Locks: as `confirm`.
    Raises: as `propose` and `confirm`.
    """
    if len(by) != 2:
        raise proposals.PersonNeeded("Two different members of staff must decide this.")
    first, second = by
    with transaction.atomic(durable=True):
        restore, payout = _locked_subject(reference)
        decision = _propose(restore, payout, grounds=grounds, by=first, at=at)
        _confirm(decision, by=second, at=at)
    return decision


def waiting() -> list[RestoreDecision]:
    """Return the decisions that wait for a second person, the oldest first."""
    decisions = RestoreDecision.objects.filter(closed_at__isnull=True)
    return list(decisions.select_related("restore", "transaction", "proposed_by").order_by("pk"))


def closed(*, limit: int) -> list[RestoreDecision]:
    """Return the latest decisions that a second person confirmed or refused, the newest first."""
    decisions = RestoreDecision.objects.filter(closed_at__isnull=False)
    return list(decisions.select_related("transaction", "proposed_by", "closed_by").order_by("-pk")[:limit])


def _propose(
    restore: Restore, payout: Transaction | None, *, grounds: str, by: audit.Actor, at: datetime
) -> RestoreDecision:
    if by.user_id is None or not grounds.strip():
        raise proposals.PersonNeeded("A member of staff must decide and state the grounds.")
    _refuse_own_payout(restore, payout, by)
    if restore.decisions.filter(transaction=payout, closed_at__isnull=True).exists():
        raise NothingToDecide("This decision already waits for a second person.")
    decision = RestoreDecision.objects.create(
        restore=restore, transaction=payout, grounds=grounds.strip()[:300], proposed_by_id=by.user_id, proposed_at=at
    )
    _record("restore.decision_proposed", decision, by=by, at=at)
    return decision


def _confirm(decision: RestoreDecision, *, by: audit.Actor, at: datetime) -> None:
    restore, payout = decision.restore, decision.transaction
    if by.user_id is None or by.user_id == decision.proposed_by_id:
        raise proposals.ProposerCannotApprove("You made this decision. Another person must confirm it.")
    if not decision.proposed_by.is_active:
        raise NothingToDecide(
            "The person who made this decision is suspended. Nothing leaves. Refuse the decision, and decide again."
        )
    _refuse_own_payout(restore, payout, by)
    decision.closed_by_id, decision.closed_at, decision.confirmed = by.user_id, at, True
    decision.save(update_fields=["closed_by", "closed_at", "confirmed"])
    cleared = Attempt.objects.filter(transaction__ask_first__restore=restore, transaction__ask_first__ended_at=None)
    if payout is not None:
        cleared = cleared.filter(transaction=payout)
    changes.clear_to_leave(cleared, at=at)
    if payout is None:
        restore.state, restore.decided_at = State.DECIDED, at
        restore.save(update_fields=["state", "decided_at"])
        alarm.warning("Restore %s: two people decided that its listed payouts may leave", restore.pk)
        listing.end_stop(reason=decision.grounds, by=by, at=at)
    _record("restore.decide", decision, by=by, at=at)


def _locked_subject(reference: str) -> tuple[Restore, Transaction | None]:
    """Lock and return the restore that a reference names, with the payout; the payout is None for "all".

    "all" means the oldest restore that nobody has decided about.
    """
    if reference == "all":
        undecided = Restore.objects.exclude(state__in=[State.LISTING, State.DECIDED]).order_by("pk")
        restore = undecided.select_for_update(no_key=True).first()
        if restore is None:
            raise NothingToDecide("No restore waits for a decision. Payouts that are being listed take a few seconds.")
        return restore, None
    open_entries = AskFirst.objects.filter(transaction__external_ref=reference, ended_at=None)
    listed = open_entries.select_related("transaction").first()
    # A payout without an open request, such as a failed one, may be decided too. Its next request may then leave.
    if listed is None or listed.transaction.status in (Status.COMPLETED, Status.CANCELLED):
        raise NothingToDecide(f"Payout {reference} is not asked about because of a restore.")
    restore = Restore.objects.select_for_update(no_key=True).get(pk=listed.restore_id)
    return restore, listed.transaction


def _locked_decision(decision_id: int) -> RestoreDecision:
    restore_id = RestoreDecision.objects.filter(pk=decision_id).values_list("restore", flat=True).first()
    if restore_id is not None:
        restore = Restore.objects.select_for_update(no_key=True).get(pk=restore_id)
        waits = RestoreDecision.objects.select_for_update(no_key=True, of=("self",)).filter(closed_at__isnull=True)
        decision = waits.filter(pk=decision_id).first()
        if decision is not None:
            decision.restore = restore
            return decision
    raise NothingToDecide("This decision no longer waits for a second person.")


def _refuse_own_payout(restore: Restore, payout: Transaction | None, by: audit.Actor) -> None:
    """Refuse anyone who is paid by a payout of the decision. Raises: own_affairs.OwnPayout."""
    own = AskFirst.objects.filter(restore=restore, ended_at=None, transaction__user=by.user_id)
    if payout is not None:
        own = own.filter(transaction=payout)
    if own.exists():
        raise own_affairs.OwnPayout("One of these payouts is your own. Another member of staff must decide about it.")


def _record(action: str, decision: RestoreDecision, *, by: audit.Actor, at: datetime, reason: str = "") -> None:
    payout = decision.transaction
    audit.record(
        action=action,
        by=by,
        subject=f"restore:{decision.restore_id}",
        before={},
        after={"decision": decision.pk, "payouts": payout.external_ref if payout else "all"},
        at=at,
        reason=reason or decision.grounds,
    )
