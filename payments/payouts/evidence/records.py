"""Frozen records of the rules of evidence: facts about an attempt, its status queries, and actions. Pure."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

from payments.policy import Policy

Step: TypeAlias = Literal[
    "nothing",
    "ask",
    "doubt",
    "report",
    "pay",
    "fail",
    "hold",
    "resend",
    "stop_asking",
    "contradict",
    "reverse",
    "ask_second",
    "drop_second",
]
Level: TypeAlias = Literal["", "warning", "error", "critical"]

# States of a request that may be at M-Pesa.
UNDER_WAY = ("SENDING", "ACCEPTED", "IN_DOUBT")
# A later answer to the same status query never replaces one of these answers.
DECISIVE = ("completed", "failed", "reversed")


@dataclass(frozen=True)
class Facts:
    """Facts about an attempt and its payout, as stored.

    `conversation_id` is Daraja's id of the request. `settlement_stands`: the payout's settlement is not undone.
    `paid_report`: "" (none), "untrusted" or "trusted", if a callback reported a payment that is not booked yet.
    `decision`: "paid" or "not_paid" if a person decided the result and M-Pesa has not confirmed it, else "".
    `result_code` and `result_words` are those of the latest callback. `is_found`: our books had lost the request.
    `asked_first`: we asked about the request before it left, because our books may have lost an earlier one.
    `later_unasked`: our books may have lost a later request of the payout, and M-Pesa has not denied it yet.
    `other_numbers`: further numbers of the member to which a lost request of the payout may have gone.
    `second_receipt`: a further receipt that was reported, and that M-Pesa's answer must confirm.
    """

    attempt: str
    state: str
    payout_status: str
    settlement_stands: bool
    originator_conversation_id: str
    conversation_id: str
    amount: Decimal
    phone_number: str
    opened_at: datetime
    posted_at: datetime | None
    first_sent_at: datetime | None
    next_query_at: datetime | None
    known_at: datetime | None
    cleared_at: datetime | None
    result_code: str
    result_words: str
    receipt: str
    paid_report: str
    decision: str
    is_found: bool = False
    asked_first: bool = False
    later_unasked: bool = False
    other_numbers: tuple[str, ...] = ()
    second_receipt: str = ""

    @property
    def never_left(self) -> bool:
        """True if no POST of the attempt left us. Then only proof of payment can change the attempt."""
        return self.state == "WAITING" and self.first_sent_at is None

    def within_horizon(self, at: datetime, policy: Policy) -> bool:
        """Return True if the attempt's id may still be sent again. `attempts.within_horizon` explains the rule."""
        first = self.first_sent_at
        return first is None or at < max(first, self.cleared_at or first) + policy.resend_horizon


@dataclass(frozen=True)
class Query:
    """A status query about an attempt, and the answer stored for it ("" if none came).

    `receipt`: the receipt that was asked about, or "" if our own id was.
    """

    asked_at: datetime
    answer: str
    receipt: str = ""


@dataclass(frozen=True)
class Action:
    """The consequence of one message. `outcome` says it in words for the callback.

    - nothing: no change.
    - ask: the next status query is due at `ask_at`.
    - doubt: the attempt is in doubt, and the next status query is due at `ask_at` at the latest.
    - report: `code`, `words`, `receipt` and `paid_report` are kept on the attempt, and M-Pesa is asked at `ask_at`.
    - pay: the payment is booked with `receipt`, and with `amount` or `phone_number` if M-Pesa paid another amount, or
      another number, than the attempt's.
    - fail: the attempt is proven unpaid, with `code` and `words`.
    - hold: no change of the attempt.
    - resend: the same id is sent again.
    - stop_asking: a proven failure needs no further status query.
    - contradict: M-Pesa contradicts a decision as paid. The payment is taken back, and M-Pesa is asked again.
    - ask_second: M-Pesa is asked about `receipt`, which may be a second payment of a request that is booked as paid.
    - drop_second: M-Pesa says that `receipt` is no second payment of the request.
    - reverse: M-Pesa took a booked payment back. The payout waits for a person, and the money is owed again.

    `hold_reason`: the payout also waits for a person, if it is pending, under way or failed, for this reason.
    `is_known`: M-Pesa said that it has this id. `keeps_answer`: the answer is stored on its query. `trips`: a code
    that may open a breaker, for the reason `trip_reason`. `alarm`: the text of an alarm of `level`.
    """

    step: Step
    outcome: str
    ask_at: datetime | None = None
    code: str = ""
    words: str = ""
    receipt: str = ""
    amount: Decimal | None = None
    phone_number: str = ""
    paid_report: str = ""
    hold_reason: str = ""
    is_known: bool = False
    keeps_answer: bool = False
    trips: str = ""
    trip_reason: str = ""
    alarm: str = ""
    level: Level = ""
