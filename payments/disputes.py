"""Disputes: members dispute results and payouts, and operators decide on the disputes.

An operator answers a dispute, and upholds or rejects it. An upheld dispute promises a remedy. A payment to the wallet,
or a change of a payout back to PENDING, is made in the transaction that upholds the dispute. To resolve a market again,
an operator must separately undo its settlement. Above a threshold a payment to the wallet is a proposal, which a second
person approves. A remedy that takes time is DUE until the books show that it is done.
Then `close_remedied` tells the member.
Lock order: Market, Bet, Dispute, Proposal, Transactions by id, Attempt, the advisory lock of a person's acts, wallets,
then the end of the audit trail.
"""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet

from markets.models import Bet
from payments import dispute_holds, dispute_steps, own_affairs
from payments.ledger import journal
from payments.models import Dispute, DisputeEvent, Settlement, Transaction
from payments.payouts.operations import actions
from payments.policy import Policy
from payments.settlement import status
from users import audit, proposals, second_person
from users.models import Proposal

UPHOLD = "dispute.uphold"
State, Remedy, Kind = Dispute.State, Dispute.Remedy, DisputeEvent.Kind


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

    If the settlement's payouts have not left yet, the member's own wait for the decision.
    Locks: Bet, the member's Transactions by id.
    Raises: DisputeNotFound; NotDisputable.
    """
    with transaction.atomic(durable=True):
        bet = (
            Bet.objects.select_for_update(no_key=True, of=("self",))
            .filter(user_id=user_id, market_id=market_id, public_id=bet_id)
            .first()
        )
        if bet is None:
            raise dispute_steps.DisputeNotFound(f"You have no bet {bet_id} in market {market_id}.")
        if bet.taken_back_at is not None:
            raise dispute_steps.NotDisputable(
                "You took this stake back, and it is in your wallet. There is no result to dispute."
            )
        settlement = status.settlement_of(bet)
        if settlement is None or settlement.settled_at is None or bet.result == Bet.Result.PENDING:
            raise dispute_steps.NotDisputable("This bet has no result yet.")
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
            raise dispute_steps.DisputeNotFound(f"You have no transaction {transaction_id}.")
        settlement = disputed.settlement
        since = disputed.created_at if settlement is None else settlement.settled_at
        if since is None:
            raise dispute_steps.NotDisputable("The settlement of this payout is not finished yet.")
        _require_open_window(since, Dispute.objects.filter(transaction=disputed), at=at, policy=policy)
        dispute = Dispute(user_id=user_id, transaction=disputed, settlement=settlement)
        return _open(dispute, text=text, by=by, at=at, policy=policy)


def reply(*, user_id: int, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime, policy: Policy) -> Dispute:
    """Reply to an operator's answer. The reply opens the dispute again with a new deadline.

    Locks: Dispute.
    Raises: DisputeNotFound; WrongDisputeState.
    """
    with transaction.atomic(durable=True):
        dispute = dispute_steps.locked(dispute_id, user_id=user_id)
        if dispute.state != State.ANSWERED:
            raise dispute_steps.WrongDisputeState(
                f"This dispute is {dispute.state}, so there is no answer to reply to."
            )
        before = dispute_steps.snapshot(dispute)
        dispute.state, dispute.due_at = State.OPEN, at + policy.dispute_answer_within
        dispute.save(update_fields=["state", "due_at"])
        dispute_steps.add_event(dispute, Kind.REPLIED, by=by, text=text, at=at)
        dispute_steps.record("dispute.reply", dispute, before, by=by, at=at)
    return dispute


# --- the operator ----------------------------------------------------------------------------------------------------


def answer(*, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime) -> Dispute:
    """Answer an open dispute. The member may then reply.

    Locks: Dispute.
    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute.
    """
    with transaction.atomic(durable=True):
        dispute = dispute_steps.decidable(dispute_id, by, (State.OPEN,))
        before = dispute_steps.snapshot(dispute)
        dispute.state = State.ANSWERED
        dispute.save(update_fields=["state"])
        event = dispute_steps.add_event(dispute, Kind.ANSWERED, by=by, text=text, at=at)
        dispute_steps.tell(dispute, event, f"We answered your dispute of {dispute_steps.subject(dispute)}: {text}", at)
        dispute_steps.record("dispute.answer", dispute, before, by=by, at=at, reason=text)
    return dispute


def reject(*, dispute_id: uuid.UUID, text: str, by: audit.Actor, at: datetime) -> Dispute:
    """Reject an answered dispute. `text` is the reason. Payouts that the dispute keeps back may leave.

    Locks: Dispute, the Transactions by id.
    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute.
    """
    with transaction.atomic(durable=True):
        dispute = dispute_steps.decidable(dispute_id, by, (State.ANSWERED,))
        before = dispute_steps.snapshot(dispute)
        let_go = dispute_holds.let_go(dispute, at=at)
        dispute.state, dispute.closed_at, dispute.closed_by_id = State.REJECTED, at, by.user_id
        dispute.save(update_fields=["state", "closed_at", "closed_by"])
        event = dispute_steps.add_event(dispute, Kind.REJECTED, by=by, text=text, at=at)
        dispute_steps.tell(dispute, event, f"Your dispute of {dispute_steps.subject(dispute)} was rejected: {text}", at)
        dispute_steps.record("dispute.reject", dispute, before, by=by, at=at, reason=text)
        dispute_holds.record("payout.release", let_go, Transaction.Status.HELD, dispute, at=at)
    return dispute


def uphold(
    *, dispute_id: uuid.UUID, remedy: str, text: str, by: audit.Actor, at: datetime
) -> Upheld | proposals.Proposed:
    """Uphold a dispute. The remedies `pay_to_wallet` and `resend` act now, on the payouts that failed or are held.

    A payment to the wallet needs a second person by the same threshold and sums as `actions.redirect_to_wallet`. Then
    the decision is a proposal, and the dispute waits for it.
    Locks: Dispute, the Transactions by id, the actor's acts of this kind, the wallet.
    Raises: DisputeNotFound; WrongDisputeState; own_affairs.OwnDispute; own_affairs.OwnPayout; NoSuchRemedy;
    actions.PayoutNotRetryable; proposals.ProposalWaits. In each of these cases nothing was decided and no money moved.
    """
    with transaction.atomic(durable=True):
        dispute = dispute_steps.decidable(dispute_id, by, (State.OPEN, State.ANSWERED))
        if remedy == Remedy.PAY_TO_WALLET:
            payouts = [actions.owed_to_wallet(payout_id, by=by, at=at) for payout_id in _stuck_payouts(dispute)]
            amount = sum((payout.amount for payout in payouts), journal.ZERO)
            if second_person.needed(UPHOLD, amount=amount, by=by, at=at):
                draft = proposals.Draft(
                    UPHOLD,
                    dispute_steps.name(dispute),
                    _hash(dispute, payouts),
                    text[:300],
                    amount,
                    payload={"remedy": remedy},
                    private={"text": text},
                )
                return proposals.make(draft, by=by, at=at)
        return _uphold(dispute, remedy, text, people=[by], at=at)


def procedures() -> dict[str, proposals.Procedure]:
    """Return the procedure of an approved remedy, by the name of the act."""
    return {
        UPHOLD: proposals.Procedure(
            lock=lambda proposal: dispute_steps.locked(uuid.UUID(proposal.subject.partition(":")[2])),
            hash_now=lambda dispute, proposal, at: _hash_now(dispute),
            carry_out=_uphold_approved,
            words=lambda proposal: [
                "Uphold the member's dispute, and pay its failed or held payouts to the wallet at once.",
                "The member may bet with the money or withdraw it. Nothing is sent over M-Pesa.",
                f"The member is told: {proposal.payload['text']}",
            ],
            refuse_own=own_affairs.refuse_own_dispute,
        )
    }


def _uphold_approved(dispute: Dispute, proposal: Proposal, by: audit.Actor, at: datetime) -> Upheld:
    proposer = audit.Actor(user_id=proposal.proposed_by_id or proposal.first_approved_by_id, source="proposal")
    return _uphold(dispute, proposal.payload["remedy"], proposal.payload["text"], people=[proposer, by], at=at)


def _uphold(dispute: Dispute, remedy: str, text: str, *, people: Sequence[audit.Actor], at: datetime) -> Upheld:
    """Uphold a locked dispute. `people` are the one or two who decided. The first of them writes to the member."""
    before = dispute_steps.snapshot(dispute)
    settlement = dispute.settlement
    if remedy == Remedy.RE_RESOLVE and (settlement is None or settlement.rule in _FINAL):
        raise dispute_steps.NoSuchRemedy(
            "This bet or transaction has no settlement that can be undone. Choose another remedy."
        )
    payouts = _stuck_payouts(dispute) if remedy in (Remedy.PAY_TO_WALLET, Remedy.RESEND) else []
    act = actions.pay_into_wallet if remedy == Remedy.PAY_TO_WALLET else actions.make_pending_again
    changed = [act(payout_id, by=people[-1], at=at) for payout_id in payouts]
    let_go = dispute_holds.let_go(dispute, at=at) if remedy == Remedy.NONE else []
    dispute.state, dispute.closed_at, dispute.closed_by_id = State.UPHELD, at, people[-1].user_id
    dispute.remedy = remedy
    if remedy == Remedy.PAY_TO_WALLET:
        dispute.remedy_state, dispute.remedied_at = Dispute.RemedyState.DONE, at
    elif remedy != Remedy.NONE:
        dispute.remedy_state = Dispute.RemedyState.DUE
    dispute.save(update_fields=["state", "closed_at", "closed_by", "remedy", "remedy_state", "remedied_at"])
    event = dispute_steps.add_event(dispute, Kind.UPHELD, by=people[0], text=text, at=at)
    told = f"Your dispute of {dispute_steps.subject(dispute)} was upheld: {text} {_PROMISES[remedy]}".strip()
    dispute_steps.tell(dispute, event, told, at)
    for person in people:
        for payout, payout_before in changed:
            action = "payout.to_wallet" if remedy == Remedy.PAY_TO_WALLET else "payout.retry"
            actions.record(action, payout, payout_before, by=person, at=at, reason=f"Dispute {dispute.public_id}")
        dispute_steps.record("dispute.uphold", dispute, before, by=person, at=at, reason=text)
    dispute_holds.record("payout.release", let_go, Transaction.Status.HELD, dispute, at=at)
    return Upheld(dispute=dispute, to_send=tuple(payouts) if remedy == Remedy.RESEND else ())


def _hash(dispute: Dispute, payouts: Iterable[Transaction]) -> str:
    """Hash the dispute and the payouts that go to the wallet. They are checked again when they are paid."""
    amounts = [(payout.pk, f"{payout.amount:.2f}") for payout in payouts]
    return hashlib.sha256(f"{dispute.public_id} {amounts} wallet".encode()).hexdigest()


def _hash_now(dispute: Dispute) -> str:
    if dispute.state not in Dispute.LIVE:
        return ""
    try:
        ids = _stuck_payouts(dispute)
    except dispute_steps.NoSuchRemedy:
        return ""
    return _hash(dispute, Transaction.objects.filter(pk__in=ids).order_by("pk"))


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
        before = dispute_steps.snapshot(dispute)
        dispute.remedy_state, dispute.remedied_at = Dispute.RemedyState.DONE, at
        dispute.save(update_fields=["remedy_state", "remedied_at"])
        text = _REMEDIED[dispute.remedy]
        event = dispute_steps.add_event(dispute, Kind.REMEDIED, by=audit.MACHINE, text=text, at=at)
        dispute_steps.tell(dispute, event, f"Your dispute of {dispute_steps.subject(dispute)}: {text}", at)
        dispute_steps.record("dispute.remedied", dispute, before, by=audit.MACHINE, at=at)
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
        raise dispute_steps.NotDisputable(
            f"A dispute must be opened within {policy.dispute_window.days} days of the settlement or the transaction."
            " This time is over."
        )
    if disputes.filter(state__in=Dispute.LIVE).exists():
        raise dispute_steps.NotDisputable(
            "You already have an open dispute of this bet or transaction. Wait for our decision."
        )


def _open(dispute: Dispute, *, text: str, by: audit.Actor, at: datetime, policy: Policy) -> Dispute:
    dispute.opened_at, dispute.due_at = at, at + policy.dispute_answer_within
    dispute.save()
    kept = dispute_holds.keep_back(dispute, at=at)
    event = dispute_steps.add_event(dispute, Kind.OPENED, by=by, text=text, at=at)
    until = f"{policy.dispute_answer_within.total_seconds() / 3600:.0f} hours"
    waits = " Your payout waits for our decision." if kept else ""
    received = f"We have your dispute of {dispute_steps.subject(dispute)}. We will answer within {until}.{waits}"
    dispute_steps.tell(dispute, event, received, at)
    dispute_steps.record("dispute.open", dispute, {}, by=by, at=at)
    dispute_holds.record("payout.hold", kept, Transaction.Status.PENDING, dispute, at=at)
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
        raise dispute_steps.NoSuchRemedy("No payout of this bet failed or is held. Choose another remedy.")
    return ids


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
