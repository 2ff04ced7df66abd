"""Sending of one market's payouts: suspend it, resume it, and let a stopped release go on. Other markets go on.

To suspend takes one person. The two others take a second person if the payouts that wait sum above the threshold.
"""

import hashlib
from datetime import datetime
from decimal import Decimal

from django.db import transaction

from markets import locks, stakeholders
from markets.models import Market
from payments import own_affairs
from payments.models import Settlement
from payments.payouts.operations import starting
from payments.payouts.sending import canary
from payments.settlement import status
from users import audit, proposals, second_person
from users.models import Proposal
from users.refusal import Refusal

RESUME, RELEASE = "market.resume_sending", "sending.release"


class NothingToSend(Refusal):
    """The market has no settlement whose payouts could leave."""


class SendingNotSuspended(Refusal):
    """The sending of the market's payouts is not suspended."""


def suspend(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> Settlement:
    """Suspend the sending of one market's payouts, until a person resumes it. Requests under way are not called back.

    Idempotent: sending that is suspended stays so.
    Locks: Market, Settlement, then the end of the audit trail.
    Raises: locks.MarketNotFound; NothingToSend; stakeholders.StakeInMarket.
    """
    with transaction.atomic(durable=True):
        market, settlement = _locked(market_id, by)
        if settlement.sending_suspended_at is None:
            _write(market, settlement, at, "market.suspend_sending", by=by, at=at, reason=reason)
    return settlement


def resume(*, market_id: int, reason: str, by: audit.Actor, at: datetime) -> starting.Resumed | proposals.Proposed:
    """Let the payouts of one market leave again, or propose it if they need a second person.

    Locks: Market, Settlement, the person's acts of this kind, then the end of the audit trail.
    Raises: locks.MarketNotFound; NothingToSend; SendingNotSuspended; stakeholders.StakeInMarket;
    proposals.ProposalWaits.
    """
    with transaction.atomic(durable=True):
        market, settlement = _locked(market_id, by)
        if settlement.sending_suspended_at is None:
            raise SendingNotSuspended(f"The payouts of market {market_id} are not suspended. Nothing was changed.")
        subject = f"market:{market.pk}"
        proposals.refuse_while_one_waits(subject)
        waiting = waiting_sum(market_id)
        if second_person.needed(RESUME, amount=waiting, by=by, at=at):
            return proposals.make(proposals.Draft(RESUME, subject, _hash(settlement), reason, waiting), by=by, at=at)
        return _resume(market, settlement, by=by, at=at, reason=reason)


def waiting_sum(market_id: int) -> Decimal:
    """Return the sum of a market's payouts that wait to be sent over M-Pesa. Units: shillings. Locks: none."""
    settlement = status.deciding_settlement(market_id)
    return starting.waiting_sum(settlement) if settlement is not None else Decimal("0.00")


def let_go(*, settlement_id: int, by: audit.Actor, reason: str, at: datetime) -> starting.Resumed | proposals.Proposed:
    """Release all payouts of a settlement, whatever its canary shows, or propose it if they need a second person.

    Idempotent: skips an open release.
    Locks: the Settlement, the person's acts of this kind, then the end of the audit trail.
    Raises: own_affairs.OwnPayout, if one of these payouts pays the person; proposals.ProposalWaits.
    """
    subject = f"settlement:{settlement_id}"
    with transaction.atomic(durable=True):
        settlement = canary.locked(settlement_id)
        own_affairs.refuse_own_release(settlement, by)
        if not settlement.release_open:
            proposals.refuse_while_one_waits(subject)
            waiting = starting.waiting_sum(settlement)
            if second_person.needed(RELEASE, amount=waiting, by=by, at=at):
                draft = proposals.Draft(RELEASE, subject, _hash_of_release(settlement), reason, waiting)
                return proposals.make(draft, by=by, at=at)
            canary.let_go(settlement, by=by, reason=reason, at=at)
        return starting.Resumed(settlement.market_id)


def procedures() -> dict[str, proposals.Procedure]:
    """Return the procedures of an approved resumption and release, by the name of the act."""
    return {
        RELEASE: proposals.Procedure(
            lock=lambda proposal: canary.locked(_id(proposal)),
            hash_now=lambda settlement, proposal, at: _hash_of_release(settlement),
            carry_out=_release,
            words=_words_of_release,
            refuse_own=own_affairs.refuse_own_release,
        ),
        RESUME: proposals.Procedure(
            lock=_subject,
            hash_now=lambda subject, proposal, at: _hash(subject[1]),
            carry_out=lambda subject, proposal, by, at: _resume(*subject, by=by, at=at, reason=proposal.reason),
            words=_words,
            refuse_own=lambda subject, by: stakeholders.refuse_stakeholders(subject[0], by),
        ),
    }


def _resume(market: Market, settlement: Settlement, *, by: audit.Actor, at: datetime, reason: str) -> starting.Resumed:
    _write(market, settlement, None, RESUME, by=by, at=at, reason=reason)
    return starting.Resumed(market.pk)


def _subject(proposal: Proposal) -> tuple[Market, Settlement | None]:
    market = locks.locked_market(_id(proposal))
    return market, status.deciding_settlement(market.pk)


def _hash(settlement: Settlement | None) -> str:
    """Hash the suspension. It leaves the payouts that wait out. Empty: nothing is suspended."""
    if settlement is None or settlement.sending_suspended_at is None:
        return ""
    return hashlib.sha256(f"{settlement.pk} {settlement.sending_suspended_at.isoformat()}".encode()).hexdigest()


def _words(proposal: Proposal) -> list[str]:
    return [
        "From the approval on, the due payouts of this market are sent at the usual pace. None can be taken back.",
        "The amount is the sum of its payouts that waited when this was proposed.",
    ]


def _release(settlement: Settlement, proposal: Proposal, by: audit.Actor, at: datetime) -> starting.Resumed:
    canary.let_go(settlement, by=by, reason=proposal.reason, at=at)
    return starting.Resumed(settlement.market_id)


def _hash_of_release(settlement: Settlement) -> str:
    """Hash a release that waits for its first payouts. Empty: it is open already."""
    if settlement.release_open:
        return ""
    return hashlib.sha256(f"{settlement.pk} {settlement.canary_stopped_at}".encode()).hexdigest()


def _words_of_release(proposal: Proposal) -> list[str]:
    settlement = Settlement.objects.select_related("market").get(pk=_id(proposal))
    effects = [
        f"From the approval on, all payouts of {settlement.market} are sent at the usual pace. None can be taken back.",
        "The amount is the sum of its payouts that waited when this was proposed.",
    ]
    if settlement.canary_stop_reason:
        effects.append(f"The release was stopped because: {settlement.canary_stop_reason}")
    return effects


def _id(proposal: Proposal) -> int:
    return int(proposal.subject.rpartition(":")[2])


def _locked(market_id: int, by: audit.Actor) -> tuple[Market, Settlement]:
    market = locks.locked_market(market_id)
    stakeholders.refuse_stakeholders(market, by)
    settlement = status.deciding_settlement(market.pk)
    if settlement is None or settlement.state == Settlement.State.UNDOING:
        raise NothingToSend(f"Market {market_id} is {market.status}: it has no payouts that could leave.")
    return market, settlement


def _write(
    market: Market,
    settlement: Settlement,
    suspended_at: datetime | None,
    action: str,
    *,
    by: audit.Actor,
    at: datetime,
    reason: str,
) -> None:
    before, settlement.sending_suspended_at = settlement.sending_suspended_at, suspended_at
    settlement.save(update_fields=["sending_suspended_at"])
    audit.record(
        action=action,
        by=by,
        subject=f"market:{market.pk}",
        before={"settlement": settlement.number, "suspended_at": before},
        after={"settlement": settlement.number, "suspended_at": suspended_at},
        at=at,
        reason=reason,
    )
