"""Orphans of the pure machine: requests that M-Pesa reports and the books lost.

Units: whole shillings.
"""

from datetime import datetime, timedelta

from soak.simulation.pure.machine import DEFINITE, LONGEST_GAP, Machine
from soak.simulation.pure.rows import Answer, Attempt, Message, Orphan, Payout, Question, Result

CLAIM_WITHIN = timedelta(minutes=5)


def record(
    machine: Machine, ocid: str, content: Result | Answer | None, *, trusted: bool, at: datetime
) -> Orphan | None:
    """Record a message about a request that is not in the books. Returns None if it names another request."""
    if isinstance(content, Result) and content.ocid != ocid:
        return None
    orphan = machine.orphans.get(ocid)
    if orphan is None:
        orphan = machine.orphans[ocid] = Orphan(ocid, ocid.rpartition("-")[0], at, at)
    elif orphan.state in ("NOT_PAID", "SOUGHT", "ABSENT") and not isinstance(content, Answer):
        orphan.state, orphan.ask_at = "WAITING", at
    entry = (content, trusted or not machine.policy.production)
    if isinstance(content, Answer) or entry not in [(other, trust) for other, trust, _ in orphan.messages]:
        orphan.messages.append((*entry, at))
    return orphan


def any_due(machine: Machine, *, at: datetime) -> bool:
    """Return True if a question about an orphan is due."""
    return bool(_due(machine, at))


def _due(machine: Machine, at: datetime) -> list[Orphan]:
    asked_about = [orphan for orphan in machine.orphans.values() if orphan.state in ("WAITING", "SOUGHT")]
    return [orphan for orphan in asked_about if orphan.ask_at is not None and orphan.ask_at <= at]


def to_ask(machine: Machine, *, at: datetime) -> list[Orphan]:
    """Record the questions that are due about orphans, and return the orphans."""
    due = _due(machine, at)
    for orphan in due:
        orphan.ask_at = at + min(_gap(machine, orphan), machine.policy.query_after)
    return due


def put(machine: Machine, orphan: Orphan, *, asked_at: datetime) -> None:
    """Record that a question was POSTed. If its worker dies before, the next one is due `query_after` later."""
    gap = _gap(machine, orphan)
    if orphan.ask_at == asked_at + min(gap, machine.policy.query_after):
        orphan.ask_at = asked_at + gap
    orphan.asked += 1


def _gap(machine: Machine, orphan: Orphan) -> timedelta:
    return min(machine.policy.query_gap * 2 ** min(orphan.asked, 10), LONGEST_GAP)


def place(machine: Machine, *, at: datetime) -> list[Message]:
    """Give each orphan to the payout with its reference, or book it in suspense. Return the messages to apply."""
    messages = []
    for orphan in [orphan for orphan in machine.orphans.values() if orphan.state == "SOUGHT"]:
        _settle_sought(machine, orphan, at)
    for orphan in [o for o in machine.orphans.values() if o.state in ("WAITING", "SUSPENSE")]:
        payout = next((payout for payout in machine.payouts if payout.ref == orphan.ref), None)
        if payout is not None:
            messages += _give(machine, orphan, payout, at)
        elif orphan.state == "WAITING":
            _suspend(machine, orphan, at)
    return messages


def answered(orphan: Orphan) -> list[tuple[Answer, datetime]]:
    """Return M-Pesa's answers to the questions about an orphan in state SOUGHT, each with its time."""
    return [
        (content, heard_at)
        for content, trusted, heard_at in orphan.messages
        if isinstance(content, Answer) and trusted and orphan.sought_at is not None and heard_at >= orphan.sought_at
    ]


def _settle_sought(machine: Machine, orphan: Orphan, at: datetime) -> None:
    """Let an orphan in state SOUGHT wait if M-Pesa has it. It is ABSENT after two answers that do not find it."""
    answers = answered(orphan)
    if any(answer.ocid == orphan.ocid for answer, _ in answers):
        orphan.state, orphan.ask_at = "WAITING", at
        return
    not_found = [heard_at for answer, heard_at in answers if answer.verdict == "not_found"]
    if not_found and not_found[-1] - not_found[0] >= machine.policy.query_gap / 2:
        orphan.state, orphan.ask_at = "ABSENT", None


def _give(machine: Machine, orphan: Orphan, payout: Payout, at: datetime) -> list[Message]:
    orphan.state, orphan.ask_at = "CLAIMED", None
    machine.touched.add(payout)
    attempt = next((attempt for attempt in payout.attempts if attempt.ocid == orphan.ocid), None)
    if attempt is None:
        attempt = machine.open_found(payout, orphan, at)
    contents = [(content, trusted) for content, trusted, _ in orphan.messages if not isinstance(content, Answer)]
    messages = [machine.store(attempt, content, trusted=trusted, at=at) for content, trusted in contents]
    return [message for message in messages if message is not None]


def _suspend(machine: Machine, orphan: Orphan, at: datetime) -> None:
    policy = machine.policy
    paid, reported, definite, failed_at = False, False, False, []
    # Answers come last, because their receipt counts more than a result's.
    for content, trusted, heard_at in sorted(orphan.messages, key=lambda message: isinstance(message[0], Answer)):
        if isinstance(content, Result):
            reported |= content.code == "0"
            definite |= trusted and content.code in DEFINITE
            complete = content.code == "0" and None not in (content.amount, content.phone, content.receipt)
            if complete:
                orphan.amount, orphan.receipt = content.amount or 0, content.receipt or ""
        elif isinstance(content, Answer):
            reported |= content.verdict == "completed"
            if trusted and content.verdict == "failed":
                failed_at.append(heard_at)
            if trusted and content.verdict == "completed":
                orphan.amount, orphan.receipt, paid = content.amount or 0, content.receipt or "", True
    if failed_at and not reported and (definite or failed_at[-1] - failed_at[0] >= policy.query_gap):
        orphan.state, orphan.ask_at = "NOT_PAID", None
    elif paid and at >= orphan.first_seen_at + CLAIM_WITHIN:
        orphan.state, orphan.ask_at = "SUSPENSE", None
        machine.book.post(f"foreign:{orphan.receipt}", "suspense", "utility", orphan.amount)


def current(machine: Machine, about: Attempt | Question) -> Attempt | Question | None:
    """Return the row that now has this row's address, or None if the books lost it.

    A token is derived from the id, so the row that has the same id again has the same address.
    """
    attempt = about if isinstance(about, Attempt) else about.attempt
    payout = next((payout for payout in machine.payouts if payout.ref == attempt.payout.ref), None)
    same = next((a for a in payout.attempts if a.ocid == attempt.ocid), None) if payout else None
    if isinstance(about, Attempt) or same is None:
        return same
    return same.questions[about.number - 1] if about.number <= len(same.questions) else None
