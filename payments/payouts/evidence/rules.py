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

from dataclasses import replace
from datetime import datetime

from payments.mpesa import message_fields, messages, result_codes
from payments.payouts.evidence.records import DECISIVE, UNDER_WAY, Action, Facts, Query, Step
from payments.policy import Policy

# --- results and timeouts --------------------------------------------------------------------------------------------


def weigh_result(facts: Facts, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> Action:
    """Weigh the result of one attempt."""
    if wrong := _result_mismatch(facts, result):
        return _mismatch(facts, wrong, at)
    if result.originator_conversation_id != facts.originator_conversation_id:
        return _paid_under_another_id(facts, result, trusted, at)
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
    # A fault of ours stays known, so that a failure proven later fails no winner. It replaces no other report.
    ours = result_codes.meaning(result.result_code).fault == "ours"
    kept = facts.paid_report or result_codes.meaning(facts.result_code).definite
    return Action(
        "doubt",
        f"in doubt: code {result.result_code} proves nothing",
        ask_at=at + policy.query_after,
        code=result.result_code if ours and not kept else "",
        words=f"{result.result_code} {result.result_desc}",
        is_known=trusted and result.is_final and result_codes.says_duplicate(result.result_code),
        trips=result.result_code if ours else "",
        trip_reason=result.result_desc,
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
    if result.originator_conversation_id != facts.originator_conversation_id and not _is_renamed(facts, result):
        return "the result names another request"
    if not result.says_paid:
        return ""
    if result.amount not in (None, facts.amount):
        return f"the result says {result.amount} instead of {facts.amount}"
    receiver = result.receiver_phone_visible
    if receiver is not None and not message_fields.phone_is_compatible(receiver, facts.phone_number):
        return "the result names another phone"
    return ""


def _is_renamed(facts: Facts, result: messages.Result) -> bool:
    """Return True if a payment has Daraja's id of our request, and an id that cannot be another request of ours."""
    prefix = facts.originator_conversation_id.partition("-")[0] + "-"
    names_ours = (result.originator_conversation_id or "").startswith(prefix)
    same_conversation = facts.conversation_id != "" and result.conversation_id == facts.conversation_id
    return result.says_paid and same_conversation and not names_ours


def _paid_under_another_id(facts: Facts, result: messages.Result, trusted: bool, at: datetime) -> Action:
    """Keep a payment that has Daraja's id of our request but not our own id, and hold the payout.

    Daraja may have replaced our id. Then it does not notice duplicates, so nothing may be sent again, and a question
    under our id may find nothing. A person must check M-Pesa's statement.
    """
    if facts.state == "PAID":
        return Action("nothing", "paid already")
    report = _report(facts, result, at, "trusted" if trusted and _is_complete(result) else "untrusted")
    named = result.originator_conversation_id or "no id"
    return replace(
        report,
        outcome=f"held: paid as {named}, not as our id",
        hold_reason=f"M-Pesa says that it paid this request as {named}, not under our id. Check M-Pesa's statement.",
        alarm=f"Attempt {facts.attempt}: a result names our conversation id and the request {named}",
        level="critical",
    )


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
    status = answer.payment_status
    is_new = query.answer not in DECISIVE
    if trusted and _paid_another_amount(facts, answer):
        return Action("pay", "", receipt=answer.receipt or "", amount=answer.amount, keeps_answer=is_new)
    if wrong := _answer_mismatch(facts, answer):
        return _mismatch(facts, wrong, at)
    corroborated = bool(facts.paid_report) or any(other.answer == "completed" for other in others)
    if not trusted and not (status == "completed" and corroborated):
        return _untrusted_answer(facts, status, is_new, at, policy)
    if status == "completed":
        if answer.is_thin and not corroborated and facts.state != "PAID":
            return _ask_again(facts, is_new, at, policy)
        return Action("pay", "", receipt=answer.receipt or facts.receipt, keeps_answer=is_new)
    if status == "reversed":
        return _reversed(facts, is_new)
    return _weigh_no_payment(facts, query, others, status, is_new=is_new, at=at, policy=policy)


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


def _ask_again(facts: Facts, is_new: bool, at: datetime, policy: Policy) -> Action:
    """Ask again after an answer that says Completed without id, amount or receiver. A second source must agree."""
    step: Step = "doubt" if facts.state in UNDER_WAY else "ask" if facts.state == "FAILED" else "nothing"
    return Action(
        step,
        "in doubt: Completed without id, amount or receiver. A second query is due",
        ask_at=at + policy.query_gap if step != "nothing" else None,
        keeps_answer=is_new,
    )


def _reversed(facts: Facts, is_new: bool) -> Action:
    """Hold a payout whose payment M-Pesa reversed. Whether the member has the money is for a person to check."""
    return Action(
        "hold",
        "held: M-Pesa says that it reversed the payment",
        hold_reason="M-Pesa says that it reversed this payment. Check M-Pesa's statement before you pay again.",
        keeps_answer=is_new,
        alarm=f"Attempt {facts.attempt}: M-Pesa says that it reversed the payment",
        level="critical",
    )


def _paid_another_amount(facts: Facts, answer: messages.StatusAnswer) -> bool:
    """Return True if M-Pesa paid this id before we sent it, with another amount.

    A server that lost its last commits may settle again with other amounts, and sends under the same id. M-Pesa calls
    the new request a duplicate (`known_at`), or we asked before we sent it (`asked_first`). What M-Pesa paid under the
    id is then what left us.
    """
    may_be_older = facts.known_at is not None or facts.asked_first
    if answer.payment_status != "completed" or not may_be_older or facts.state == "PAID":
        return False
    receiver = answer.receiver_phone_visible
    return (
        answer.originator_conversation_id == facts.originator_conversation_id
        and answer.amount not in (None, facts.amount)
        and bool(answer.receipt)
        and receiver is not None
        and message_fields.phone_is_compatible(receiver, facts.phone_number)
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
            hold_reason="M-Pesa's result says paid, its records say failed. Check M-Pesa's statement.",
            keeps_answer=is_new,
            alarm=f"Attempt {facts.attempt}: its result says paid, the status queries say failed",
            level="critical",
        )
    code = facts.result_code if result_codes.meaning(facts.result_code).fault == "ours" else ""
    return Action("fail", "", code=code, words="M-Pesa's records say it failed", keeps_answer=is_new)


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
