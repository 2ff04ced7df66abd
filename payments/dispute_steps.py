"""Steps that all decisions on disputes share: lock a dispute, add to its history, tell the member, and record."""

import uuid
from datetime import datetime
from typing import cast

from markets.models import Bet
from payments import own_affairs
from payments.models import Dispute, DisputeEvent
from users import audit, notifications, proposals
from users.refusal import Refusal


class DisputeNotFound(Refusal):
    """The dispute, bet or transaction does not exist, or it belongs to another member."""


class NotDisputable(Refusal):
    """There is no result yet, the time for a dispute is over, or a dispute is already open."""


class WrongDisputeState(Refusal):
    """The dispute is in a state that does not allow this step."""


class NoSuchRemedy(Refusal):
    """The remedy does not fit the disputed bet or payout."""


def name(dispute: Dispute) -> str:
    """Return the name of a dispute as the subject of proposals, notices and audit entries."""
    return f"dispute:{dispute.public_id}"


def locked(dispute_id: uuid.UUID, *, user_id: int | None = None) -> Dispute:
    """Lock and return a dispute, or a member's own dispute. Raises: DisputeNotFound."""
    rows = Dispute.objects.select_for_update(no_key=True, of=("self",)).filter(public_id=dispute_id)
    dispute = (rows if user_id is None else rows.filter(user_id=user_id)).first()
    if dispute is None:
        raise DisputeNotFound(f"There is no dispute {dispute_id}.")
    return dispute


def decidable(dispute_id: uuid.UUID, by: audit.Actor, states: tuple[Dispute.State, ...]) -> Dispute:
    """Lock and return a dispute in one of these states, which this person may decide now.

    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute; proposals.ProposalWaits.
    """
    dispute = locked(dispute_id)
    own_affairs.refuse_own_dispute(dispute, by)
    if dispute.state not in states:
        raise WrongDisputeState(
            f"The dispute is {dispute.state}. This step is possible only if it is {' or '.join(states)}."
        )
    proposals.refuse_while_one_waits(name(dispute))
    return dispute


def subject(dispute: Dispute) -> str:
    """Return the bet or payout of a dispute in words."""
    if dispute.transaction is not None:
        return f"the {dispute.transaction.type.lower()} of KES {dispute.transaction.amount:.2f}"
    bet = cast(Bet, dispute.bet)
    return f"the bet of KES {bet.amount:.2f} on {bet.outcome}"


def add_event(dispute: Dispute, kind: DisputeEvent.Kind, *, by: audit.Actor, text: str, at: datetime) -> DisputeEvent:
    """Add a step to the history of a dispute."""
    return DisputeEvent.objects.create(dispute=dispute, kind=kind, by_id=by.user_id, text=text, at=at)


def tell(dispute: Dispute, event: DisputeEvent, text: str, at: datetime) -> None:
    """Tell the member of a dispute about an event."""
    notifications.tell(
        user_id=dispute.user_id,
        kind="dispute",
        subject=name(dispute),
        event=f"{event.kind}:{event.pk}",
        text=text,
        at=at,
    )


def snapshot(dispute: Dispute) -> dict[str, str]:
    """Return the columns of a dispute that the audit trail shows before and after a step."""
    return {"state": dispute.state, "remedy": dispute.remedy, "remedy_state": dispute.remedy_state}


def record(
    action: str, dispute: Dispute, before: dict[str, str], *, by: audit.Actor, at: datetime, reason: str = ""
) -> None:
    """Record a step on a dispute in the audit trail, as the last statement of the caller's transaction."""
    audit.record(
        action=action,
        by=by,
        subject=name(dispute),
        before=before,
        after=snapshot(dispute),
        at=at,
        reason=reason,
    )
