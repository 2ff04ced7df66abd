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
from payments.payouts.evidence.records import UNDER_WAY, Action, Facts
from payments.policy import Policy

CONTRADICTION = "M-Pesa's result says paid, its records say failed. Check M-Pesa's statement."

# --- results and timeouts --------------------------------------------------------------------------------------------


def weigh_result(facts: Facts, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> Action:
    """Weigh the result of one attempt."""
    if facts.state == "REVERSED" and not (result.says_paid and names_another_receipt(facts, result.receipt)):
        return Action("nothing", "reversed already")
    if wrong := _result_mismatch(facts, result):
        return mismatch(facts, wrong, at)
    if result.originator_conversation_id != facts.originator_conversation_id:
        return _paid_under_another_id(facts, result, trusted, at)
    if result.says_paid:
        believed = trusted and _is_complete(result)
        if facts.state in ("PAID", "REVERSED"):
            return _paid_again(facts, result, trusted, at, policy)
        if believed and facts.amount < policy.confirm_above:
            return Action("pay", "", receipt=result.receipt or "")
        return _report(facts, result, at, "trusted" if believed else "untrusted")
    if facts.state == "PAID" and facts.decision and trusted and _proves_failure(result):
        return contradict(facts, at, code=result.result_code, words=result.result_desc)
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
    if _proves_failure(result):
        return _report(facts, result, at, "")
    # A fault of ours stays known, so that a failure proven later fails no winner. It replaces no other report. A
    # definite code of a message that is not final is not kept, because it would count as a source of the failure.
    meaning = result_codes.meaning(result.result_code)
    ours = meaning.fault == "ours"
    kept = facts.paid_report or meaning.definite or result_codes.meaning(facts.result_code).definite
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
    if facts.state in ("PAID", "FAILED", "REVERSED"):
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
    if facts.state in ("PAID", "REVERSED"):
        return Action("nothing", f"{facts.state} already")
    report = _report(facts, result, at, "trusted" if trusted and _is_complete(result) else "untrusted")
    named = result.originator_conversation_id or "no id"
    return replace(
        report,
        outcome=f"held: paid as {named}, not as our id",
        hold_reason=f"M-Pesa says that it paid this request as {named}, not under our id. Check M-Pesa's statement.",
        alarm=f"Attempt {facts.attempt}: a result names our conversation id and the request {named}",
        level="critical",
    )


def _paid_again(facts: Facts, result: messages.Result, trusted: bool, at: datetime, policy: Policy) -> Action:
    """Weigh a further report that a booked payment was paid.

    It confirms a person's decision if it would prove the payment. With another receipt it is a second payment, which
    needs the same proof as the first one.
    """
    is_proof = trusted and _is_complete(result) and facts.amount < policy.confirm_above
    if facts.decision and not is_proof:
        return Action("ask", "decided as paid by staff: a status query must confirm it", ask_at=at)
    if facts.decision or is_proof or not names_another_receipt(facts, result.receipt):
        # The receipt of a payment that has none yet comes from M-Pesa only.
        is_known = trusted or facts.receipt
        return Action("pay", "", receipt=(result.receipt or "") if is_known else "")
    if not trusted:
        return Action(
            "nothing",
            f"a second receipt {result.receipt} is reported, not proven",
            alarm=f"Attempt {facts.attempt}: an unproven message names a second receipt {result.receipt}",
            level="error",
        )
    return Action(
        "ask_second",
        f"a second receipt {result.receipt} is reported: a status query must confirm it",
        receipt=result.receipt or "",
        alarm=f"Attempt {facts.attempt} has a second receipt {result.receipt}, besides {facts.receipt}. We ask M-Pesa",
        level="error",
    )


def names_another_receipt(facts: Facts, receipt: str | None) -> bool:
    """Return True if the receipt is not the one with which the attempt was paid."""
    return bool(facts.receipt and receipt) and (receipt or "").upper() != facts.receipt.upper()


def _proves_failure(result: messages.Result) -> bool:
    """Return True if the result has a definite code. Together with a second source it proves a failure."""
    return result_codes.meaning(result.result_code).definite and result.is_final


def contradict(facts: Facts, at: datetime, *, code: str = "", words: str = "", keeps_answer: bool = False) -> Action:
    """Take back a payment that a person decided and that M-Pesa contradicts. M-Pesa's word ranks above a person's."""
    return Action(
        "contradict",
        "held: M-Pesa contradicts the decision that it was paid",
        ask_at=at,
        code=code,
        words=words,
        hold_reason="Staff decided that it was paid, and M-Pesa contradicts this. Check M-Pesa's statement again.",
        keeps_answer=keeps_answer,
        alarm=f"Attempt {facts.attempt}: staff decided that it was paid, and M-Pesa contradicts this",
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


def mismatch(facts: Facts, wrong: str, at: datetime) -> Action:
    """Alarm about a message that does not match its attempt. If the attempt is open, ask M-Pesa now."""
    asks = facts.state in UNDER_WAY
    return Action(
        "ask" if asks else "nothing",
        f"mismatch: {wrong}",
        ask_at=at if asks else None,
        alarm=f"Mismatch on attempt {facts.attempt}: {wrong}",
        level="error",
    )
