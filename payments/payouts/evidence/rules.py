"""What we know of an attempt's fate, and what each piece of evidence does to the books.

    paid      a result that matches id, amount, phone and token; large ones also need a status query's word
    failed    a definite code in a callback and a status query that agrees; two status queries apart in time that agree;
              or an HTTP rejection where no POST of this id had ended in doubt
    in doubt  everything else: we ask, and send the same id again only within the resend horizon

Paid evidence beats failure evidence, whenever it comes: what M-Pesa did is recorded, never refused. What does not match
changes no state. The caller owns the database transaction. Lock order: Transaction, Attempt, Recovery, then wallets
(ledger).
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
# A second answer to one question may say more than the first; what these said stays.
DECISIVE = (StatusQuery.Verdict.COMPLETED, StatusQuery.Verdict.FAILED)

# Kept as an attempt's result code: a result says paid, and only waits for a query to agree; or it is not to be trusted
# so far (a strange address, or no amount), and then queries decide alone.
SAYS_PAID = "0"
MAY_SAY_PAID = "0?"

State = Attempt.State
Status = Transaction.Status


# --- what comes in ---------------------------------------------------------------------------------------------------


def hear_result(attempt_id: int, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
    """Apply the result of one attempt, in the caller's transaction, and say what came of it.

    Locks: Transaction, Attempt.
    """
    payout, attempt = attempts.locked(attempt_id)
    if wrong := _does_not_match(result, attempt):
        return _mismatch(attempt, wrong, at)
    if result.says_paid:
        believed = trusted and _is_complete(result)
        if (believed and attempt.amount < policy.confirm_above) or attempt.state == State.PAID:
            return booking.pay(payout, attempt, receipt=result.receipt or "", at=at, policy=policy)
        code = SAYS_PAID if believed else MAY_SAY_PAID
        return _claimed(attempt, result, "paid, to be confirmed by a status query", at, code)
    if attempt.state == State.PAID:
        alarm.warning("Attempt %s is paid; a result with code %s came after it", attempt, result.result_code)
        return "kept as paid: a failure after proof of payment changes nothing"
    if attempt.state == State.FAILED:
        return "failed already"
    if _never_left(attempt):
        alarm.error("A result with code %s for attempt %s, which never left us", result.result_code, attempt)
        return "nothing: this request never left us"
    if result_codes.meaning(result.result_code).definite and result.is_final:
        breakers.trip_by_code(result.result_code, reason=result.result_desc, at=at, policy=policy)
        return _claimed(attempt, result, "failed, to be confirmed by a status query", at)
    if trusted and result.is_final and result_codes.says_duplicate(result.result_code):
        attempts.is_known(attempt, at=at)
    attempt.result_words = f"{result.result_code} {result.result_desc}"[:300]
    attempts.doubt(attempt, ask_at=at + policy.query_after, at=at)
    return f"in doubt: code {result.result_code} proves nothing"


def is_plainly_paid(
    payout: Transaction, attempt: Attempt, result: messages.Result, *, trusted: bool, policy: Policy
) -> bool:
    """Whether `hear_result` would do nothing but pay the open request of a payout that is under way.

    Then many may be booked at once (paid.py); whatever else there is to a result, is weighed one by one. Both under
    lock.
    """
    return (
        payout.status == Status.PROCESSING
        and attempt.state in (State.SENDING, State.ACCEPTED, State.IN_DOUBT)
        and result.says_paid
        and not _does_not_match(result, attempt)
        and trusted
        and _is_complete(result)
        and attempt.amount < policy.confirm_above
    )


def _does_not_match(result: messages.Result, attempt: Attempt) -> str:
    """What a result has that is not the attempt's, in words; what it leaves out does not count."""
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


def hear_timeout(attempt_id: int, *, at: datetime, policy: Policy) -> str:
    """M-Pesa's queue gave up on a request, or says so: no proof of anything, so we ask.

    Locks: Transaction, Attempt.
    """
    _, attempt = attempts.locked(attempt_id)
    if attempt.state in (State.PAID, State.FAILED):
        return f"{attempt.state} already"
    if _never_left(attempt):
        return "nothing: this request never left us"
    attempts.doubt(attempt, ask_at=at + policy.query_after, at=at)
    return "in doubt: a queue timeout proves nothing"


def _never_left(attempt: Attempt) -> bool:
    """Whether every POST of it is known not to have left: then only proof of payment can mean anything."""
    return attempt.state == State.WAITING and attempt.first_sent_at is None


def hear_status(query_id: int, answer: messages.StatusAnswer, *, trusted: bool, at: datetime, policy: Policy) -> str:
    """Apply the answer to one status query, in the caller's transaction, and say what came of it.

    One that comes from an address that is not M-Pesa's proves nothing by itself: a failure never, a payment only beside
    another voice.

    Locks: Transaction, Attempt.
    """
    query = StatusQuery.objects.get(pk=query_id)
    payout, attempt = attempts.locked(query.attempt_id)
    if answer.originator_conversation_id not in (None, attempt.originator_conversation_id):
        return _mismatch(attempt, "the answer is about another request", at)
    if answer.payment_status == "completed" and answer.amount not in (None, attempt.amount):
        return _mismatch(attempt, f"the answer says {answer.amount} instead of {attempt.amount}", at)
    receiver = answer.receiver_phone_visible
    if answer.payment_status == "completed" and not (
        receiver is None or message_fields.phone_is_compatible(receiver, attempt.phone_number)
    ):
        return _mismatch(attempt, "the answer names another phone", at)
    if not trusted and (answer.payment_status != "completed" or not _corroborated(attempt, query)):
        alarm.error("An answer about attempt %s came from a strange address: %s", attempt, answer.payment_status)
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
        and (
            answer.payment_status == "failed"
            or (answer.payment_status == "not_found" and attempt.result_code not in (SAYS_PAID, MAY_SAY_PAID))
        )
    ):
        attempt.next_query_at = None
        attempt.save(update_fields=["next_query_at"])
        return "failed already, and M-Pesa says so again"
    if attempt.state in (State.PAID, State.FAILED):
        return f"{attempt.state} already"
    # A question asked before the latest POST says nothing about that POST.
    current = attempt.posted_at is None or query.asked_at >= attempt.posted_at
    if answer.payment_status == "failed" and current:
        return _weigh_failure(payout, attempt, at, policy)
    if answer.payment_status == "not_found" and current and attempt.result_code != SAYS_PAID:
        # Whatever else a callback claimed: within the horizon the same id is safe, for M-Pesa refuses it twice.
        # Where it said that it has had the id, sending that again could bring nothing but the same word.
        open_to_it = attempt.state == State.IN_DOUBT and attempt.known_at is None
        if open_to_it and attempts.within_horizon(attempt, at, policy):
            attempt.resend_at = at
            attempt.save(update_fields=["resend_at"])
            return "not found: the same request goes again"
    return f"in doubt: {answer.payment_status} proves nothing"


def _corroborated(attempt: Attempt, query: StatusQuery) -> bool:
    """Whether a result, or another query's answer, says as well that the attempt was paid."""
    others = attempt.queries.exclude(pk=query.pk).filter(verdict=StatusQuery.Verdict.COMPLETED)
    return attempt.result_code in (SAYS_PAID, MAY_SAY_PAID) or others.exists()


def _weigh_failure(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> str:
    """A status query says failed. It takes a second voice: a definite code in a callback, or another query, later."""
    if result_codes.meaning(attempt.result_code).definite:
        return attempts.fail(
            payout, attempt, code=attempt.result_code, words=attempt.result_words, at=at, policy=policy
        )
    asked = list(
        attempt.queries.filter(verdict=StatusQuery.Verdict.FAILED, asked_at__gte=attempt.posted_at or attempt.opened_at)
        .order_by("asked_at")
        .values_list("asked_at", flat=True)
    )
    if not asked:  # A stranger's word had come to the same address before: it is no voice at all.
        asked = [at]
    if asked[-1] - asked[0] >= policy.query_gap and attempt.result_code == SAYS_PAID:
        return _hold_contradiction(payout, attempt)
    if asked[-1] - asked[0] >= policy.query_gap:
        return attempts.fail(payout, attempt, code="", words="M-Pesa's records say it failed", at=at, policy=policy)
    again = asked[0] + policy.query_gap
    attempts.doubt(attempt, ask_at=max(again, at), at=at)
    return "in doubt: one status query says failed, a second one is due"


def _hold_contradiction(payout: Transaction, attempt: Attempt) -> str:
    """A result says paid, the queries say failed: a person must look; paid evidence is never overruled."""
    alarm.critical("Attempt %s: its result says paid, the status queries say failed", attempt)
    if payout.status == Status.PROCESSING:
        payout.status = Status.HELD
        payout.reason = "M-Pesa's result says paid, its records say failed: look at the statement."
        payout.save(update_fields=["status", "reason"])
    return "held: the result says paid, the queries say failed"


def _claimed(attempt: Attempt, result: messages.Result, what: str, at: datetime, code: str = "") -> str:
    """Keep what a callback claims and ask at once."""
    if attempt.result_code != SAYS_PAID:  # A claim that it was paid is not overruled by what comes after it.
        attempt.result_code = code or result.result_code[:20]
        attempt.result_words = result.result_desc[:300]
        attempt.receipt = (result.receipt or "")[:64]
    if attempt.state == State.FAILED:
        attempt.next_query_at = at
        attempt.save()
        return f"it had failed, and now claims to be {what}"
    attempt.resend_at = None
    attempts.doubt(attempt, ask_at=at, at=at)
    return f"claims to be {what}"


def _mismatch(attempt: Attempt, what: str, at: datetime) -> str:
    """What does not match changes no state; it is alarmed, and asked about where the fate is still open."""
    alarm.error("Mismatch on attempt %s: %s", attempt, what)
    if attempt.state in (State.SENDING, State.ACCEPTED, State.IN_DOUBT):
        attempt.next_query_at = at
        attempt.save(update_fields=["next_query_at"])
    return f"mismatch: {what}"


# --- outside production: the guide's plain callback ------------------------------------------------------------------


def hear_plain(
    result: messages.Result, *, at: datetime, policy: Policy, addresses: Addresses
) -> tuple[int | None, str] | None:
    """Apply a callback that names a payout by its external reference alone, in the caller's transaction.

    Only for trying things out: the edge offers it when MPESA_PRODUCTION is False. Returns the attempt and what came of
    it, or None where no payout has that reference. Where no attempt is open, one of kind manual is opened for it. A
    failure is believed only while no request can have reached M-Pesa.
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
        return attempt.pk, _claimed(attempt, result, "failed, to be confirmed by a status query", at)
    return attempt.pk, attempts.fail(
        payout, attempt, code=result.result_code, words=result.result_desc, at=at, policy=policy
    )
