"""What the pure payout machine (machine.py) holds in memory: debts, requests, questions, messages, and the book.

Both machines of states stand here once more as D3 has them, and as PostgreSQL would, they refuse every other move.
Amounts are whole shillings.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

OPEN = frozenset(("SENDING", "WAITING", "ACCEPTED", "IN_DOUBT"))
UNDECIDED = frozenset(("SENDING", "ACCEPTED", "IN_DOUBT"))

PAYOUT_MOVES = {
    "PENDING": {"PROCESSING", "HELD", "COMPLETED", "CANCELLED"},
    "PROCESSING": {"COMPLETED", "FAILED", "HELD", "PENDING"},
    "HELD": {"PENDING", "FAILED", "COMPLETED", "CANCELLED"},
    "FAILED": {"PENDING", "COMPLETED"},
    "COMPLETED": set(),
    "CANCELLED": set(),
}
ATTEMPT_MOVES = {
    "SENDING": {"WAITING", "ACCEPTED", "IN_DOUBT", "PAID", "FAILED"},
    "WAITING": {"SENDING", "IN_DOUBT", "PAID", "FAILED"},
    "ACCEPTED": {"IN_DOUBT", "PAID", "FAILED"},
    "IN_DOUBT": {"SENDING", "PAID", "FAILED"},
    "FAILED": {"PAID"},
    "PAID": set(),
}


class Forbidden(Exception):
    """A move that no table allows, or a transfer that is booked already: PostgreSQL would have refused it."""


class Result(NamedTuple):
    """What M-Pesa posts about a request. `says_paid` is code 0; amount, phone and receipt may be missing."""

    ocid: str
    code: str
    conversation_id: str = ""
    amount: int | None = None
    phone: str | None = None
    receipt: str | None = None


class Answer(NamedTuple):
    """What M-Pesa answers a question: completed, failed, not_found or unknown, and about which request."""

    verdict: str
    ocid: str | None = None
    amount: int | None = None
    phone: str | None = None
    receipt: str | None = None


@dataclass(eq=False, slots=True)
class Payout:
    """Our debt to one member."""

    ref: str
    member: str
    phone: str
    amount: int
    due_at: datetime
    status: str = "PENDING"
    failed_at: datetime | None = None
    redirected: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def open(self) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.state in OPEN), None)

    def move(self, status: str) -> None:
        if status != self.status:
            if status not in PAYOUT_MOVES[self.status]:
                raise Forbidden(f"payout {self.ref}: {self.status} to {status}")
            self.status = status


@dataclass(eq=False, slots=True)
class Attempt:
    """One request for a payout, under one id, however often that is POSTed."""

    payout: Payout
    number: int
    ocid: str
    opened_at: datetime
    posted_at: datetime
    first_sent_at: datetime | None
    ask_at: datetime | None
    state: str = "SENDING"
    doubted_at: datetime | None = None
    resend_at: datetime | None = None
    known_at: datetime | None = None
    heard_at: datetime | None = None
    closed_at: datetime | None = None
    acknowledged: bool = False
    claim: str = ""
    receipt: str = ""
    questions: list[Question] = field(default_factory=list)

    def move(self, state: str) -> None:
        if state != self.state:
            if state not in ATTEMPT_MOVES[self.state]:
                raise Forbidden(f"attempt {self.ocid}: {self.state} to {state}")
            self.state = state

    @property
    def never_left(self) -> bool:
        return self.state == "WAITING" and self.first_sent_at is None


@dataclass(eq=False, slots=True)
class Question:
    """One question about an attempt, with an address of its own; `said` keeps the first word that decides."""

    attempt: Attempt
    asked_at: datetime
    said: str = ""


@dataclass(eq=False, slots=True)
class Message:
    """What came to an address of ours, stored; None as its content says that a queue timed out."""

    about: Attempt | Question
    content: Result | Answer | None
    trusted: bool
    applied: bool = False


class Book:
    """The ledger: transfers by key, and what each account holds, credits less debits, so that all of it sums to 0."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.held: defaultdict[str, int] = defaultdict(int)
        self.total: defaultdict[str, int] = defaultdict(int)

    def post(self, key: str, debit: str, credit: str, amount: int) -> None:
        if key in self.keys or amount <= 0:
            raise Forbidden(f"transfer {key} of {amount}")
        self.keys.add(key)
        for account, delta in ((debit, -amount), (credit, amount)):
            self.held[account] += delta
            self.total[account.partition(":")[0]] += delta
