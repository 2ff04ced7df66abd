"""Rows of the pure payout machine, in memory: payouts, attempts, questions, messages, and the ledger.

The two state machines of D3 are written here a second time. Like PostgreSQL, they refuse every other transition.
Units: whole shillings.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import NamedTuple

# A result that reports a payment is kept if it cannot be booked at once. If it is trusted and complete but its amount
# is large, it is kept as PAID, and one status query confirms it. Otherwise it is kept as PERHAPS, and only status
# queries can prove the payment.
PAID, PERHAPS = "says paid", "perhaps says paid"
OPEN = frozenset(("SENDING", "WAITING", "ACCEPTED", "IN_DOUBT"))
UNDECIDED = frozenset(("SENDING", "ACCEPTED", "IN_DOUBT"))
ASKABLE = frozenset(("FAILED", *UNDECIDED))

PAYOUT_TRANSITIONS = {
    "PENDING": {"PROCESSING", "HELD", "COMPLETED", "CANCELLED"},
    "PROCESSING": {"COMPLETED", "FAILED", "HELD", "PENDING"},
    "HELD": {"PENDING", "FAILED", "COMPLETED", "CANCELLED"},
    "FAILED": {"PENDING", "COMPLETED"},
    "COMPLETED": {"HELD"},
    "CANCELLED": set(),
}
ATTEMPT_TRANSITIONS = {
    "SENDING": {"WAITING", "ACCEPTED", "IN_DOUBT", "PAID", "FAILED"},
    "WAITING": {"SENDING", "IN_DOUBT", "PAID", "FAILED"},
    "ACCEPTED": {"IN_DOUBT", "PAID", "FAILED"},
    "IN_DOUBT": {"SENDING", "PAID", "FAILED"},
    "FAILED": {"PAID"},
    "PAID": {"IN_DOUBT", "REVERSED"},
    "REVERSED": set(),
}


class Forbidden(Exception):
    """A forbidden transition, or a transfer that is already booked. PostgreSQL would also refuse it."""


class Result(NamedTuple):
    """M-Pesa's result of a request. Code 0 reports a payment; amount, phone and receipt may be missing."""

    ocid: str
    code: str
    conversation_id: str = ""
    amount: int | None = None
    phone: str | None = None
    receipt: str | None = None


class Answer(NamedTuple):
    """M-Pesa's answer to a question: completed, failed, reversed, not_found or unknown, with details of the request."""

    verdict: str
    ocid: str | None = None
    amount: int | None = None
    phone: str | None = None
    receipt: str | None = None


@dataclass(eq=False, slots=True)
class Payout:
    """A debt to one member."""

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
        """Change the status. Raises: Forbidden."""
        if status != self.status:
            if status not in PAYOUT_TRANSITIONS[self.status]:
                raise Forbidden(f"payout {self.ref}: {self.status} to {status}")
            self.status = status


@dataclass(eq=False, slots=True)
class Attempt:
    """A request for a payout under one id. It may be POSTed several times.

    `report` is the result that callbacks report: a code, or the machine's PAID or PERHAPS for a reported payment.
    `is_found` is True if the books had lost the request, and `asked_first` if we asked about it before it left.
    `paid_amount` is what M-Pesa paid, if it is another amount. `second` is a further receipt that M-Pesa must confirm.
    `serial` grows from each opened request to the next, as the ids of PostgreSQL do.
    """

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
    report: str = ""
    receipt: str = ""
    second: str = ""
    decision: str = ""
    corrections: int = 0
    is_found: bool = False
    asked_first: bool = False
    paid_amount: int | None = None
    serial: int = field(default_factory=count().__next__)
    questions: list[Question] = field(default_factory=list)

    def move(self, state: str) -> None:
        """Change the state. Raises: Forbidden."""
        if state != self.state:
            if state not in ATTEMPT_TRANSITIONS[self.state]:
                raise Forbidden(f"attempt {self.ocid}: {self.state} to {state}")
            self.state = state

    @property
    def is_askable(self) -> bool:
        """True if M-Pesa may be asked about it. A payment that people decided is asked about until it is confirmed."""
        decided = self.state == "PAID" and self.decision == "paid"
        return self.state in ASKABLE or decided or (self.state in ("PAID", "REVERSED") and self.second != "")

    @property
    def booking(self) -> str:
        """The last part of the keys of its payment. A payment that was taken back gets new keys."""
        return f"{self.ocid}:{self.corrections + 1}" if self.corrections else self.ocid

    @property
    def never_left(self) -> bool:
        return self.state == "WAITING" and self.first_sent_at is None


@dataclass(eq=False, slots=True)
class Question:
    """A question about an attempt, with its own address. `verdict` is the first answer that decides.

    `receipt` is the receipt that the question is about, if it is about one. Once the question `is_put`, the next one is
    due a `gap` later.
    """

    attempt: Attempt
    number: int
    asked_at: datetime
    receipt: str = ""
    verdict: str = ""
    gap: timedelta = timedelta(0)
    is_put: bool = False

    def keep(self, verdict: str) -> None:
        """Keep an answer, unless an earlier answer decides."""
        if self.verdict not in ("completed", "failed", "reversed"):
            self.verdict = verdict


@dataclass(eq=False, slots=True)
class Orphan:
    """A request that M-Pesa reports and the books lost, with the messages about it: content, trust and time.

    WAITING, CLAIMED by the payout with its reference, in SUSPENSE, or NOT_PAID. If only we ask about it: SOUGHT, and
    ABSENT if M-Pesa does not have it.
    """

    ocid: str
    ref: str
    first_seen_at: datetime
    ask_at: datetime | None
    state: str = "WAITING"
    sought_at: datetime | None = None
    asked: int = 0
    amount: int = 0
    receipt: str = ""
    messages: list[tuple[Result | Answer | None, bool, datetime]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Message:
    """A stored message that came to one of our addresses. Its `content` is None if it is a queue timeout."""

    about: Attempt | Question
    content: Result | Answer | None
    trusted: bool
    applied: bool = False


class Book:
    """The ledger: the keys of transfers, and the balance of each account. The sum of all balances is 0.

    A balance is credits minus debits.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.held: defaultdict[str, int] = defaultdict(int)
        self.total: defaultdict[str, int] = defaultdict(int)

    def post(self, key: str, debit: str, credit: str, amount: int) -> None:
        """Book one transfer. Raises: Forbidden."""
        if key in self.keys or amount <= 0:
            raise Forbidden(f"transfer {key} of {amount}")
        self.keys.add(key)
        for account, delta in ((debit, -amount), (credit, amount)):
            self.held[account] += delta
            self.total[account.partition(":")[0]] += delta
