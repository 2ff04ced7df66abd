"""Rules of evidence for answers to status queries. Pure, as `rules`, which has the overview of what proves what."""

from dataclasses import replace
from datetime import datetime

from payments.mpesa import message_fields, messages, result_codes
from payments.payouts.evidence import rules
from payments.payouts.evidence.records import DECISIVE, UNDER_WAY, Action, Facts, Query, Step
from payments.policy import Policy


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
    action = _weigh_answer(facts, query, others, answer, trusted=trusted, at=at, policy=policy)
    if answer.refuses_our_credentials:
        return replace(
            action, trips=answer.result_code, trip_reason=f"a status query was refused: {answer.result_desc}"
        )
    return action


def _weigh_answer(
    facts: Facts,
    query: Query,
    others: tuple[Query, ...],
    answer: messages.StatusAnswer,
    *,
    trusted: bool,
    at: datetime,
    policy: Policy,
) -> Action:
    if facts.second_receipt and query.receipt.upper() == facts.second_receipt.upper():
        return _weigh_second_receipt(facts, query, answer, trusted)
    if facts.state == "REVERSED" and not _proves_second_payment(facts, answer, trusted):
        return Action("nothing", "reversed already", keeps_answer=query.answer not in DECISIVE)
    if query.receipt and (facts.decision != "paid" or query.receipt.upper() != facts.receipt.upper()):
        return Action("nothing", "an answer about a receipt that is no longer asked about")
    if query.receipt:
        return _weigh_receipt(facts, query, answer, trusted, at)
    status = answer.payment_status
    is_new = query.answer not in DECISIVE
    if trusted and (number := _paid_otherwise(facts, answer)):
        other = number if number != facts.phone_number else ""
        return Action(
            "pay", "", receipt=answer.receipt or "", amount=answer.amount, phone_number=other, keeps_answer=is_new
        )
    if wrong := _answer_mismatch(facts, answer):
        return rules.mismatch(facts, wrong, at)
    corroborated = bool(facts.paid_report) or any(other.answer == "completed" for other in others)
    if not trusted and not (status == "completed" and corroborated and facts.state != "PAID"):
        return _untrusted_answer(facts, status, is_new, at, policy)
    if status == "completed":
        if answer.is_thin and not corroborated and facts.state != "PAID":
            return _ask_again(facts, is_new, at, policy)
        return Action("pay", "", receipt=answer.receipt or facts.receipt, keeps_answer=is_new)
    if status == "reversed":
        return _reversed(facts, answer, is_new)
    current = facts.posted_at is None or query.asked_at >= facts.posted_at
    if facts.state == "PAID" and facts.decision and status == "failed" and current:
        return rules.contradict(facts, at, words="M-Pesa's records say it failed", keeps_answer=is_new)
    return _weigh_no_payment(facts, query, others, status, is_new=is_new, at=at, policy=policy)


def _proves_second_payment(facts: Facts, answer: messages.StatusAnswer, trusted: bool) -> bool:
    """Return True if M-Pesa also paid, with another receipt, a request whose payment it reversed."""
    names_ours = answer.originator_conversation_id == facts.originator_conversation_id
    other = rules.names_another_receipt(facts, answer.receipt)
    return trusted and answer.payment_status == "completed" and names_ours and other and not _differs(facts, answer)


def _weigh_receipt(facts: Facts, query: Query, answer: messages.StatusAnswer, trusted: bool, at: datetime) -> Action:
    """Weigh the answer about the receipt that a person typed for a request decided as paid.

    Only our own id in the answer confirms the decision. Another id, amount or phone contradicts it, and so does a
    receipt of a payment that failed. Any other answer leaves the decision unconfirmed.
    """
    status, is_new = answer.payment_status, query.answer not in DECISIVE
    if not trusted:
        return Action("nothing", f"unconfirmed: {status}, from an address that is not M-Pesa's")
    if status == "failed" or (status in ("completed", "reversed") and _is_of_another_payment(facts, answer)):
        return rules.contradict(facts, at, keeps_answer=is_new)
    if answer.originator_conversation_id != facts.originator_conversation_id:
        return Action("nothing", f"unconfirmed: {status} for the receipt proves nothing", keeps_answer=is_new)
    if status == "completed":
        return Action("pay", "", receipt=facts.receipt, keeps_answer=is_new)
    if status == "reversed":
        return _reversed(facts, answer, is_new)
    return Action("nothing", f"unconfirmed: {status} for the receipt proves nothing", keeps_answer=is_new)


def _weigh_second_receipt(facts: Facts, query: Query, answer: messages.StatusAnswer, trusted: bool) -> Action:
    """Weigh the answer about a further receipt of a request that is booked as paid.

    Completed under our own id books the second payment. A failed, reversed or foreign payment is no second payment of
    this request. After any other answer M-Pesa is asked again.
    """
    status, is_new, receipt = answer.payment_status, query.answer not in DECISIVE, facts.second_receipt
    if not trusted:
        return Action("nothing", f"unconfirmed: {status}, from an address that is not M-Pesa's")
    found = status in ("completed", "reversed")
    if status in ("failed", "reversed") or (found and _is_of_another_payment(facts, answer)):
        return Action(
            "drop_second",
            f"a second receipt {receipt}: M-Pesa does not confirm it, so nothing is booked",
            receipt=receipt,
            keeps_answer=is_new,
            alarm=f"Attempt {facts.attempt}: M-Pesa says that its second receipt {receipt} is no second payment"
            f" ({status}). Nothing was booked. Check M-Pesa's statement",
            level="error",
        )
    names_ours = answer.originator_conversation_id == facts.originator_conversation_id
    same = answer.receipt is None or answer.receipt.upper() == receipt.upper()
    if status == "completed" and names_ours and same:
        return Action("pay", "", receipt=receipt, keeps_answer=is_new)
    return Action("nothing", f"unconfirmed: {status} for the second receipt proves nothing", keeps_answer=is_new)


def _is_of_another_payment(facts: Facts, answer: messages.StatusAnswer) -> bool:
    named = answer.originator_conversation_id
    return (named is not None and named != facts.originator_conversation_id) or _differs(facts, answer) != ""


def _weigh_no_payment(
    facts: Facts,
    query: Query,
    others: tuple[Query, ...],
    status: str,
    *,
    is_new: bool,
    at: datetime,
    policy: Policy,
) -> Action:
    """Weigh an answer that we believe and that reports no payment."""
    if facts.state == "FAILED" and status == "failed" and facts.paid_report == "trusted" and not facts.is_found:
        return _contradicted_failure(facts, is_new)
    if (
        facts.state == "FAILED"
        and facts.next_query_at is not None
        and (status == "failed" or (status == "not_found" and not facts.paid_report))
        and not facts.is_found
    ):
        return Action("stop_asking", "failed already, and M-Pesa confirms it", keeps_answer=is_new)
    if facts.state in ("PAID", "FAILED"):
        return Action("nothing", f"{facts.state} already", keeps_answer=is_new)
    # The answer to a query that was asked before the latest POST says nothing about that POST.
    current = facts.posted_at is None or query.asked_at >= facts.posted_at
    if status == "failed" and current:
        return _weigh_failure(facts, query, others, is_new=is_new, at=at, policy=policy)
    if status == "not_found" and current and _may_resend(facts, at, policy):
        if not facts.settlement_stands and facts.cleared_at is not None:
            return Action("fail", "", words="Two people decided that it did not leave", keeps_answer=is_new)
        if not facts.settlement_stands:
            return Action("nothing", "not found, and not sent again: its settlement is undone", keeps_answer=is_new)
        return Action("resend", "not found: the same request is sent again", keeps_answer=is_new)
    return Action("nothing", f"in doubt: {status} proves nothing", keeps_answer=is_new)


def _contradicted_failure(facts: Facts, is_new: bool) -> Action:
    """Hold the payout of a failed attempt if a trusted result says paid and M-Pesa's records say failed.

    M-Pesa is asked further, so that a late payment is booked and no retry leaves meanwhile. A payout that is completed
    or cancelled cannot leave, so its queries end with the alarm.
    """
    if facts.payout_status == "HELD":  # A person knows already.
        return Action("nothing", "held already: the result says paid, the queries say failed", keeps_answer=is_new)
    if facts.next_query_at is None:
        return Action("nothing", "FAILED already", keeps_answer=is_new)
    step: Step = "stop_asking" if facts.payout_status in ("COMPLETED", "CANCELLED") else "hold"
    return _contradicted(facts, step, is_new)


def _contradicted(facts: Facts, step: Step, is_new: bool) -> Action:
    return Action(
        step,
        "held: the result says paid, the queries say failed",
        hold_reason=rules.CONTRADICTION,
        keeps_answer=is_new,
        alarm=f"Attempt {facts.attempt}: its result says paid, the status queries say failed",
        level="critical",
    )


def _paid_otherwise(facts: Facts, answer: messages.StatusAnswer) -> str:
    """Return the number that M-Pesa paid under this id before we sent it, with another amount or to another number.

    A server that lost its last commits may settle again with other amounts, or two people may have replaced the number
    since. It sends under the same id. M-Pesa calls the new request a duplicate (`known_at`), or we asked before we sent
    it (`asked_first`). The payment that M-Pesa made under the id is then the one that left us. Returns an empty string
    for a payment as asked, and for a number that the member never had.
    """
    may_be_older = facts.known_at is not None or facts.asked_first
    if answer.payment_status != "completed" or not may_be_older or facts.state == "PAID":
        return ""
    receiver = answer.receiver_phone_visible
    names_it = answer.originator_conversation_id == facts.originator_conversation_id
    if not names_it or answer.amount is None or not answer.receipt or receiver is None:
        return ""
    if message_fields.phone_is_compatible(receiver, facts.phone_number):
        return facts.phone_number if answer.amount != facts.amount else ""
    numbers = [number for number in facts.other_numbers if message_fields.phone_is_compatible(receiver, number)]
    return numbers[0] if len(numbers) == 1 else ""


def _answer_mismatch(facts: Facts, answer: messages.StatusAnswer) -> str:
    """Describe how an answer contradicts its attempt, or return an empty string. A missing field is no mismatch."""
    if answer.originator_conversation_id not in (None, facts.originator_conversation_id):
        return "the answer is about another request"
    return _differs(facts, answer) if answer.payment_status == "completed" else ""


def _differs(facts: Facts, answer: messages.StatusAnswer) -> str:
    if answer.amount not in (None, facts.amount):
        return f"the answer says {answer.amount} instead of {facts.amount}"
    receiver = answer.receiver_phone_visible
    if receiver is not None and not message_fields.phone_is_compatible(receiver, facts.phone_number):
        return "the answer names another phone"
    return ""


def _ask_again(facts: Facts, is_new: bool, at: datetime, policy: Policy) -> Action:
    """Ask again after an answer that says Completed without id, amount or receiver. A second source must agree."""
    step: Step = "doubt" if facts.state in UNDER_WAY else "ask" if facts.state == "FAILED" else "nothing"
    return Action(
        step,
        "in doubt: Completed without id, amount or receiver. A second query is due",
        ask_at=at + policy.query_gap if step != "nothing" else None,
        keeps_answer=is_new,
    )


def _reversed(facts: Facts, answer: messages.StatusAnswer, is_new: bool) -> Action:
    """Hold a payout whose payment M-Pesa reversed. Whether the member has the money is for a person to check."""
    names_it = answer.originator_conversation_id == facts.originator_conversation_id
    return Action(
        "reverse" if facts.state == "PAID" and names_it else "hold",
        "held: M-Pesa says that it reversed the payment",
        hold_reason="M-Pesa says that it reversed this payment. Check M-Pesa's statement before you pay again.",
        keeps_answer=is_new,
        alarm=f"Attempt {facts.attempt}: M-Pesa says that it reversed the payment",
        level="critical",
    )


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
    another POST could only bring the same answer. If our books may have lost a later request of the payout, that
    request may have been paid, so M-Pesa must deny it first.
    """
    return (
        not facts.later_unasked
        and facts.paid_report != "trusted"
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
        return _contradicted(facts, "hold", is_new)
    code = facts.result_code if result_codes.meaning(facts.result_code).fault == "ours" else ""
    return Action("fail", "", code=code, words="M-Pesa's records say it failed", keeps_answer=is_new)
