"""Changes of figures and thresholds: always two people, once two people may approve them.

Lock order: the figure, the Proposal, then the end of the audit trail.
"""

import hashlib
import json
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.utils.dateparse import parse_datetime

from users import audit, authority, figures, proposals, second_person
from users.decision_models import Figure, Proposal


def change(change: figures.Change, *, by: audit.Actor, at: datetime) -> Figure | proposals.Proposed:
    """Propose a new value of a figure, or write it if fewer than two people may approve it.

    Locks: the figure.
    Raises: figures.UnknownFigure; figures.BadFigure; proposals.ProposalWaits; proposals.PersonNeeded.
    """
    act_name = act_of(change.name)
    with transaction.atomic(durable=True):
        _lock(change.name)
        change.check(at=at)
        proposals.refuse_while_one_waits(_subject(change.name))
        if second_person.missing(act_name, by):
            return figures.set_value(change, by=by, at=at)
        draft = proposals.Draft(act_name, _subject(change.name), _hash(change), change.reason, payload=_payload(change))
        return proposals.make(draft, by=by, at=at)


def first_threshold(act_name: str, written: str, *, by: audit.Actor, at: datetime) -> Figure:
    """Write the first threshold of an act, by the owner of the machine. A later change takes two people.

    Locks: the figure.
    Raises: figures.UnknownFigure, if the act has no threshold; figures.BadFigure, if it has one already.
    """
    if act_name not in with_threshold():
        raise figures.UnknownFigure(f"{act_name} has no threshold. Acts with one: {', '.join(with_threshold())}.")
    name = figures.THRESHOLD + act_name
    with transaction.atomic(durable=True):
        _lock(name)
        if figures.latest(name) is not None:
            raise figures.BadFigure(
                f"The threshold of {act_name} is set already. Two people change it on the page Limits and law."
            )
        source = "First set by the owner's command"
        return figures.set_value(figures.Change(name, written, at, source), by=by, at=at)


def with_threshold() -> list[str]:
    """Return the names of the acts that take two people by their amount, and that have a threshold of their own."""
    return [act.name for act in authority.ACTS.values() if act.people == "two by amount" and not act.threshold]


def unset(at: datetime) -> list[str]:
    """Return the names of the acts whose threshold nobody has set."""
    return [act_name for act_name in with_threshold() if figures.threshold(act_name, at) is None]


def act_of(name: str) -> str:
    """Return the act that a change of this figure is."""
    return "threshold.set" if name.startswith(figures.THRESHOLD) else "figure.set"


def procedures() -> dict[str, proposals.Procedure]:
    """Return the procedures of changes of figures and thresholds, by the name of the act."""
    procedure = proposals.Procedure(
        lock=_locked, hash_now=lambda _, proposal, at: _hash(_change(proposal)), carry_out=_carry_out, words=_words
    )
    return {"figure.set": procedure, "threshold.set": procedure}


def _locked(proposal: Proposal) -> str:
    name: str = proposal.payload["name"]
    _lock(name)
    return name


def _carry_out(_: str, proposal: Proposal, by: audit.Actor, at: datetime) -> Figure:
    return figures.set_value(
        _change(proposal, at), by=by, at=at, proposed_by=proposal.proposed_by_id or proposal.first_approved_by_id
    )


def _words(proposal: Proposal) -> list[str]:
    payload = proposal.payload
    before = payload["before"] or "none"
    return [
        f"{words_of(payload['name'])}: {payload['value']} instead of {before}, from {payload['valid_from'][:16]}.",
        f"Source: {payload['source']}",
    ]


def words_of(name: str) -> str:
    """Return a figure's name in words."""
    if name.startswith(figures.THRESHOLD):
        act = authority.ACTS.get(name.removeprefix(figures.THRESHOLD))
        return f"Amount above which two people are needed to {act.words if act else name}"
    return figures.KINDS[name].words


def _change(proposal: Proposal, at: datetime | None = None) -> figures.Change:
    """Return the change that a proposal would make. A date that has passed meanwhile becomes `at`."""
    payload = proposal.payload
    valid_from = parse_datetime(payload["valid_from"])
    assert valid_from is not None  # noqa: S101 - written by _payload
    return figures.Change(
        payload["name"],
        payload["value"],
        max(valid_from, at) if at is not None else valid_from,
        payload["source"],
        proposal.reason,
        payload["certainty"],
    )


def _payload(change: figures.Change) -> dict[str, Any]:
    before = figures.latest(change.name)
    return {
        "name": change.name,
        "value": change.value,
        "valid_from": change.valid_from.isoformat(),
        "source": change.source,
        "certainty": change.certainty,
        "before": before.value if before else "",
    }


def _hash(change: figures.Change) -> str:
    """Hash the change and the newest row that it follows, so that an approval holds for this step only."""
    before = figures.latest(change.name)
    about = [change.name, change.value, change.valid_from.isoformat(), before.pk if before else 0]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _subject(name: str) -> str:
    return f"figure:{name}"


def _lock(name: str) -> None:
    """Let only one transaction at a time change a figure."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [figure_lock(name)])


def figure_lock(name: str) -> int:
    """Return the number of the lock that lets one transaction at a time change a figure. markets/locks.py lists it."""
    return (13 << 56) + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
