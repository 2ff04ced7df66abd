"""Rules of evidence: how each message about an attempt changes the books.

    paid      A result that matches id, amount, phone and token. A large payment also needs a status query that agrees.
    failed    One of three:
              - a definite code in a callback, and a status query that agrees;
              - two status queries that agree, asked some time apart;
              - an HTTP rejection, if no POST of this id ended in doubt.
    in doubt  Everything else. We ask M-Pesa, and send the same id again only within the resend horizon.

Evidence of payment overrules evidence of failure at any time, because we record every payment that M-Pesa made. A
message that does not match its attempt changes no state.

The caller owns the database transaction. Lock order: Transaction, Attempt, Recovery, then wallets (ledger).
"""

import logging
from datetime import datetime

from payments.ledger import journal
from payments.models import Attempt, StatusQuery, Transaction
from payments.mpesa import message_fields, messages, result_codes
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts, breakers
from payments.payouts.evidence import booking
from payments.policy import Policy

alarm = logging.getLogger("kasoko.alarm")
# A later answer to the same status query never replaces one of these answers.
DECISIVE = (StatusQuery.Verdict.COMPLETED, StatusQuery.Verdict.FAILED)

PaidReport = Attempt.PaidReport
State = Attempt.State
Status = Transaction.Status


# --- results and timeouts --------------------------------------------------------------------------------------------


def apply_result(attempt_id: int, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
    """Apply the result of one attempt in the caller's transaction, and return the outcome in words.

    Locks: Transaction, Attempt.
    """
    payout, attempt = attempts.locked(attempt_id)
    if wrong := _result_mismatch(result, attempt):
        return _report_mismatch(attempt, wrong, at)
    if result.says_paid:
        believed = trusted and _is_complete(result)
        if (believed and attempt.amount < policy.confirm_above) or attempt.state == State.PAID:
            return booking.pay(payout, attempt, receipt=result.receipt or "", at=at, policy=policy)
        return _record_report(attempt, result, at, PaidReport.TRUSTED if believed else PaidReport.UNTRUSTED)
    if attempt.state == State.PAID:
        alarm.warning("Attempt %s is paid; a result with code %s came afterwards", attempt, result.result_code)
        return "still paid: a failure after proof of payment changes nothing"
    if attempt.state == State.FAILED:
        return "failed already"
    if _never_left(attempt):
        alarm.error("A result with code %s for attempt %s, which never left us", result.result_code, attempt)
        return "ignored: this request never left us"
    if result_codes.meaning(result.result_code).definite and result.is_final:
        breakers.trip_by_code(result.result_code, reason=result.result_desc, at=at, policy=policy)
        return _record_report(attempt, result, at)
    if trusted and result.is_final and result_codes.says_duplicate(result.result_code):
        attempts.mark_known(attempt, at=at)
    attempt.result_words = f"{result.result_code} {result.result_desc}"[:300]
    attempts.doubt(attempt, ask_at=at + policy.query_after, at=at)
    return f"in doubt: code {result.result_code} proves nothing"


def is_plainly_paid(
    payout: Transaction, attempt: Attempt, result: messages.Result, *, trusted: bool, policy: Policy
) -> bool:
    """Return True if `apply_result` would do nothing but book the payment of a payout that is under way.

    Such results are booked in bulk (booking.book). All other results are applied one at a time.
    Locks: none; the caller holds the Transaction and the Attempt.
    """
    return (
        payout.status == Status.PROCESSING
        and attempt.state in (State.SENDING, State.ACCEPTED, State.IN_DOUBT)
        and result.says_paid
        and not _result_mismatch(result, attempt)
        and trusted
        and _is_complete(result)
        and attempt.amount < policy.confirm_above
    )


def apply_timeout(attempt_id: int, *, at: datetime, policy: Policy) -> str:
    """Mark an attempt as in doubt after a queue timeout, which proves neither payment nor failure.

    Locks: Transaction, Attempt.
    """
    _, attempt = attempts.locked(attempt_id)
    if attempt.state in (State.PAID, State.FAILED):
        return f"{attempt.state} already"
    if _never_left(attempt):
        return "ignored: this request never left us"
    attempts.doubt(attempt, ask_at=at + policy.query_after, at=at)
    return "in doubt: a queue timeout proves nothing"


def _result_mismatch(result: messages.Result, attempt: Attempt) -> str:
    """Describe how a result contradicts its attempt, or return an empty string. A missing field is no mismatch."""
    if result.originator_conversation_id != attempt.originator_conversation_id:
        return "the result names another request"
    if not result.says_paid:
        return ""
    if result.amount not in (None, attempt.amount):
        return f"the result says {result.amount} instead of {attempt.amount}"
    receiver = result.receiver_phone_visible
    if receiver is not None and not message_fields.phone_is_compatible(receiver, attempt.phone_number):
        return "the result names another phone"
    return ""


def _is_complete(result: messages.Result) -> bool:
    return None not in (result.amount, result.receiver_phone_visible, result.receipt)


def _never_left(attempt: Attempt) -> bool:
    """Return True if no POST of the attempt left us. Then only proof of payment can change the attempt."""
    return attempt.state == State.WAITING and attempt.first_sent_at is None


# --- answers to status queries ---------------------------------------------------------------------------------------


def apply_status_answer(
    query_id: int, answer: messages.StatusAnswer, *, trusted: bool, at: datetime, policy: Policy
) -> str:
    """Apply the answer to one status query in the caller's transaction, and return the outcome in words.

    An answer from an address that is not M-Pesa's never proves a failure. Such an answer proves a payment only together
    with a second source.
    Locks: Transaction, Attempt.
    """
    query = StatusQuery.objects.get(pk=query_id)
    payout, attempt = attempts.locked(query.attempt_id)
    if wrong := _answer_mismatch(answer, attempt):
        return _report_mismatch(attempt, wrong, at)
    if not trusted and (answer.payment_status != "completed" or not _corroborated(attempt, query)):
        alarm.error(
            "An answer about attempt %s came from an address that is not M-Pesa's: %s", attempt, answer.payment_status
        )
        if attempt.state in (State.SENDING, State.ACCEPTED, State.IN_DOUBT):
            attempts.doubt(attempt, ask_at=at + policy.query_gap, at=at)
        if answer.payment_status == "completed" and query.verdict not in DECISIVE:
            query.verdict, query.answered_at = answer.payment_status, at
            query.save(update_fields=["verdict", "answered_at"])
        return f"in doubt: {answer.payment_status}, from an address that is not M-Pesa's"
    if query.verdict not in DECISIVE:
        query.verdict, query.answered_at = answer.payment_status, at
        query.save(update_fields=["verdict", "answered_at"])
    if answer.payment_status == "completed":
        return booking.pay(payout, attempt, receipt=answer.receipt or attempt.receipt, at=at, policy=policy)
    if (
        attempt.state == State.FAILED
        and attempt.next_query_at is not None
        and (answer.payment_status == "failed" or (answer.payment_status == "not_found" and not attempt.paid_report))
    ):
        attempt.next_query_at = None
        attempt.save(update_fields=["next_query_at"])
        return "failed already, and M-Pesa confirms it"
    if attempt.state in (State.PAID, State.FAILED):
        return f"{attempt.state} already"
    # The answer to a query that was asked before the latest POST says nothing about that POST.
    current = attempt.posted_at is None or query.asked_at >= attempt.posted_at
    if answer.payment_status == "failed" and current:
        return _weigh_failure(payout, attempt, at, policy)
    if answer.payment_status == "not_found" and current and attempt.paid_report != PaidReport.TRUSTED:
        # Within the horizon it is safe to send the same id again, because M-Pesa refuses a duplicate.
        # If M-Pesa has said that it has had the id, another POST could only bring the same answer.
        may_resend = attempt.state == State.IN_DOUBT and attempt.known_at is None
        if may_resend and attempts.within_horizon(attempt, at, policy):
            attempt.resend_at = at
            attempt.save(update_fields=["resend_at"])
            return "not found: the same request is sent again"
    return f"in doubt: {answer.payment_status} proves nothing"


def _answer_mismatch(answer: messages.StatusAnswer, attempt: Attempt) -> str:
    """Describe how an answer contradicts its attempt, or return an empty string. A missing field is no mismatch."""
    if answer.originator_conversation_id not in (None, attempt.originator_conversation_id):
        return "the answer is about another request"
    if answer.payment_status != "completed":
        return ""
    if answer.amount not in (None, attempt.amount):
        return f"the answer says {answer.amount} instead of {attempt.amount}"
    receiver = answer.receiver_phone_visible
    if receiver is not None and not message_fields.phone_is_compatible(receiver, attempt.phone_number):
        return "the answer names another phone"
    return ""


def _corroborated(attempt: Attempt, query: StatusQuery) -> bool:
    """Return True if a result, or the answer to another query, also reports that the attempt was paid."""
    others = attempt.queries.exclude(pk=query.pk).filter(verdict=StatusQuery.Verdict.COMPLETED)
    return bool(attempt.paid_report) or others.exists()


def _weigh_failure(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> str:
    """Fail an attempt that a status query reports as failed if a second source agrees. Otherwise ask again.

    The second source is a definite code in a callback, or another query, asked at least `query_gap` earlier or later.
    """
    if result_codes.meaning(attempt.result_code).definite:
        return attempts.fail(
            payout, attempt, code=attempt.result_code, words=attempt.result_words, at=at, policy=policy
        )
    asked = list(
        attempt.queries.filter(verdict=StatusQuery.Verdict.FAILED, asked_at__gte=attempt.posted_at or attempt.opened_at)
        .order_by("asked_at")
        .values_list("asked_at", flat=True)
    )
    if not asked:  # The stored answer to this query is an untrusted caller's and cannot be replaced.
        asked = [at]
    if asked[-1] - asked[0] >= policy.query_gap and attempt.paid_report == PaidReport.TRUSTED:
        return _hold_contradiction(payout, attempt)
    if asked[-1] - asked[0] >= policy.query_gap:
        return attempts.fail(payout, attempt, code="", words="M-Pesa's records say it failed", at=at, policy=policy)
    again = asked[0] + policy.query_gap
    attempts.doubt(attempt, ask_at=max(again, at), at=at)
    return "in doubt: one status query says failed, a second query is due"


def _hold_contradiction(payout: Transaction, attempt: Attempt) -> str:
    """Hold a payout for a person, because its result says paid and the status queries say failed."""
    alarm.critical("Attempt %s: its result says paid, the status queries say failed", attempt)
    if payout.status == Status.PROCESSING:
        payout.status = Status.HELD
        payout.reason = "M-Pesa's result says paid, its records say failed. Check M-Pesa's statement."
        payout.save(update_fields=["status", "reason"])
    return "held: the result says paid, the queries say failed"


# --- reports that prove nothing alone --------------------------------------------------------------------------------


def _record_report(attempt: Attempt, result: messages.Result, at: datetime, paid_report: str = PaidReport.NONE) -> str:
    """Store a callback's report on the attempt and make a status query due now.

    No later report replaces a trusted report of payment.
    """
    if attempt.paid_report != PaidReport.TRUSTED:
        attempt.result_code = result.result_code[:20]
        attempt.paid_report = paid_report
        attempt.result_words = result.result_desc[:300]
        attempt.receipt = (result.receipt or "")[:64]
    reported = f"reported {'paid' if paid_report else 'failed'}: a status query must confirm it"
    if attempt.state == State.FAILED:
        attempt.next_query_at = at
        attempt.save()
        return f"failed before, and now {reported}"
    attempt.resend_at = None
    attempts.doubt(attempt, ask_at=at, at=at)
    return reported


def _report_mismatch(attempt: Attempt, words: str, at: datetime) -> str:
    """Raise an alarm about a message that does not match its attempt. If the attempt is open, ask M-Pesa now."""
    alarm.error("Mismatch on attempt %s: %s", attempt, words)
    if attempt.state in (State.SENDING, State.ACCEPTED, State.IN_DOUBT):
        attempt.next_query_at = at
        attempt.save(update_fields=["next_query_at"])
    return f"mismatch: {words}"


# --- the guide's plain callback, outside production ------------------------------------------------------------------


def apply_plain_result(
    result: messages.Result, *, at: datetime, policy: Policy, addresses: Addresses
) -> tuple[int | None, str] | None:
    """Apply a callback that names a payout by its external reference alone, in the caller's transaction.

    This is only for trying the system out: the endpoint exists only when MPESA_PRODUCTION is False. Returns the
    attempt's id and the outcome in words, or None if no payout has that reference. If the payout has no open attempt,
    an attempt of kind manual is opened. A failure is believed only while no request can have reached M-Pesa.
    Locks: Transaction, Attempt.
    """
    payout = (
        Transaction.objects.select_for_update(no_key=True, of=("self",))
        .filter(external_ref=result.external_reference or "", destination=Transaction.Destination.MPESA)
        .first()
    )
    if payout is None:
        return None
    attempt = attempts.open_attempt(payout) or payout.attempts.order_by("number").last()
    if result.amount not in (None, payout.amount):
        alarm.error("Mismatch on %s: a plain callback says %s", payout, result.amount)
        return (
            attempt.pk if attempt else None
        ), f"mismatch: the result says {result.amount} instead of {payout.amount}"
    if attempt is None or attempt.state not in Attempt.OPEN:
        if journal.owed(payout.pk) != payout.amount:
            return (attempt.pk if attempt else None), f"{payout.status} already"
        attempt = attempts.new_attempt(
            payout, attempt.number + 1 if attempt else 1, at, policy, addresses, kind=Attempt.Kind.MANUAL
        )
        attempt.first_sent_at = attempt.next_query_at = None
        attempt.save()
        sent = journal.Entry(f"send:{attempt.pk}", journal.PAYABLE, journal.IN_FLIGHT, attempt.amount, payout.pk)
        journal.post([sent], at=at)
    if result.result_code == "0":
        return attempt.pk, booking.pay(payout, attempt, receipt=result.receipt or "", at=at, policy=policy)
    if attempt.first_sent_at is not None:
        return attempt.pk, _record_report(attempt, result, at)
    return attempt.pk, attempts.fail(
        payout, attempt, code=result.result_code, words=result.result_desc, at=at, policy=policy
    )
