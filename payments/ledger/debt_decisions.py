"""Decisions of staff on members' debts: set off, write off.

A set-off keeps a part of the member's later dividends. A write-off books the debt as our loss. Above its threshold a
decision is a proposal, which a second person approves.
Lock order: Recoveries by id, the Proposal, the advisory lock of a person's acts, then the accounts (ledger), then the
end of the audit trail.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction

from payments import own_affairs
from payments.ledger import journal
from payments.models import Recovery, Transfer
from users import audit, proposals, second_person
from users.models import Proposal
from users.refusal import Refusal

SET_OFF, WRITE_OFF = "recovery.set_off", "recovery.write_off"
# The subjects of proposals: one recovery, or all recoveries from a market.
ONE, MARKET = "recovery", "market_debts"


class RecoveryNotFound(Refusal):
    """The recovery does not exist, or no member has a debt from that market."""


class NothingOwed(Refusal):
    """The whole debt has already been paid back or written off."""


class DebtsMoved(Refusal):
    """The amounts owed changed after the operator saw them, so nothing was decided."""


@dataclass(frozen=True)
class _Decision:
    """A decision on debts: the name of its act, the percentage of a set-off, and the reason of a write-off."""

    act: str
    pct: int | None = None
    reason: str = ""


def fingerprint(owing: Iterable[tuple[int, Decimal]]) -> str:
    """Hash recoveries (ids in order, shillings owed on each), so that a later change can be noticed."""
    return hashlib.sha256(repr([(pk, f"{owed:.2f}") for pk, owed in owing]).encode()).hexdigest()


# --- deciding --------------------------------------------------------------------------------------------------------


def decide_set_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    pct: int,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery] | proposals.Proposed:
    """Set off one recovery, or all recoveries from a market, against up to `pct` % of each later dividend.

    Proposes it if it needs a second person. `expected` is the fingerprint of the amounts that the operator saw. If they
    have changed, nothing is decided.
    Locks: the Recoveries by id, the actor's acts of this kind.
    Raises: RecoveryNotFound; NothingOwed; own_affairs.OwnDebt; DebtsMoved; proposals.ProposalWaits.
    """
    subject = _subject(recovery_id, market_id)
    return _decide_or_propose(_Decision(SET_OFF, pct=pct), subject, by=by, at=at, expected=expected)


def write_off(
    *,
    recovery_id: int | None = None,
    market_id: int | None = None,
    reason: str,
    by: audit.Actor,
    at: datetime,
    expected: str | None = None,
) -> list[Recovery] | proposals.Proposed:
    """Write off the open amount of one recovery, or of all recoveries from a market. Books bad_debt → receivable.

    Proposes it if it needs a second person. `expected` is as in `decide_set_off`.
    Locks: the Recoveries by id, the actor's acts of this kind.
    Raises: RecoveryNotFound; NothingOwed; own_affairs.OwnDebt; DebtsMoved; proposals.ProposalWaits.
    """
    subject = _subject(recovery_id, market_id)
    return _decide_or_propose(_Decision(WRITE_OFF, reason=reason), subject, by=by, at=at, expected=expected)


def _decide_or_propose(
    decision: _Decision, subject: str, *, by: audit.Actor, at: datetime, expected: str | None
) -> list[Recovery] | proposals.Proposed:
    with transaction.atomic(durable=True):
        recoveries = _locked(subject)
        own_affairs.refuse_own_debt(recoveries, by)
        still_open = _still_open(recoveries)
        if not still_open:
            raise NothingOwed("Everything was paid back or written off already. Nothing was changed.")
        if expected not in (None, fingerprint((recovery.pk, recovery.outstanding) for recovery in still_open)):
            raise DebtsMoved("The amount owed has changed since you saw it. Nothing was decided: check it again.")
        proposals.refuse_while_one_waits(subject)
        owed = sum((recovery.outstanding for recovery in still_open), journal.ZERO)
        if second_person.needed(decision.act, amount=owed, by=by, at=at):
            payload = {} if decision.pct is None else {"pct": decision.pct}
            draft = proposals.Draft(
                decision.act, subject, _hash(decision, still_open), decision.reason, owed, payload=payload
            )
            return proposals.make(draft, by=by, at=at)
        _carry_out(decision, subject, still_open, people=[by], at=at)
    return still_open


def procedures() -> dict[str, proposals.Procedure]:
    """Return the procedures of approved decisions on debts, by the name of the act."""
    procedure = proposals.Procedure(
        lock=lambda proposal: _locked(proposal.subject),
        hash_now=lambda recoveries, proposal, at: _hash_now(recoveries, proposal),
        carry_out=_carry_out_approved,
        words=_words,
        refuse_own=own_affairs.refuse_own_debt,
    )
    return {SET_OFF: procedure, WRITE_OFF: procedure}


# --- parts -----------------------------------------------------------------------------------------------------------


def _subject(recovery_id: int | None, market_id: int | None) -> str:
    return f"{ONE}:{recovery_id}" if recovery_id is not None else f"{MARKET}:{market_id}"


def _locked(subject: str) -> list[Recovery]:
    """Lock and return the recoveries of a subject, by id. Raises: RecoveryNotFound."""
    kind, _, number = subject.partition(":")
    rows = Recovery.objects.order_by("pk").select_for_update(no_key=True, of=("self",))
    rows = rows.filter(pk=number) if kind == ONE else rows.filter(settlement__market=int(number))
    recoveries = list(rows)
    if not recoveries:
        raise RecoveryNotFound("Nothing is owed under this id or from this market. Nothing was changed.")
    return recoveries


def _still_open(recoveries: Iterable[Recovery]) -> list[Recovery]:
    return [recovery for recovery in recoveries if recovery.outstanding > 0]


def _decision(proposal: Proposal) -> _Decision:
    return _Decision(proposal.act, proposal.payload.get("pct"), proposal.reason)


def _hash(decision: _Decision, still_open: Iterable[Recovery]) -> str:
    """Hash the decision, and each debt with its amount and the earlier decision on it."""
    debts = [(debt.pk, f"{debt.outstanding:.2f}", debt.decision, debt.pct) for debt in still_open]
    return hashlib.sha256(json.dumps([decision.act, decision.pct, debts]).encode()).hexdigest()


def _hash_now(recoveries: Iterable[Recovery], proposal: Proposal) -> str:
    still_open = _still_open(recoveries)
    return _hash(_decision(proposal), still_open) if still_open else ""


def _carry_out_approved(
    recoveries: Iterable[Recovery], proposal: Proposal, by: audit.Actor, at: datetime
) -> list[Recovery]:
    still_open = _still_open(recoveries)
    proposer = audit.Actor(user_id=proposal.proposed_by_id or proposal.first_approved_by_id, source="proposal")
    _carry_out(_decision(proposal), proposal.subject, still_open, people=[proposer, by], at=at)
    return still_open


def _carry_out(
    decision: _Decision, subject: str, still_open: Sequence[Recovery], *, people: Sequence[audit.Actor], at: datetime
) -> None:
    """Decide the locked debts. `people` are the one or two who decided. The last of them is shown on each debt."""
    before = {str(recovery.pk): [recovery.decision, recovery.outstanding] for recovery in still_open}
    for recovery in still_open:
        if decision.act == SET_OFF:
            recovery.decision, recovery.pct = Recovery.Decision.SET_OFF, decision.pct
        else:
            _write_off(recovery, decision.reason, at=at)
        recovery.decided_by_id, recovery.decided_at = people[-1].user_id, at
        recovery.save()
    after = {"decision": "SET_OFF", "pct": decision.pct} if decision.act == SET_OFF else {"decision": "WRITTEN_OFF"}
    for person in people:
        audit.record(
            action=decision.act,
            by=person,
            subject=subject.replace(MARKET, "market"),
            before=before,
            after=after,
            at=at,
            reason=decision.reason,
        )


def _write_off(recovery: Recovery, reason: str, *, at: datetime) -> None:
    """Book the open amount of a locked recovery as our loss."""
    loss, number = recovery.outstanding, 1
    while Transfer.objects.filter(key=f"writeoff:{recovery.pk}:{number}").exists():
        number += 1
    owes = journal.receivable(recovery.user_id)
    journal.post([journal.Entry(f"writeoff:{recovery.pk}:{number}", journal.BAD_DEBT, owes, loss)], at=at)
    recovery.written_off += loss
    recovery.decision, recovery.pct, recovery.reason = Recovery.Decision.WRITTEN_OFF, None, reason


def _words(proposal: Proposal) -> list[str]:
    kind, _, number = proposal.subject.partition(":")
    debts = f"debt {number}" if kind == ONE else f"all open debts from market {number}"
    if proposal.act == SET_OFF:
        return [
            f"Keep up to {proposal.payload['pct']} % of each later dividend for {debts}, until it is paid.",
            "Nothing is taken from a wallet now.",
        ]
    return [f"Write off {debts}. We bear this loss: it becomes bad debt in our books. A write-off is final."]
