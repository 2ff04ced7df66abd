"""Starts of sending: the end of the kill switch, and of a stop for a payment that our books had lost.

A start lets all waiting payouts leave, and no payment can be taken back. So a start takes two people if the waiting
payouts sum above the threshold. A stop always takes one person.
Lock order: all Breakers, the Proposal, the advisory lock of a person's acts, then the end of the audit trail.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction
from django.db.models import Sum

from payments.models import Breaker, Settlement, Transaction
from payments.payouts import breakers
from users import audit, authority, proposals, second_person
from users.models import Proposal

Cause = Breaker.Cause
# The act that ends each of these stops. Two people end the stop after a restore (payouts/restores).
ACTS = {Cause.SWITCH: "sending.on", Cause.ORPHAN: "sending.lift"}
_ZERO = Decimal("0.00")


@dataclass(frozen=True)
class Started:
    """A stop that people have ended. Payouts leave, unless another stop or an open breaker pauses them."""

    cause: Breaker.Cause


@dataclass(frozen=True)
class Resumed:
    """The payouts of one market leave again, unless a stop or an open breaker pauses them."""

    market_id: int


def start(
    cause: Breaker.Cause, *, people: Sequence[audit.Actor], at: datetime, reason: str = ""
) -> Started | proposals.Proposed:
    """End a stop, or propose it if the payouts that wait need a second person. Idempotent: nothing stops, nothing ends.

    `cause` is one of ACTS. `people` are the one or two who have decided, each with a login or PIN of their own.
    Locks: all Breakers, the first person's acts of this kind.
    Raises: proposals.PersonNeeded; proposals.ProposalWaits.
    """
    act_name, by = ACTS[cause], people[0]
    subject = f"breaker:{cause}"
    with transaction.atomic(durable=True):
        # Read before the breakers are locked, because workers wait for that lock.
        waiting = waiting_sum()
        breaker = breakers.locked(cause)
        if breaker.opened_at is None:
            return Started(cause)
        if by.user_id is None and second_person.limit(act_name, at=at) is not None:
            raise proposals.PersonNeeded(
                f"To {authority.ACTS[act_name].words} takes members of staff. Sending is still off. Log in, or name"
                " them in the command."
            )
        second = next((person for person in people if person.user_id != by.user_id), None)
        if second is not None:
            proposals.lapse(subject, words="Two people started the sending.", by=second, at=at)
        else:
            proposals.refuse_while_one_waits(subject)
            if second_person.needed(act_name, amount=waiting, by=by, at=at):
                draft = proposals.Draft(act_name, subject, _hash(breaker), reason, waiting)
                return proposals.make(draft, by=by, at=at)
        return _end(cause, by=by, second=second, reason=reason, at=at)


def waiting_sum(settlement: Settlement | None = None) -> Decimal:
    """Return the sum of the payouts that wait to be sent over M-Pesa: all, or those of one settlement.

    Units: shillings. Locks: none.
    """
    waiting = Transaction.objects.filter(
        status=Transaction.Status.PENDING,
        destination=Transaction.Destination.MPESA,
        type=Transaction.Type.PAYOUT,
    )
    if settlement is not None:
        waiting = waiting.filter(settlement=settlement)
    total: Decimal | None = waiting.aggregate(total=Sum("amount"))["total"]
    return total or _ZERO


def procedures() -> dict[str, proposals.Procedure]:
    """Return the procedures of approved starts, by the name of the act."""
    procedure = proposals.Procedure(
        lock=lambda proposal: breakers.locked(_cause(proposal)),
        hash_now=lambda breaker, proposal, at: _hash(breaker),
        carry_out=_carry_out,
        words=_words,
    )
    return dict.fromkeys(ACTS.values(), procedure)


def _end(cause: Breaker.Cause, *, by: audit.Actor, second: audit.Actor | None, reason: str, at: datetime) -> Started:
    if cause == Cause.SWITCH:
        breakers.switch_on(by=by, second=second, at=at)
    else:
        breakers.end_stop(cause, by=by, second=second, reason=reason, at=at)
    return Started(cause)


def _carry_out(breaker: Breaker, proposal: Proposal, by: audit.Actor, at: datetime) -> Started:
    proposer = audit.Actor(user_id=proposal.proposed_by_id or proposal.first_approved_by_id, source="proposal")
    return _end(_cause(proposal), by=proposer, second=by, reason=proposal.reason, at=at)


def _hash(breaker: Breaker) -> str:
    """Hash the stop. It leaves the payouts that wait out, because their sum changes with each settlement."""
    if breaker.opened_at is None:
        return ""
    return hashlib.sha256(f"{breaker.cause} {breaker.opened_at.isoformat()}".encode()).hexdigest()


def _cause(proposal: Proposal) -> Breaker.Cause:
    return Cause(proposal.subject.partition(":")[2])


def _words(proposal: Proposal) -> list[str]:
    effects = [
        "From the approval on, due payouts of all markets are sent at the usual pace. None can be taken back.",
        "The amount is the sum of the payouts that waited when this was proposed.",
        "Open breakers and other stops stay as they are.",
    ]
    stopped = Breaker.objects.filter(cause=_cause(proposal), opened_at__isnull=False).first()
    if stopped is not None:
        effects.append(f"Sending was stopped because: {stopped.reason or 'no reason was given'}.")
    return effects
