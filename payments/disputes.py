"""Disputes: members dispute results and payouts, and operators decide on the disputes.

An operator answers a dispute, and upholds or rejects it. An upheld dispute promises a remedy. A payment to the wallet,
or a change of a payout back to PENDING, is made in the transaction that upholds the dispute. To resolve a market again,
an operator must separately undo its settlement. A remedy that takes time is DUE until the books show that it is done.
Then `close_remedied` tells the member.
Lock order: Market, Bet, Dispute, Transaction, Attempt, wallets, then the end of the audit trail.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import cast

from django.db import transaction
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet

from markets.models import Bet
from payments import own_affairs
from payments.models import Dispute, DisputeEvent, Settlement, Transaction
from payments.payouts.operations import actions
from payments.policy import Policy
from payments.settlement import status
from users import audit, notifications, second_person
from users.refusal import Refusal

State, Remedy, Kind = Dispute.State, Dispute.Remedy, DisputeEvent.Kind


class DisputeNotFound(Refusal):
    """The dispute, bet or transaction does not exist, or it belongs to another member."""


class NotDisputable(Refusal):
    """There is no result yet, the time for a dispute is over, or a dispute is already open."""


class WrongDisputeState(Refusal):
    """The dispute is in a state that does not allow this step."""


class NoSuchRemedy(Refusal):
    """The remedy does not fit the disputed bet or payout."""


@dataclass(frozen=True)
class Upheld:
    """An upheld dispute. `to_send` has the ids of the payouts that its remedy made pending again."""

    dispute: Dispute
    to_send: tuple[int, ...]


# --- the member ------------------------------------------------------------------------------------------------------


def open_about_bet(
    *, user_id: int, market_id: int, bet_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy
) -> Dispute:
    """Open a member's dispute of the result of their bet, within `dispute_window` of the settlement.

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
        if bet.taken_back_at is not None:
            raise NotDisputable("You took this stake back, and it is in your wallet. There is no result to dispute.")
        settlement = status.settlement_of(bet)
        if settlement is None or settlement.settled_at is None or bet.result == Bet.Result.PENDING:
            raise NotDisputable("This bet has no result yet.")
        _require_open_window(settlement.settled_at, Dispute.objects.filter(bet=bet), at=at, policy=policy)
        return _open(Dispute(user_id=user_id, bet=bet, settlement=settlement), text=text, by=by, at=at, policy=policy)


def open_about_transaction(
    *, user_id: int, transaction_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy
) -> Dispute:
    """Open a member's dispute of their payout (or refund, deposit, withdrawal).

    Members may do so within `dispute_window` of the settlement, or of the transaction if it has no settlement.
    Locks: Transaction.
    Raises: DisputeNotFound; NotDisputable.
    """
    with transaction.atomic(durable=True):
        disputed = (
            Transaction.objects.select_for_update(no_key=True, of=("self",))
            .select_related("settlement")
            .filter(user_id=user_id, public_id=transaction_id)
            .first()
        )
        if disputed is None:
            raise DisputeNotFound(f"You have no transaction {transaction_id}.")
        settlement = disputed.settlement
        since = disputed.created_at if settlement is None else settlement.settled_at
        if since is None:
            raise NotDisputable("The settlement of this payout is not finished yet.")
        _require_open_window(since, Dispute.objects.filter(transaction=disputed), at=at, policy=policy)
        dispute = Dispute(user_id=user_id, transaction=disputed, settlement=settlement)
        return _open(dispute, text=text, by=by, at=at, policy=policy)


def reply(*, user_id: int, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy) -> Dispute:
    """Reply to an operator's answer. The reply opens the dispute again with a new deadline.

    Locks: Dispute.
    Raises: DisputeNotFound; WrongDisputeState.
    """
    with transaction.atomic(durable=True):
        dispute = _locked(dispute_id, user_id=user_id)
        if dispute.state != State.ANSWERED:
            raise WrongDisputeState(f"This dispute is {dispute.state}, so there is no answer to reply to.")
        before = _snapshot(dispute)
        dispute.state, dispute.due_at = State.OPEN, at + policy.dispute_answer_within
        dispute.save(update_fields=["state", "due_at"])
        _add_event(dispute, Kind.REPLIED, by=by, text=text, at=at)
        _record("dispute.reply", dispute, before, by=by, at=at)
    return dispute


# --- the operator ----------------------------------------------------------------------------------------------------


def answer(*, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime) -> Dispute:
    """Answer an open dispute. The member may then reply.

    Locks: Dispute.
    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute.
    """
    with transaction.atomic(durable=True):
        dispute = _decidable(dispute_id, by, (State.OPEN,))
        before = _snapshot(dispute)
        dispute.state = State.ANSWERED
        dispute.save(update_fields=["state"])
        event = _add_event(dispute, Kind.ANSWERED, by=by, text=text, at=at)
        _tell(dispute, event, f"We answered your dispute of {_subject(dispute)}: {text}", at)
        _record("dispute.answer", dispute, before, by=by, at=at, reason=text)
    return dispute


def reject(*, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime) -> Dispute:
    """Reject an answered dispute. `text` is the reason.

    Locks: Dispute.
    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute.
    """
    with transaction.atomic(durable=True):
        dispute = _decidable(dispute_id, by, (State.ANSWERED,))
        before = _snapshot(dispute)
        dispute.state, dispute.closed_at, dispute.closed_by_id = State.REJECTED, at, by.user_id
        dispute.save(update_fields=["state", "closed_at", "closed_by"])
        event = _add_event(dispute, Kind.REJECTED, by=by, text=text, at=at)
        _tell(dispute, event, f"Your dispute of {_subject(dispute)} was rejected: {text}", at)
        _record("dispute.reject", dispute, before, by=by, at=at, reason=text)
    return dispute


def uphold(*, dispute_id: uuid.UUID, remedy: str, text: str, by: audit.Actor, at: datetime) -> Upheld:
    """Uphold a dispute. The remedies `pay_to_wallet` and `resend` act now, on the payouts that failed or are held.

    A payment to the wallet that takes two people is refused here. They make it on the payout's own page.
    Locks: Dispute, the Transactions by id, the actor's payments to wallets, the wallet.
    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute; own_affairs.OwnPayout; NoSuchRemedy;
    actions.PayoutNotRetryable. In each of these cases nothing was decided and no money moved.
    """
    with transaction.atomic(durable=True):
        dispute = _decidable(dispute_id, by, (State.OPEN, State.ANSWERED))
        before = _snapshot(dispute)
        settlement = dispute.settlement
        if remedy == Remedy.RE_RESOLVE and (settlement is None or settlement.rule in _FINAL):
            raise NoSuchRemedy("This bet or transaction has no settlement that can be undone. Choose another remedy.")
        payouts = _stuck_payouts(dispute) if remedy in (Remedy.PAY_TO_WALLET, Remedy.RESEND) else []
        if remedy == Remedy.PAY_TO_WALLET:
            _refuse_large_payment_alone(payouts, by=by, at=at)
        act = actions.pay_into_wallet if remedy == Remedy.PAY_TO_WALLET else actions.make_pending_again
        changed = [act(payout_id, by=by, at=at) for payout_id in payouts]
        dispute.state, dispute.closed_at, dispute.closed_by_id = State.UPHELD, at, by.user_id
        dispute.remedy = remedy
        if remedy == Remedy.PAY_TO_WALLET:
            dispute.remedy_state, dispute.remedied_at = Dispute.RemedyState.DONE, at
        elif remedy != Remedy.NONE:
            dispute.remedy_state = Dispute.RemedyState.DUE
        dispute.save(update_fields=["state", "closed_at", "closed_by", "remedy", "remedy_state", "remedied_at"])
        event = _add_event(dispute, Kind.UPHELD, by=by, text=text, at=at)
        _tell(dispute, event, f"Your dispute of {_subject(dispute)} was upheld: {text} {_PROMISES[remedy]}".strip(), at)
        for payout, payout_before in changed:
            action = "payout.to_wallet" if remedy == Remedy.PAY_TO_WALLET else "payout.retry"
            actions.record(action, payout, payout_before, by=by, at=at, reason=f"Dispute {dispute.public_id}")
        _record("dispute.uphold", dispute, before, by=by, at=at, reason=text)
    return Upheld(dispute=dispute, to_send=tuple(payouts) if remedy == Remedy.RESEND else ())


def ids_to_close(limit: int) -> list[int]:
    """Return the ids of disputes whose remedy is still DUE, although the books show that the remedy is done."""
    due = Dispute.objects.filter(remedy_state=Dispute.RemedyState.DUE)
    return list(_done(due).order_by("pk").values_list("pk", flat=True)[:limit])


def close_remedied(*, dispute_id: int, at: datetime) -> bool:
    """Record that the remedy of an upheld dispute is done, and tell the member. Idempotent.

    Locks: Dispute.
    """
    with transaction.atomic(durable=True):
        locked = Dispute.objects.select_for_update(no_key=True, of=("self",))
        due = locked.filter(pk=dispute_id, remedy_state=Dispute.RemedyState.DUE)
        dispute = _done(due).first()
        if dispute is None:
            return False
        before = _snapshot(dispute)
        dispute.remedy_state, dispute.remedied_at = Dispute.RemedyState.DONE, at
        dispute.save(update_fields=["remedy_state", "remedied_at"])
        text = _REMEDIED[dispute.remedy]
        event = _add_event(dispute, Kind.REMEDIED, by=audit.MACHINE, text=text, at=at)
        _tell(dispute, event, f"Your dispute of {_subject(dispute)}: {text}", at)
        _record("dispute.remedied", dispute, before, by=audit.MACHINE, at=at)
    return True


# --- reading ---------------------------------------------------------------------------------------------------------


def queue(state: str | None = None) -> QuerySet[Dispute]:
    """Return disputes with their history, the earliest deadline first."""
    disputes = _with_history().select_related("user", "bet__market", "transaction__settlement__market")
    return (disputes.filter(state=state) if state else disputes).order_by("due_at", "pk")


def of_member(user_id: int) -> QuerySet[Dispute]:
    """Return a member's disputes with their history, newest first."""
    return _with_history().filter(user_id=user_id).select_related("bet", "transaction").order_by("-pk")


def is_overdue(dispute: Dispute, *, at: datetime) -> bool:
    """Return True if an open dispute has passed the deadline for an answer."""
    return dispute.state == State.OPEN and dispute.due_at < at


def _with_history() -> QuerySet[Dispute]:
    return Dispute.objects.prefetch_related(Prefetch("events", DisputeEvent.objects.order_by("pk")))


# --- the parts -------------------------------------------------------------------------------------------------------

# Settlements by these rules are never undone.
_FINAL = (Settlement.Rule.VOID, Settlement.Rule.SCRATCH)
_PROMISES: dict[str, str] = {
    Remedy.RE_RESOLVE: "The market will be resolved again.",
    Remedy.PAY_TO_WALLET: "The money is in your wallet.",
    Remedy.RESEND: "The money is being sent again.",
    Remedy.NONE: "",
}
_REMEDIED: dict[str, str] = {
    Remedy.RE_RESOLVE: "the market was settled again.",
    Remedy.RESEND: "the money has been paid.",
}


def _require_open_window(since: datetime, disputes: QuerySet[Dispute], *, at: datetime, policy: Policy) -> None:
    if at > since + policy.dispute_window:
        raise NotDisputable(
            f"A dispute must be opened within {policy.dispute_window.days} days of the settlement or the transaction."
            " This time is over."
        )
    if disputes.filter(state__in=Dispute.LIVE).exists():
        raise NotDisputable("You already have an open dispute of this bet or transaction. Wait for our decision.")


def _open(dispute: Dispute, *, text: str, by: audit.Actor, at: datetime, policy: Policy) -> Dispute:
    dispute.opened_at, dispute.due_at = at, at + policy.dispute_answer_within
    dispute.save()
    event = _add_event(dispute, Kind.OPENED, by=by, text=text, at=at)
    until = f"{policy.dispute_answer_within.total_seconds() / 3600:.0f} hours"
    _tell(dispute, event, f"We have your dispute of {_subject(dispute)}. We will answer within {until}.", at)
    _record("dispute.open", dispute, {}, by=by, at=at)
    return dispute


def _locked(dispute_id: uuid.UUID, *, user_id: int | None = None) -> Dispute:
    rows = Dispute.objects.select_for_update(no_key=True, of=("self",)).filter(public_id=dispute_id)
    dispute = (rows if user_id is None else rows.filter(user_id=user_id)).first()
    if dispute is None:
        raise DisputeNotFound(f"There is no dispute {dispute_id}.")
    return dispute


def _decidable(dispute_id: uuid.UUID, by: audit.Actor, states: tuple[Dispute.State, ...]) -> Dispute:
    dispute = _locked(dispute_id)
    own_affairs.refuse_own_dispute(dispute, by)
    if dispute.state not in states:
        raise WrongDisputeState(
            f"The dispute is {dispute.state}. This step is possible only if it is {' or '.join(states)}."
        )
    return dispute


def _stuck_payouts(dispute: Dispute) -> list[int]:
    """Return the id of the disputed transaction, or the ids of the bet's payouts that failed or are held.

    Locks: all these payouts of the bet, by id. They must be locked before the first payment to the wallet
    locks the wallet.
    """
    if dispute.transaction_id is not None:
        return [dispute.transaction_id]
    payouts = Transaction.objects.filter(settlement=dispute.settlement_id, user=dispute.user_id, type="PAYOUT")
    stuck = payouts.filter(status__in=[Transaction.Status.FAILED, Transaction.Status.HELD]).order_by("pk")
    ids = list(stuck.select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True))
    if not ids:
        raise NoSuchRemedy("No payout of this bet failed or is held. Choose another remedy.")
    return ids


def _refuse_large_payment_alone(payout_ids: list[int], *, by: audit.Actor, at: datetime) -> None:
    """Refuse a payment to the wallet that takes a second person, and count a smaller one among the person's own.

    Without this a dispute would be a way around the threshold of payout.to_wallet.
    Locks: the Transactions by id, the actor's payments to wallets.
    Raises: NoSuchRemedy.
    """
    payouts = Transaction.objects.filter(pk__in=payout_ids).order_by("pk").select_for_update(no_key=True, of=("self",))
    amount = sum(payouts.values_list("amount", flat=True), Decimal("0.00"))
    if second_person.needed(actions.TO_WALLET, amount=amount, by=by, at=at):
        raise NoSuchRemedy(
            f"A payment of {amount:.2f} shillings to the wallet takes two people. Nothing was decided; no money moved."
            " Propose it on the payout's page. When it is approved, uphold the dispute with the remedy none."
        )


def _done(due: QuerySet[Dispute]) -> QuerySet[Dispute]:
    """Filter `due` to the disputes whose remedy is done according to the books."""
    settled_again = Settlement.objects.filter(
        market=OuterRef("settlement__market"), number__gt=OuterRef("settlement__number"), state="SETTLED"
    ).exclude(rule=Settlement.Rule.SCRATCH)
    paid = Transaction.objects.filter(pk=OuterRef("transaction"), status=Transaction.Status.COMPLETED)
    unpaid = Transaction.objects.filter(
        settlement=OuterRef("settlement"), user=OuterRef("user"), type=Transaction.Type.PAYOUT
    ).exclude(status=Transaction.Status.COMPLETED)
    return due.filter(
        Q(Exists(settled_again), remedy=Remedy.RE_RESOLVE)
        | Q(Exists(paid), remedy=Remedy.RESEND, transaction__isnull=False)
        | Q(~Exists(unpaid), remedy=Remedy.RESEND, transaction__isnull=True)
    )


def _subject(dispute: Dispute) -> str:
    if dispute.transaction is not None:
        return f"the {dispute.transaction.type.lower()} of KES {dispute.transaction.amount:.2f}"
    bet = cast(Bet, dispute.bet)
    return f"the bet of KES {bet.amount:.2f} on {bet.outcome}"


def _add_event(dispute: Dispute, kind: DisputeEvent.Kind, *, by: audit.Actor, text: str, at: datetime) -> DisputeEvent:
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


def _snapshot(dispute: Dispute) -> dict[str, str]:
    return {"state": dispute.state, "remedy": dispute.remedy, "remedy_state": dispute.remedy_state}


def _record(
    action: str, dispute: Dispute, before: dict[str, str], *, by: audit.Actor, at: datetime, reason: str = ""
) -> None:
    audit.record(
        action=action,
        by=by,
        subject=f"dispute:{dispute.public_id}",
        before=before,
        after=_snapshot(dispute),
        at=at,
        reason=reason,
    )
