"""Rules of evidence: the meaning of each message about an attempt. Pure.

    paid      A result that matches id, amount, phone and token. A large payment also needs a status query that agrees.
    failed    One of three:
              - a definite code in a callback, and a status query that agrees;
              - two status queries that agree, asked some time apart;
              - an HTTP rejection, if no POST of this id ended in doubt.
    in doubt  Everything else. We ask M-Pesa, and send the same id again only within the resend horizon.

Evidence of payment overrules evidence of failure at any time, because we record every payment that M-Pesa made. A
message that does not match its attempt changes no state.

Each function weighs one message against the facts about its attempt, and returns one action. `applying` reads the facts
under lock and carries the action out.
Units: amounts are Decimal shillings, times are aware UTC.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

from payments.mpesa import message_fields, messages, result_codes
from payments.policy import Policy

Step: TypeAlias = Literal["nothing", "ask", "doubt", "report", "pay", "fail", "hold", "resend", "stop_asking"]
Level: TypeAlias = Literal["", "warning", "error", "critical"]

OPEN = ("SENDING", "WAITING", "ACCEPTED", "IN_DOUBT")
# States of a request that may be at M-Pesa.
UNDER_WAY = ("SENDING", "ACCEPTED", "IN_DOUBT")
# A later answer to the same status query never replaces one of these answers.
DECISIVE = ("completed", "failed")


@dataclass(frozen=True)
class Facts:
    """Facts about an attempt and its payout, as stored.

    `paid_report`: "" (none), "untrusted" or "trusted", if a callback reported a payment that is not booked yet.
    `result_code` and `result_words` are those of the latest callback.
    """

    attempt: str
    state: str
    payout_status: str
    originator_conversation_id: str
    amount: Decimal
    phone_number: str
    opened_at: datetime
    posted_at: datetime | None
    first_sent_at: datetime | None
    next_query_at: datetime | None
    known_at: datetime | None
    result_code: str
    result_words: str
    receipt: str
    paid_report: str

    @property
    def never_left(self) -> bool:
        """True if no POST of the attempt left us. Then only proof of payment can change the attempt."""
        return self.state == "WAITING" and self.first_sent_at is None

    def within_horizon(self, at: datetime, policy: Policy) -> bool:
        """Return True if the attempt's id may still be sent again."""
        return self.first_sent_at is None or at < self.first_sent_at + policy.resend_horizon


@dataclass(frozen=True)
class Query:
    """A status query about an attempt, and the answer stored for it ("" if none came)."""

    asked_at: datetime
    answer: str


@dataclass(frozen=True)
class Action:
    """The consequence of one message. `outcome` says it in words for the callback.

    - nothing: no change.
    - ask: the next status query is due at `ask_at`.
    - doubt: the attempt is in doubt, and the next status query is due at `ask_at` at the latest.
    - report: `code`, `words`, `receipt` and `paid_report` are kept on the attempt, and M-Pesa is asked at `ask_at`.
    - pay: the payment is booked with `receipt`.
    - fail: the attempt is proven unpaid, with `code` and `words`.
    - hold: the payout waits for a person, with `words` as the reason.
    - resend: the same id is sent again.
    - stop_asking: a proven failure needs no further status query.

    `is_known`: M-Pesa said that it has this id. `keeps_answer`: the answer is stored on its query. `trips`: a code
    that may open a breaker, for the reason `trip_reason`. `alarm`: the text of an alarm of `level`.
    """

    step: Step
    outcome: str
    ask_at: datetime | None = None
    code: str = ""
    words: str = ""
    receipt: str = ""
    paid_report: str = ""
    is_known: bool = False
    keeps_answer: bool = False
    trips: str = ""
    trip_reason: str = ""
    alarm: str = ""
    level: Level = ""


# --- results and timeouts --------------------------------------------------------------------------------------------


def weigh_result(facts: Facts, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> Action:
    """Weigh the result of one attempt."""
    if wrong := _result_mismatch(facts, result):
        return _mismatch(facts, wrong, at)
    if result.says_paid:
        believed = trusted and _is_complete(result)
        if (believed and facts.amount < policy.confirm_above) or facts.state == "PAID":
            return Action("pay", "", receipt=result.receipt or "")
        return _report(facts, result, at, "trusted" if believed else "untrusted")
    if facts.state == "PAID":
        return Action(
            "nothing",
            "still paid: a failure after proof of payment changes nothing",
            alarm=f"Attempt {facts.attempt} is paid; a result with code {result.result_code} came afterwards",
            level="warning",
        )
    if facts.state == "FAILED":
        return Action("nothing", "failed already")
    if facts.never_left:
        return Action(
            "nothing",
            "ignored: this request never left us",
            alarm=f"A result with code {result.result_code} for attempt {facts.attempt}, which never left us",
            level="error",
        )
    if result_codes.meaning(result.result_code).definite and result.is_final:
        return _report(facts, result, at, "")
    return Action(
        "doubt",
        f"in doubt: code {result.result_code} proves nothing",
        ask_at=at + policy.query_after,
        words=f"{result.result_code} {result.result_desc}",
        is_known=trusted and result.is_final and result_codes.says_duplicate(result.result_code),
    )


def is_plainly_paid(facts: Facts, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> bool:
    """Return True if the result does nothing but book the payment of a payout that is under way.

    Such results are booked in bulk (booking.book). All other results are applied one at a time.
    """
    if facts.payout_status != "PROCESSING" or facts.state not in UNDER_WAY:
        return False
    return weigh_result(facts, result, trusted=trusted, at=at, policy=policy).step == "pay"


def weigh_timeout(facts: Facts, *, at: datetime, policy: Policy) -> Action:
    """Weigh a queue timeout, which proves neither payment nor failure."""
    if facts.state in ("PAID", "FAILED"):
        return Action("nothing", f"{facts.state} already")
    if facts.never_left:
        return Action("nothing", "ignored: this request never left us")
    return Action("doubt", "in doubt: a queue timeout proves nothing", ask_at=at + policy.query_after)


def weigh_plain_result(facts: Facts, result: messages.Result, *, at: datetime) -> Action:
    """Weigh a callback that names the payout by its reference alone. The endpoint exists only outside production.

    A failure is believed only while no request can have reached M-Pesa.
    """
    if result.result_code == "0":
        return Action("pay", "", receipt=result.receipt or "")
    if facts.first_sent_at is not None:
        return _report(facts, result, at, "", trips=False)
    return Action("fail", "", code=result.result_code, words=result.result_desc)


def _result_mismatch(facts: Facts, result: messages.Result) -> str:
    """Describe how a result contradicts its attempt, or return an empty string. A missing field is no mismatch."""
    if result.originator_conversation_id != facts.originator_conversation_id:
        return "the result names another request"
    if not result.says_paid:
        return ""
    if result.amount not in (None, facts.amount):
        return f"the result says {result.amount} instead of {facts.amount}"
    receiver = result.receiver_phone_visible
    if receiver is not None and not message_fields.phone_is_compatible(receiver, facts.phone_number):
        return "the result names another phone"
    return ""


def _is_complete(result: messages.Result) -> bool:
    return None not in (result.amount, result.receiver_phone_visible, result.receipt)


def _report(facts: Facts, result: messages.Result, at: datetime, paid_report: str, *, trips: bool = True) -> Action:
    """Keep a callback's report, and ask M-Pesa about it now. No later report replaces a trusted report of payment."""
    reported = f"reported {'paid' if paid_report else 'failed'}: a status query must confirm it"
    kept = facts.paid_report != "trusted"
    return Action(
        "report",
        f"failed before, and now {reported}" if facts.state == "FAILED" else reported,
        ask_at=at,
        code=result.result_code if kept else facts.result_code,
        words=result.result_desc if kept else facts.result_words,
        receipt=(result.receipt or "") if kept else facts.receipt,
        paid_report=paid_report if kept else facts.paid_report,
        trips=result.result_code if trips and not result.says_paid else "",
        trip_reason=result.result_desc,
    )


# --- answers to status queries ---------------------------------------------------------------------------------------


def weigh_answer(
    facts: Facts,
    query: Query,
    others: tuple[Query, ...],
    answer: messages.StatusAnswer,
    *,
    trusted: bool,
    at: datetime,
    policy: Policy,
) -> Action:
    """Weigh the answer to one status query. `others` are the attempt's other queries.

    An answer from an address that is not M-Pesa's never proves a failure. Such an answer proves a payment only together
    with a second source.
    """
    if wrong := _answer_mismatch(facts, answer):
        return _mismatch(facts, wrong, at)
    status = answer.payment_status
    is_new = query.answer not in DECISIVE
    corroborated = bool(facts.paid_report) or any(other.answer == "completed" for other in others)
    if not trusted and not (status == "completed" and corroborated):
        return _untrusted_answer(facts, status, is_new, at, policy)
    if status == "completed":
        return Action("pay", "", receipt=answer.receipt or facts.receipt, keeps_answer=is_new)
    if (
        facts.state == "FAILED"
        and facts.next_query_at is not None
        and (status == "failed" or (status == "not_found" and not facts.paid_report))
    ):
        return Action("stop_asking", "failed already, and M-Pesa confirms it", keeps_answer=is_new)
    if facts.state in ("PAID", "FAILED"):
        return Action("nothing", f"{facts.state} already", keeps_answer=is_new)
    # The answer to a query that was asked before the latest POST says nothing about that POST.
    current = facts.posted_at is None or query.asked_at >= facts.posted_at
    if status == "failed" and current:
        return _weigh_failure(facts, query, others, is_new=is_new, at=at, policy=policy)
    if status == "not_found" and current and _may_resend(facts, at, policy):
        return Action("resend", "not found: the same request is sent again", keeps_answer=is_new)
    return Action("nothing", f"in doubt: {status} proves nothing", keeps_answer=is_new)


def _answer_mismatch(facts: Facts, answer: messages.StatusAnswer) -> str:
    """Describe how an answer contradicts its attempt, or return an empty string. A missing field is no mismatch."""
    if answer.originator_conversation_id not in (None, facts.originator_conversation_id):
        return "the answer is about another request"
    if answer.payment_status != "completed":
        return ""
    if answer.amount not in (None, facts.amount):
        return f"the answer says {answer.amount} instead of {facts.amount}"
    receiver = answer.receiver_phone_visible
    if receiver is not None and not message_fields.phone_is_compatible(receiver, facts.phone_number):
        return "the answer names another phone"
    return ""


def _untrusted_answer(facts: Facts, status: str, is_new: bool, at: datetime, policy: Policy) -> Action:
    """Keep an untrusted report of payment as one source, and ask again soon. Every other untrusted answer is noise."""
    under_way = facts.state in UNDER_WAY
    return Action(
        "doubt" if under_way else "nothing",
        f"in doubt: {status}, from an address that is not M-Pesa's",
        ask_at=at + policy.query_gap if under_way else None,
        keeps_answer=is_new and status == "completed",
        alarm=f"An answer about attempt {facts.attempt} came from an address that is not M-Pesa's: {status}",
        level="error",
    )


def _may_resend(facts: Facts, at: datetime, policy: Policy) -> bool:
    """Return True if the same id may be sent again after M-Pesa did not find it.

    Within the horizon this is safe, because M-Pesa refuses a duplicate. If M-Pesa has said that it has had the id,
    another POST could only bring the same answer.
    """
    return (
        facts.paid_report != "trusted"
        and facts.state == "IN_DOUBT"
        and facts.known_at is None
        and facts.within_horizon(at, policy)
    )


def _weigh_failure(
    facts: Facts, query: Query, others: tuple[Query, ...], *, is_new: bool, at: datetime, policy: Policy
) -> Action:
    """Fail an attempt that a status query reports as failed if a second source agrees. Otherwise ask again.

    The second source is a definite code in a callback, or another query, asked at least `query_gap` earlier or later.
    """
    if result_codes.meaning(facts.result_code).definite:
        return Action("fail", "", code=facts.result_code, words=facts.result_words, keeps_answer=is_new)
    since = facts.posted_at or facts.opened_at
    asked = [other.asked_at for other in others if other.answer == "failed" and other.asked_at >= since]
    if is_new or query.answer == "failed":  # Otherwise the stored answer is an untrusted caller's, and it stays.
        asked.append(query.asked_at)
    first, last = min(asked, default=at), max(asked, default=at)
    if last - first < policy.query_gap:
        return Action(
            "doubt",
            "in doubt: one status query says failed, a second query is due",
            ask_at=max(first + policy.query_gap, at),
            keeps_answer=is_new,
        )
    if facts.paid_report == "trusted":
        return Action(
            "hold",
            "held: the result says paid, the queries say failed",
            words="M-Pesa's result says paid, its records say failed. Check M-Pesa's statement.",
            keeps_answer=is_new,
            alarm=f"Attempt {facts.attempt}: its result says paid, the status queries say failed",
            level="critical",
        )
    return Action("fail", "", words="M-Pesa's records say it failed", keeps_answer=is_new)


def _mismatch(facts: Facts, wrong: str, at: datetime) -> Action:
    """Alarm about a message that does not match its attempt. If the attempt is open, ask M-Pesa now."""
    asks = facts.state in UNDER_WAY
    return Action(
        "ask" if asks else "nothing",
        f"mismatch: {wrong}",
        ask_at=at if asks else None,
        alarm=f"Mismatch on attempt {facts.attempt}: {wrong}",
        level="error",
    )
