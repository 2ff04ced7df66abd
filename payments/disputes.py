"""Disputes: a member says that a result or a payout is wrong, an operator answers, and upholds or rejects it.

Upholding promises a remedy. A payout goes to the wallet, or is put back to be sent, in the same transaction; a market
is resolved anew by undoing its settlement, which is a decision of its own. What takes time is DUE until the books show
that it was done, and `close_remedied` then says so to the member.
Lock order: Market, Bet, Dispute, Transaction, Attempt, wallets, then the end of the audit trail.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from django.db import transaction
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet

from markets.models import Bet
from payments.models import Dispute, DisputeEvent, Settlement, Transaction
from payments.payouts.operations import actions
from payments.policy import Policy
from payments.settlement import status
from users import audit, notifications
from users.refusal import Refusal

State, Remedy, Kind = Dispute.State, Dispute.Remedy, DisputeEvent.Kind


class DisputeNotFound(Refusal):
    """There is no such dispute, bet or transaction, or it is another member's."""


class NotDisputable(Refusal):
    """There is nothing to dispute yet, or not any more, or it is being disputed already."""


class DisputeMoved(Refusal):
    """The dispute is not in a state in which this can be done."""


class OwnDispute(Refusal):
    """An operator does not decide a dispute of their own."""


class NoSuchRemedy(Refusal):
    """What is disputed has nothing that this remedy could be applied to."""


@dataclass(frozen=True)
class Upheld:
    """A dispute that was upheld; `to_send` are the payouts that its remedy put back to be sent."""

    dispute: Dispute
    to_send: tuple[int, ...]


# --- the member ------------------------------------------------------------------------------------------------------


def open_about_bet(
    *, user_id: int, market_id: int, bet_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy
) -> Dispute:
    """Dispute the result of one's own bet, within `dispute_window` of its market's settlement.

    Locks: Bet.
    Raises: DisputeNotFound; NotDisputable.
    """
    with transaction.atomic(durable=True):
        bet = (
            Bet.objects.select_for_update(no_key=True, of=("self",))
            .filter(user_id=user_id, market_id=market_id, public_id=bet_id)
            .first()
        )
        if bet is None:
            raise DisputeNotFound(f"You have no bet {bet_id} in market {market_id}.")
        run = status.run_of(bet)
        if run is None or run.settled_at is None or bet.result == Bet.Result.PENDING:
            raise NotDisputable("This bet has no result yet.")
        _require_open_window(run.settled_at, Dispute.objects.filter(bet=bet), at=at, policy=policy)
        return _open(Dispute(user_id=user_id, bet=bet, settlement=run), text=text, by=by, at=at, policy=policy)


def open_about_transaction(
    *, user_id: int, transaction_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy
) -> Dispute:
    """Dispute one's own payout (or refund, deposit, withdrawal), within `dispute_window` of its settlement or making.

    Locks: Transaction.
    Raises: DisputeNotFound; NotDisputable.
    """
    with transaction.atomic(durable=True):
        made = (
            Transaction.objects.select_for_update(no_key=True, of=("self",))
            .select_related("settlement")
            .filter(user_id=user_id, public_id=transaction_id)
            .first()
        )
        if made is None:
            raise DisputeNotFound(f"You have no transaction {transaction_id}.")
        run = made.settlement
        since = made.created_at if run is None else run.settled_at
        if since is None:
            raise NotDisputable("This payout's settlement is still under way.")
        _require_open_window(since, Dispute.objects.filter(transaction=made), at=at, policy=policy)
        return _open(Dispute(user_id=user_id, transaction=made, settlement=run), text=text, by=by, at=at, policy=policy)


def reply(*, user_id: int, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy) -> Dispute:
    """Say something against an operator's answer: the dispute is open again, with a new deadline.

    Locks: Dispute.
    Raises: DisputeNotFound; DisputeMoved.
    """
    with transaction.atomic(durable=True):
        dispute = _locked(dispute_id, user_id=user_id)
        if dispute.state != State.ANSWERED:
            raise DisputeMoved(f"This dispute is {dispute.state}: there is no answer to reply to.")
        was = _as_it_is(dispute)
        dispute.state, dispute.due_at = State.OPEN, at + policy.dispute_answer
        dispute.save(update_fields=["state", "due_at"])
        _happened(dispute, Kind.REPLIED, by=by, text=text, at=at)
        _record("dispute.reply", dispute, was, by=by, at=at)
    return dispute


# --- the operator ----------------------------------------------------------------------------------------------------


def answer(*, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime) -> Dispute:
    """Answer an open dispute; the member may reply.

    Locks: Dispute.
    Raises: DisputeNotFound; DisputeMoved; OwnDispute.
    """
    with transaction.atomic(durable=True):
        dispute = _decidable(dispute_id, by, (State.OPEN,))
        was = _as_it_is(dispute)
        dispute.state = State.ANSWERED
        dispute.save(update_fields=["state"])
        event = _happened(dispute, Kind.ANSWERED, by=by, text=text, at=at)
        _tell(dispute, event, f"We answered your dispute of {_subject(dispute)}: {text}", at)
        _record("dispute.answer", dispute, was, by=by, at=at, reason=text)
    return dispute


def reject(*, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime) -> Dispute:
    """Reject a dispute that was answered; `text` is the reason.

    Locks: Dispute.
    Raises: DisputeNotFound; DisputeMoved; OwnDispute.
    """
    with transaction.atomic(durable=True):
        dispute = _decidable(dispute_id, by, (State.ANSWERED,))
        was = _as_it_is(dispute)
        dispute.state, dispute.closed_at, dispute.closed_by_id = State.REJECTED, at, by.user_id
        dispute.save(update_fields=["state", "closed_at", "closed_by"])
        event = _happened(dispute, Kind.REJECTED, by=by, text=text, at=at)
        _tell(dispute, event, f"Your dispute of {_subject(dispute)} was rejected: {text}", at)
        _record("dispute.reject", dispute, was, by=by, at=at, reason=text)
    return dispute


def uphold(*, dispute_id: uuid.UUID, remedy: str, text: str, by: audit.Actor, at: datetime) -> Upheld:
    """Uphold a dispute. `pay_to_wallet` and `resend` are done here, to the member's payouts that can take them.

    Locks: Dispute, the Transactions by id, the wallet.
    Raises: DisputeNotFound; DisputeMoved; OwnDispute; NoSuchRemedy; interventions.PayoutNotRetryable; then nothing was
    decided or moved.
    """
    with transaction.atomic(durable=True):
        dispute = _decidable(dispute_id, by, (State.OPEN, State.ANSWERED))
        was = _as_it_is(dispute)
        run = dispute.settlement
        if remedy == Remedy.RE_RESOLVE and (run is None or run.rule in _FINAL):
            raise NoSuchRemedy("It was decided by no resolution that could be undone.")
        payouts = _stuck_payouts(dispute) if remedy in (Remedy.PAY_TO_WALLET, Remedy.RESEND) else []
        act = actions.pay_into_wallet if remedy == Remedy.PAY_TO_WALLET else actions.put_back
        done = [act(payout_id, at=at) for payout_id in payouts]
        dispute.state, dispute.closed_at, dispute.closed_by_id = State.UPHELD, at, by.user_id
        dispute.remedy = remedy
        if remedy == Remedy.PAY_TO_WALLET:
            dispute.remedy_state, dispute.remedied_at = Dispute.RemedyState.DONE, at
        elif remedy != Remedy.NONE:
            dispute.remedy_state = Dispute.RemedyState.DUE
        dispute.save(update_fields=["state", "closed_at", "closed_by", "remedy", "remedy_state", "remedied_at"])
        event = _happened(dispute, Kind.UPHELD, by=by, text=text, at=at)
        _tell(dispute, event, f"Your dispute of {_subject(dispute)} was upheld: {text} {_PROMISES[remedy]}".strip(), at)
        for payout, payout_was in done:
            action = "payout.to_wallet" if remedy == Remedy.PAY_TO_WALLET else "payout.retry"
            actions.record(action, payout, payout_was, by=by, at=at, reason=f"Dispute {dispute.public_id}")
        _record("dispute.uphold", dispute, was, by=by, at=at, reason=text)
    return Upheld(dispute=dispute, to_send=tuple(payouts) if remedy == Remedy.RESEND else ())


def remedied(limit: int) -> list[int]:
    """Ids of the disputes whose remedy is due and, by the books, done."""
    due = Dispute.objects.filter(remedy_state=Dispute.RemedyState.DUE)
    return list(_done(due).order_by("pk").values_list("pk", flat=True)[:limit])


def close_remedied(*, dispute_id: int, at: datetime) -> bool:
    """Write down that an upheld dispute's remedy was done, and tell the member. Idempotent.

    Locks: Dispute.
    """
    with transaction.atomic(durable=True):
        locked = Dispute.objects.select_for_update(no_key=True, of=("self",))
        due = locked.filter(pk=dispute_id, remedy_state=Dispute.RemedyState.DUE)
        dispute = _done(due).first()
        if dispute is None:
            return False
        was = _as_it_is(dispute)
        dispute.remedy_state, dispute.remedied_at = Dispute.RemedyState.DONE, at
        dispute.save(update_fields=["remedy_state", "remedied_at"])
        text = _KEPT[dispute.remedy]
        event = _happened(dispute, Kind.REMEDIED, by=audit.MACHINE, text=text, at=at)
        _tell(dispute, event, f"Your dispute of {_subject(dispute)}: {text}", at)
        _record("dispute.remedied", dispute, was, by=audit.MACHINE, at=at)
    return True


# --- reading ---------------------------------------------------------------------------------------------------------


def queue(state: str | None = None) -> QuerySet[Dispute]:
    """Disputes with their history, those first whose answer is due first."""
    disputes = _with_history().select_related("user", "bet__market", "transaction__settlement__market")
    return (disputes.filter(state=state) if state else disputes).order_by("due_at", "pk")


def of(user_id: int) -> QuerySet[Dispute]:
    """A member's disputes with their history, newest first."""
    return _with_history().filter(user_id=user_id).select_related("bet", "transaction").order_by("-pk")


def is_overdue(dispute: Dispute, *, at: datetime) -> bool:
    return dispute.state == State.OPEN and dispute.due_at < at


def _with_history() -> QuerySet[Dispute]:
    return Dispute.objects.prefetch_related(Prefetch("events", DisputeEvent.objects.order_by("pk")))


# --- the parts -------------------------------------------------------------------------------------------------------

# A void is never undone, nor is the scratch of an outcome.
_FINAL = (Settlement.Rule.VOID, Settlement.Rule.SCRATCH)
_PROMISES: dict[str, str] = {
    Remedy.RE_RESOLVE: "The market will be resolved anew.",
    Remedy.PAY_TO_WALLET: "The money is in your wallet.",
    Remedy.RESEND: "The money is being sent again.",
    Remedy.NONE: "",
}
_KEPT: dict[str, str] = {
    Remedy.RE_RESOLVE: "the market was settled anew.",
    Remedy.RESEND: "the money has been paid.",
}


def _require_open_window(since: datetime, disputes: QuerySet[Dispute], *, at: datetime, policy: Policy) -> None:
    if at > since + policy.dispute_window:
        raise NotDisputable(f"It could be disputed for {policy.dispute_window.days} days after the settlement.")
    if disputes.filter(state__in=Dispute.LIVE).exists():
        raise NotDisputable("It is being disputed already.")


def _open(dispute: Dispute, *, text: str, by: audit.Actor, at: datetime, policy: Policy) -> Dispute:
    dispute.opened_at, dispute.due_at = at, at + policy.dispute_answer
    dispute.save()
    event = _happened(dispute, Kind.OPENED, by=by, text=text, at=at)
    until = f"{policy.dispute_answer.total_seconds() / 3600:.0f} hours"
    _tell(dispute, event, f"We have your dispute of {_subject(dispute)} and answer within {until}.", at)
    _record("dispute.open", dispute, {}, by=by, at=at)
    return dispute


def _locked(dispute_id: uuid.UUID, *, user_id: int | None = None) -> Dispute:
    found = Dispute.objects.select_for_update(no_key=True, of=("self",)).filter(public_id=dispute_id)
    dispute = (found if user_id is None else found.filter(user_id=user_id)).first()
    if dispute is None:
        raise DisputeNotFound(f"There is no dispute {dispute_id}.")
    return dispute


def _decidable(dispute_id: uuid.UUID, by: audit.Actor, states: tuple[Dispute.State, ...]) -> Dispute:
    dispute = _locked(dispute_id)
    if dispute.user_id == by.user_id:
        raise OwnDispute("An operator does not decide a dispute of their own.")
    if dispute.state not in states:
        raise DisputeMoved(f"The dispute is {dispute.state}; this is done to one that is {' or '.join(states)}.")
    return dispute


def _stuck_payouts(dispute: Dispute) -> list[int]:
    """The payouts by M-Pesa that failed or are held: the one that is disputed, or those for the bet that is.

    Locks: all of them, by id, before the first of them moves and locks the wallet.
    """
    if dispute.transaction_id is not None:
        return [dispute.transaction_id]
    mine = Transaction.objects.filter(settlement=dispute.settlement_id, user=dispute.user_id, type="PAYOUT")
    stuck = mine.filter(status__in=[Transaction.Status.FAILED, Transaction.Status.HELD]).order_by("pk")
    ids = list(stuck.select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True))
    if not ids:
        raise NoSuchRemedy("No payout of this bet has failed or is held.")
    return ids


def _done(due: QuerySet[Dispute]) -> QuerySet[Dispute]:
    """Those of the disputes whose remedy the books show as done."""
    settled_anew = Settlement.objects.filter(
        market=OuterRef("settlement__market"), number__gt=OuterRef("settlement__number"), state="SETTLED"
    ).exclude(rule=Settlement.Rule.SCRATCH)
    paid = Transaction.objects.filter(pk=OuterRef("transaction"), status=Transaction.Status.COMPLETED)
    unpaid = Transaction.objects.filter(
        settlement=OuterRef("settlement"), user=OuterRef("user"), type=Transaction.Type.PAYOUT
    ).exclude(status=Transaction.Status.COMPLETED)
    return due.filter(
        Q(Exists(settled_anew), remedy=Remedy.RE_RESOLVE)
        | Q(Exists(paid), remedy=Remedy.RESEND, transaction__isnull=False)
        | Q(~Exists(unpaid), remedy=Remedy.RESEND, transaction__isnull=True)
    )


def _subject(dispute: Dispute) -> str:
    if dispute.transaction is not None:
        return f"the {dispute.transaction.type.lower()} of KES {dispute.transaction.amount:.2f}"
    bet = cast(Bet, dispute.bet)
    return f"the bet of KES {bet.amount:.2f} on {bet.outcome}"


def _happened(dispute: Dispute, kind: DisputeEvent.Kind, *, by: audit.Actor, text: str, at: datetime) -> DisputeEvent:
    return DisputeEvent.objects.create(dispute=dispute, kind=kind, by_id=by.user_id, text=text, at=at)


def _tell(dispute: Dispute, event: DisputeEvent, text: str, at: datetime) -> None:
    notifications.tell(
        user_id=dispute.user_id,
        kind="dispute",
        subject=f"dispute:{dispute.public_id}",
        event=f"{event.kind}:{event.pk}",
        text=text,
        at=at,
    )


def _as_it_is(dispute: Dispute) -> dict[str, str]:
    return {"state": dispute.state, "remedy": dispute.remedy, "remedy_state": dispute.remedy_state}


def _record(
    action: str, dispute: Dispute, was: dict[str, str], *, by: audit.Actor, at: datetime, reason: str = ""
) -> None:
    audit.record(
        action=action,
        by=by,
        subject=f"dispute:{dispute.public_id}",
        before=was,
        after=_as_it_is(dispute),
        at=at,
        reason=reason,
    )
