"""Proposals: acts of staff that wait for another person, whatever the act.

A room gives each of its acts a `Procedure`, which locks the act's subject, hashes its figures, and carries the act out.
Edges pass the procedures of all acts (payments.wiring.acts). A proposal ends in exactly one way: approved, rejected,
withdrawn, stale or expired.
Lock order: the subject, then the Proposal, then the locks of the procedure, then the end of the audit trail.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import IntegrityError, transaction

from users import audit, authority
from users.decision_models import Proposal
from users.models import CustomUser
from users.refusal import Refusal

State = Proposal.State
# The time after which a proposal expires, if nobody has decided it.
LIFE = timedelta(hours=48)


class PersonNeeded(Refusal):
    """Only a member of staff may make or approve this proposal."""


class ProposalNotFound(Refusal):
    """There is no proposal with that id."""


class ProposalDecided(Refusal):
    """The proposal is no longer open."""


class ProposalWaits(Refusal):
    """A proposal about the same subject already waits for approval."""


class ProposerCannotApprove(Refusal):
    """The person who made a proposal may not approve it, and nobody approves one twice."""


class NotYourProposal(Refusal):
    """The person's roles do not allow them to approve or reject this proposal."""


class PreviewMoved(Refusal):
    """The figures differ from those that the person saw. Nothing was decided."""


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Procedure:
    """The parts of one act that its room owns. Each function runs in the transaction of this module.

    `lock` locks the proposal's subject and returns it. `hash_now` hashes the figures of the act as they are now; it is
    empty if the act is no longer possible. `carry_out` does the act for the approver, and records it last in the audit
    trail. `let_go` takes back what the proposal itself has stopped, if it is not approved. `refuse_own` refuses people
    whose own affair it is. `words` are the effects of the act in sentences.
    """

    lock: Callable[[Proposal], Any]
    hash_now: Callable[[Any, Proposal, datetime], str]
    carry_out: Callable[[Any, Proposal, audit.Actor, datetime], Any]
    words: Callable[[Proposal], list[str]]
    let_go: Callable[[Any, Proposal, datetime], None] = _nothing
    refuse_own: Callable[[Any, audit.Actor], None] = _nothing


Acts = Mapping[str, Procedure]


@dataclass(frozen=True)
class Draft:
    """A proposal before it is stored. Units: shillings.

    The audit trail records `payload`, but not `private`, which may have a whole phone number.
    """

    act: str
    subject: str
    hash: str
    reason: str = ""
    amount: Decimal | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    private: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposed:
    """A proposal that waits for a second person. The approval must carry the same `preview_hash`."""

    proposal_id: int
    act: str
    subject: str
    preview_hash: str


@dataclass(frozen=True)
class ApprovedOnce:
    """A proposal of the machine that one person has approved. It waits for the second."""

    proposal_id: int


# --- making ----------------------------------------------------------------------------------------------------------


def refuse_while_one_waits(subject: str) -> None:
    """Refuse a new decision while a person's proposal about the subject is open. The machine's proposals block nothing.

    Raises: ProposalWaits.
    """
    waiting = open_about(subject).exclude(proposed_by=None).first()
    if waiting is not None:
        raise ProposalWaits(f"Proposal {waiting.pk} on {_named(subject)} waits. Approve or reject it first.")


def make(draft: Draft, *, by: audit.Actor, at: datetime, life: timedelta = LIFE) -> Proposed:
    """Store a proposal. Call it last in the transaction, which has locked the subject and checked the act.

    Locks: the end of the audit trail.
    Raises: PersonNeeded; ProposalWaits.
    """
    if by.user_id is None and by.key_id is None and by != audit.MACHINE:
        raise PersonNeeded("This takes two members of staff. Log in as one of them and make the proposal.")
    refuse_while_one_waits(draft.subject)
    if by.key_id is not None and open_about(draft.subject).exists():
        raise ProposalWaits(f"A proposal on {_named(draft.subject)} waits. A key cannot add another.")
    try:
        with transaction.atomic():
            proposal = Proposal.objects.create(
                act=draft.act,
                subject=draft.subject,
                payload={**draft.payload, **draft.private},
                hash=draft.hash,
                amount=draft.amount,
                reason=draft.reason[:300],
                proposed_by_id=by.user_id,
                proposed_from=by.source,
                proposed_at=at,
                expires_at=at + life,
            )
    except IntegrityError:
        raise ProposalWaits(f"A proposal on {_named(draft.subject)} waits. Approve or reject it first.") from None
    audit.record(
        action="proposal.make",
        by=by,
        subject=draft.subject,
        before={},
        after={
            "proposal": proposal.pk,
            "act": draft.act,
            "amount": draft.amount,
            "preview": draft.hash,
            "expires_at": proposal.expires_at,
            **draft.payload,
        },
        at=at,
        reason=draft.reason,
    )
    return Proposed(proposal.pk, draft.act, draft.subject, draft.hash)


# --- deciding --------------------------------------------------------------------------------------------------------


def approve(
    *,
    proposal_id: int,
    preview_hash: str,
    holds: Callable[[str], bool],
    by: audit.Actor,
    at: datetime,
    acts: Acts,
) -> Any:
    """Carry out a proposal of another member of staff, if its figures have not changed. Return what the act returns.

    `holds` tells if the person holds a permission, by its codename. A proposal of the machine takes two approvals; the
    first returns ApprovedOnce. If a figure has changed, the proposal becomes stale, and nothing is decided. The same
    happens if the act has come to concern its proposer.
    Locks: the subject, the Proposal, the locks of the act.
    Raises: ProposalNotFound; ProposalDecided; ProposerCannotApprove; NotYourProposal; PreviewMoved; PersonNeeded; the
    refusals of the act. Then nothing was decided and no money moved.
    """
    if by.user_id is None:
        raise PersonNeeded("Only a member of staff can approve a proposal.")
    with transaction.atomic(durable=True):
        procedure, subject, proposal = _locked(proposal_id, acts)
        if by.user_id in (proposal.proposed_by_id, proposal.first_approved_by_id):
            verb = "proposed" if by.user_id == proposal.proposed_by_id else "approved"
            raise ProposerCannotApprove(f"You {verb} this. Another member of staff must approve it.")
        if not holds(authority.ACTS[proposal.act].approval):
            raise NotYourProposal("Your roles do not allow you to approve this proposal. Nothing was decided.")
        procedure.refuse_own(subject, by)
        if preview_hash != proposal.hash:
            raise PreviewMoved("That is not the hash of the proposal. Nothing was decided. Open the proposal again.")
        is_expired = proposal.expires_at <= at
        objection = _objection(procedure, subject, proposal)
        if not is_expired and not objection and procedure.hash_now(subject, proposal, at) == proposal.hash:
            if proposal.proposed_by_id is None and proposal.first_approved_by_id is None:
                return _approve_once(proposal, by=by, at=at)
            proposal.state, proposal.decided_by_id, proposal.decided_at = State.APPROVED, by.user_id, at
            proposal.save(update_fields=["state", "decided_by", "decided_at"])
            return procedure.carry_out(subject, proposal, by, at)
        state = State.EXPIRED if is_expired else State.STALE
        words = "Nobody approved it in time." if is_expired else "The figures changed after it was proposed."
        words = objection if objection and not is_expired else words
        _close(procedure, subject, proposal, state, words=words, by=by, at=at)
    if is_expired:
        raise ProposalDecided(f"Proposal {proposal_id} has expired. Nothing was decided. Make a new proposal.")
    if objection:
        raise ProposalDecided(
            f"{objection} Proposal {proposal_id} is stale, and nothing was decided. Make a new proposal."
        )
    raise PreviewMoved(
        f"The figures have changed since proposal {proposal_id} was made, so the proposal is stale."
        " Nothing was decided. Make a new proposal."
    )


def reject(
    *, proposal_id: int, reason: str, holds: Callable[[str], bool], by: audit.Actor, at: datetime, acts: Acts
) -> Proposal:
    """Reject a proposal, or withdraw one's own. Nothing of it is carried out.

    Locks: the subject, the Proposal.
    Raises: ProposalNotFound; ProposalDecided; NotYourProposal; the refusal of one's own affairs.
    """
    with transaction.atomic(durable=True):
        procedure, subject, proposal = _locked(proposal_id, acts)
        is_own = by.user_id is not None and proposal.proposed_by_id == by.user_id
        if not is_own and not holds(authority.ACTS[proposal.act].approval):
            raise NotYourProposal("Another person proposed this. Your roles allow you to withdraw only your own.")
        procedure.refuse_own(subject, by)
        state = State.WITHDRAWN if is_own else State.REJECTED
        _close(procedure, subject, proposal, state, words=reason, by=by, at=at)
    return proposal


def to_expire(*, at: datetime, limit: int) -> list[int]:
    """Return the ids of open proposals whose time is over, the oldest first."""
    over = Proposal.objects.filter(state=State.OPEN, expires_at__lte=at).order_by("expires_at", "pk")
    return list(over.values_list("pk", flat=True)[:limit])


def expire(*, proposal_id: int, at: datetime, acts: Acts) -> bool:
    """Close an open proposal whose time is over, and return True. Idempotent.

    Locks: the subject, the Proposal.
    """
    with transaction.atomic(durable=True):
        try:
            procedure, subject, proposal = _locked(proposal_id, acts)
        except (ProposalDecided, ProposalNotFound):
            return False
        if proposal.expires_at > at:
            return False
        words = "Nobody approved it in time."
        _close(procedure, subject, proposal, State.EXPIRED, words=words, by=audit.MACHINE, at=at)
    return True


def lapse(subject: str, *, words: str, by: audit.Actor, at: datetime) -> None:
    """Close all open proposals about a subject, because people decided otherwise.

    Runs in the caller's transaction, which has locked the subject and records its own decision.
    Locks: the Proposals.
    """
    open_about(subject).update(state=State.STALE, words=words[:300], decided_by=by.user_id, decided_at=at)


# --- reading ---------------------------------------------------------------------------------------------------------


def open_about(subject: str) -> Any:
    """Return the query for the open proposals about a subject."""
    return Proposal.objects.filter(subject=subject, state=State.OPEN).order_by("pk")


def open_subjects(kind: str, *act_names: str) -> set[int]:
    """Return the ids of all subjects of a kind, such as "market", that an open proposal is about.

    With `act_names` only proposals of these acts count.
    """
    rows = Proposal.objects.filter(state=State.OPEN, subject__startswith=f"{kind}:")
    if act_names:
        rows = rows.filter(act__in=act_names)
    return {int(subject.rpartition(":")[2]) for subject in rows.values_list("subject", flat=True)}


def rejected_subjects(kind: str, act_name: str, *, since: datetime) -> set[int]:
    """Return the ids of all subjects of a kind about which a machine's proposal was rejected after `since`."""
    rows = Proposal.objects.filter(act=act_name, proposed_by=None, state=State.REJECTED, decided_at__gt=since)
    subjects = rows.filter(subject__startswith=f"{kind}:").values_list("subject", flat=True)
    return {int(subject.rpartition(":")[2]) for subject in subjects}


# --- parts -----------------------------------------------------------------------------------------------------------


def _locked(proposal_id: int, acts: Acts) -> tuple[Procedure, Any, Proposal]:
    unlocked = Proposal.objects.filter(pk=proposal_id).first()
    if unlocked is None or unlocked.act not in acts:
        raise ProposalNotFound(f"There is no proposal {proposal_id}.")
    procedure = acts[unlocked.act]
    subject = procedure.lock(unlocked)
    proposal = Proposal.objects.select_for_update(no_key=True, of=("self",)).get(pk=proposal_id)
    if proposal.state != State.OPEN:
        raise ProposalDecided(f"Proposal {proposal_id} is {proposal.state}.")
    return procedure, subject, proposal


_OWN = "It has become the own affair of a person who proposed or approved it."
_SUSPENDED = "A person who proposed or approved it is suspended."


def _objection(procedure: Procedure, subject: Any, proposal: Proposal) -> str:
    """Return the reason why a person who proposed the act, or approved it first, does not count any more, or "".

    The person is suspended, or the act has become their own affair. For example a person proposes to scratch an
    outcome, and then bets on another one.
    """
    people = [person for person in (proposal.proposed_by_id, proposal.first_approved_by_id) if person is not None]
    if CustomUser.objects.filter(pk__in=people, is_active=False).exists():
        return _SUSPENDED
    for person in people:
        try:
            procedure.refuse_own(subject, audit.Actor(user_id=person, source=proposal.proposed_from))
        except Refusal:
            return _OWN
    return ""


def _approve_once(proposal: Proposal, *, by: audit.Actor, at: datetime) -> ApprovedOnce:
    proposal.first_approved_by_id, proposal.first_approved_at = by.user_id, at
    proposal.save(update_fields=["first_approved_by", "first_approved_at"])
    _record("proposal.approve_first", proposal, by=by, at=at)
    return ApprovedOnce(proposal.pk)


def _close(
    procedure: Procedure,
    subject: Any,
    proposal: Proposal,
    state: Proposal.State,
    *,
    words: str,
    by: audit.Actor,
    at: datetime,
) -> None:
    proposal.state, proposal.words = state, words[:300]
    proposal.decided_by_id, proposal.decided_at = by.user_id, at
    proposal.save(update_fields=["state", "words", "decided_by", "decided_at"])
    procedure.let_go(subject, proposal, at)
    _record(f"proposal.{_ACTIONS[state]}", proposal, by=by, at=at, reason=words)


_ACTIONS = {
    State.REJECTED: "reject",
    State.WITHDRAWN: "withdraw",
    State.STALE: "stale",
    State.EXPIRED: "expire",
}


def _record(action: str, proposal: Proposal, *, by: audit.Actor, at: datetime, reason: str = "") -> None:
    audit.record(
        action=action,
        by=by,
        subject=proposal.subject,
        before={"proposal": proposal.pk, "state": State.OPEN},
        after={"proposal": proposal.pk, "act": proposal.act, "state": proposal.state},
        at=at,
        reason=reason,
    )


def _named(subject: str) -> str:
    return subject.replace(":", " ")
