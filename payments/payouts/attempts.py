"""State changes of attempts and their payouts.

Every change is here, except payments (evidence/booking), new payouts (settling) and undone payouts (undo). The caller
owns the database transaction and holds the Transaction, then the Attempt.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import connection

from payments import named_sql
from payments.ledger import journal, receivables
from payments.models import Attempt, Transaction
from payments.mpesa import result_codes
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import attempt_limit, breakers, day_limit
from payments.policy import Policy

alarm = logging.getLogger("kasoko.alarm")

State = Attempt.State
Status = Transaction.Status
_SQL = named_sql.beside(__file__)
_INSERT_ATTEMPTS, _ACCEPT = _SQL["insert_attempts"], _SQL["accept"]


def locked(attempt_id: int) -> tuple[Transaction, Attempt]:
    """Lock and return an attempt's transaction and the attempt.

    Locks: Transaction, then Attempt.
    """
    payout = Transaction.objects.select_for_update(no_key=True, of=("self",)).get(attempts=attempt_id)
    attempt = Attempt.objects.select_for_update(no_key=True, of=("self",)).get(pk=attempt_id)
    attempt.transaction = payout
    return payout, attempt


def open_attempt(payout: Transaction) -> Attempt | None:
    """Lock and return the payout's open attempt, or return None if it has no open attempt."""
    return payout.attempts.select_for_update(no_key=True, of=("self",)).filter(state__in=Attempt.OPEN).first()


def within_horizon(attempt: Attempt, at: datetime, policy: Policy) -> bool:
    """Return True if the attempt's id may still be sent again.

    M-Pesa does not publish how long it remembers an id. We therefore send an id again for a limited time only. After a
    restore two people may give an attempt this time once more (`cleared_at`).
    """
    first = attempt.first_sent_at
    return first is None or at < max(first, attempt.cleared_at or first) + policy.resend_horizon


# --- sending ---------------------------------------------------------------------------------------------------------


def new_attempt(
    payout: Transaction, number: int, at: datetime, policy: Policy, addresses: Addresses, kind: str = Attempt.Kind.B2C
) -> Attempt:
    """Return a new attempt to pay a payout, in state SENDING and not saved yet."""
    ocid = f"{payout.external_ref}-{number}"
    return Attempt(
        transaction=payout,
        settlement_id=payout.settlement_id,
        number=number,
        kind=kind,
        originator_conversation_id=ocid,
        token_hash=token_hash(addresses.token(ocid)),
        amount=payout.amount,
        phone_number=payout.receiver,
        state=State.SENDING,
        opened_at=at,
        posted_at=at,
        first_sent_at=at,
        next_query_at=at + policy.query_after,
        counted_on=day_limit.day_of(at) if kind == Attempt.Kind.B2C else None,
    )


def open_many(opened: Sequence[Attempt], *, at: datetime) -> None:
    """Insert attempts from `new_attempt`, all opened at `at`, set their ids, and move their amounts to in-flight."""
    if not opened:
        return
    columns: dict[str, Any] = {
        "payouts": [attempt.transaction_id for attempt in opened],
        "numbers": [attempt.number for attempt in opened],
        "ids": [attempt.originator_conversation_id for attempt in opened],
        "hashes": [attempt.token_hash for attempt in opened],
        "kind": opened[0].kind,
        "state": opened[0].state,
        "at": at,
        "ask_at": opened[0].next_query_at,
        "counted_on": opened[0].counted_on,
    }
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_ATTEMPTS, columns)
        ids = dict(cursor.fetchall())
    for attempt in opened:
        attempt.pk = ids[attempt.transaction_id]
    journal.post(map(sent, opened), at=at)


def open_manual(payout: Transaction, number: int, at: datetime, policy: Policy, addresses: Addresses) -> Attempt:
    """Open an attempt that was never POSTed, for a message about a payout without an open request."""
    attempt = new_attempt(payout, number, at, policy, addresses, kind=Attempt.Kind.MANUAL)
    attempt.first_sent_at = attempt.next_query_at = None
    attempt.save()
    journal.post([sent(attempt)], at=at)
    return attempt


def sent(attempt: Attempt) -> journal.Entry:
    """Return the entry that moves an attempt's amount from payable to in-flight."""
    accounts = (journal.PAYABLE, journal.IN_FLIGHT)
    return journal.Entry(f"send:{attempt.pk}", *accounts, attempt.amount, attempt.transaction_id)


def start(transaction_ids: Sequence[int]) -> None:
    """Mark claimed payouts as PROCESSING."""
    Transaction.objects.filter(pk__in=transaction_ids).update(status=Status.PROCESSING, reason="")


def resend(attempt: Attempt, *, at: datetime, policy: Policy) -> None:
    """Mark a waiting or doubtful attempt as SENDING, so that the caller POSTs the same id again."""
    attempt.state, attempt.posted_at, attempt.resend_at = State.SENDING, at, None
    attempt.counted_on = day_limit.day_of(at)
    attempt.first_sent_at = attempt.first_sent_at or at
    attempt.next_query_at = at + policy.query_after
    attempt.save()


def accept(attempt: Attempt) -> None:
    """Mark an attempt as queued at Daraja. Its first status query stays due `query_after` after the POST."""
    attempt.state = State.ACCEPTED
    attempt.save()


def accept_many(
    *, transaction_ids: Sequence[int], attempt_ids: Sequence[int], conversation_ids: Sequence[str]
) -> dict[int, datetime]:
    """Mark attempts that are still SENDING as queued at Daraja, and return when each of them was POSTed.

    Locks: the Transactions by id (skipping locked ones), then the Attempts. The caller's commit does not wait for the
    disk.
    """
    parameters: dict[str, Any] = {
        "payouts": list(transaction_ids),
        "attempts": list(attempt_ids),
        "conversations": [conversation_id[:64] for conversation_id in conversation_ids],
    }
    with connection.cursor() as cursor:
        cursor.execute(_ACCEPT, parameters)
        return dict(cursor.fetchall())


def wait(payout: Transaction, attempt: Attempt, *, due_at: datetime, reason: str, may_have_left: bool) -> None:
    """Make a payout pending again after a request that Daraja did not execute.

    The attempt stays open, so the same id is sent again. If this POST did not leave us and no earlier one did, the
    attempt counts as never sent.
    """
    attempt.state, attempt.next_query_at = State.WAITING, None
    if not may_have_left and attempt.first_sent_at == attempt.posted_at:
        attempt.first_sent_at = None
    attempt.save()
    make_pending(payout, due_at=due_at, reason=reason)


# --- doubt and failure -----------------------------------------------------------------------------------------------


def doubt(attempt: Attempt, *, ask_at: datetime, at: datetime, words: str = "", code: str = "") -> None:
    """Mark an attempt as in doubt, with a status query due at `ask_at` at the latest.

    `words` and `code` replace those of the latest result, if given. Words without a code do not replace the words of a
    result, because the two are read together.
    A pending payout becomes PROCESSING. If it stayed pending, it would be sent again.
    """
    if code or not attempt.result_code:
        attempt.result_words = words[:300] or attempt.result_words
    attempt.result_code = code[:20] or attempt.result_code
    attempt.state = State.IN_DOUBT
    attempt.doubted_at = attempt.doubted_at or at
    attempt.next_query_at = min(attempt.next_query_at or ask_at, ask_at)
    attempt.save()
    Transaction.objects.filter(pk=attempt.transaction_id, status=Status.PENDING).update(status=Status.PROCESSING)


def ask(attempt: Attempt, *, next_query_at: datetime, at: datetime) -> None:
    """Mark an attempt that is asked about now as in doubt if it was under way. The next query is at `next_query_at`."""
    if attempt.state in (State.SENDING, State.ACCEPTED):
        attempt.state, attempt.doubted_at = State.IN_DOUBT, attempt.doubted_at or at
    attempt.next_query_at = next_query_at
    attempt.save()


def keep_report(attempt: Attempt, paid_report: str, code: str, words: str, receipt: str, *, at: datetime) -> None:
    """Keep a callback's report on the attempt, and make a status query due now."""
    attempt.result_code, attempt.result_words, attempt.receipt = code[:20], words[:300], receipt[:64]
    attempt.paid_report = paid_report
    if attempt.state == State.FAILED:
        attempt.next_query_at = at
        attempt.save()
    else:
        attempt.resend_at = None
        doubt(attempt, ask_at=at, at=at)


def ask_at(attempt: Attempt, at: datetime | None) -> None:
    """Make the next status query due at `at`, or never if `at` is None."""
    attempt.next_query_at = at
    attempt.save(update_fields=["next_query_at"])


def resend_at(attempt: Attempt, at: datetime | None) -> None:
    """Let the same id be sent again from `at`, or not at all if `at` is None."""
    attempt.resend_at = at
    attempt.save(update_fields=["resend_at"])


def mark_decided(attempt: Attempt, decision: str, *, ask_at: datetime | None) -> None:
    """Record that a person decided the result, to be confirmed by M-Pesa. "" means that M-Pesa has confirmed it."""
    attempt.decision, attempt.next_query_at = decision, ask_at
    attempt.save(update_fields=["decision", "next_query_at"])


def mark_known(attempt: Attempt, *, at: datetime) -> None:
    """Record that M-Pesa has received a request with this id.

    From now on we only ask about the id and never send it again.
    """
    attempt.known_at, attempt.resend_at = attempt.known_at or at, None
    attempt.save(update_fields=["known_at", "resend_at"])


def fail(
    payout: Transaction,
    attempt: Attempt,
    *,
    code: str,
    words: str,
    at: datetime,
    policy: Policy,
    is_ours: bool = False,
) -> str:
    """Mark an attempt as proven failed, return its amount to payable, and return the callback's outcome in words.

    A fault of ours (`is_ours`, or by its code) makes the payout pending again. So does the member's limit of the day at
    M-Pesa, from the next day in Nairobi. Then a HELD payout stays HELD. Every other fault makes the payout FAILED.
    After `policy.max_attempts` failed requests the payout is HELD instead.
    Locks: the member's DayTotal, wallets if the debt is set off, then Breakers. The caller holds the Transaction and
    the Attempt.
    """
    _close_failed(payout, attempt, code=code, words=words, at=at)
    paid_after_all = payout.attempts.filter(state=State.PAID, phone_number=payout.receiver).order_by("number").last()
    if paid_after_all is not None:
        outcome = _set_off(payout, paid_after_all, at)
    elif receivables.was_recalled(payout.pk):
        outcome = _cancel(payout, at)
    else:
        outcome = f"failed: {payout.reason}"
        _continue_or_fail(payout, attempt, code=code, at=at, policy=policy, is_ours=is_ours)
    # A request that was found again says nothing about M-Pesa's state of today.
    if attempt.first_sent_at is not None and attempt.kind != Attempt.Kind.FOUND:
        breakers.failed(attempt.posted_at, at=at)
        breakers.trip_by_code(code, reason=words, at=at, policy=policy)
    return outcome


def _continue_or_fail(
    payout: Transaction, attempt: Attempt, *, code: str, at: datetime, policy: Policy, is_ours: bool
) -> None:
    """Send the payout again later if its failure was not the member's. Otherwise mark the payout as FAILED."""
    meaning = result_codes.meaning(code)
    is_ours = is_ours or meaning.fault == "ours"
    if payout.status == Status.PROCESSING and (reason := attempt_limit.reached(payout, attempt, policy)):
        hold(payout, reason=f"{reason} The latest answer: {payout.reason}")
        alarm.error("Transaction %s is held: %s", payout.pk, reason)
    elif payout.status == Status.PROCESSING and meaning.waits_for_next_day:
        make_pending(payout, due_at=day_limit.next_day(at), reason=f"{meaning.words} It leaves on the next day.")
    elif payout.status == Status.HELD and (is_ours or meaning.waits_for_next_day):
        # Other evidence may report a payment, so only a person lets the payout leave again.
        reason = f"Its request failed, and the member's number is not at fault. Retry it. {payout.reason}"
        hold(payout, reason=reason, by_person=payout.held_by_person)
    elif is_ours and payout.status == Status.PROCESSING:
        # While a breaker is open, a payout must be due for each probe.
        due_at = at + min(policy.retry_after * 2 ** min(attempt.number, 10), policy.breaker_longest_pause)
        make_pending(payout, due_at=due_at, reason=payout.reason)
    else:
        payout.status, payout.failed_at = Status.FAILED, at
        payout.save(update_fields=["status", "reason", "failed_at"])


def close_lost(payout: Transaction, attempt: Attempt, *, words: str, at: datetime) -> None:
    """Close an open attempt as failed, because a later request had left. Locks: the member's DayTotal."""
    _close_failed(payout, attempt, code="", words=words, at=at)


def fail_and_hold(payout: Transaction, attempt: Attempt, *, code: str, words: str, reason: str, at: datetime) -> None:
    """Mark an attempt as proven failed, and hold its payout for a person. Locks: the member's DayTotal."""
    _close_failed(payout, attempt, code=code, words=words, at=at)
    hold(payout, reason=reason)


def _close_failed(payout: Transaction, attempt: Attempt, *, code: str, words: str, at: datetime) -> None:
    """Close an attempt as failed, and move its amount back from in-flight to payable."""
    attempt.state, attempt.closed_at, attempt.next_query_at, attempt.resend_at = State.FAILED, at, None, None
    attempt.result_code, attempt.result_words = code[:20], words[:300]
    attempt.paid_report = Attempt.PaidReport.NONE
    attempt.save()
    day_limit.give_back(attempt, payout.user_id)
    entry = journal.Entry(f"return:{attempt.booking}", journal.IN_FLIGHT, journal.PAYABLE, attempt.amount, payout.pk)
    journal.post([entry], at=at)
    if payout.status == Status.PENDING:  # The request waited to be sent again, or staff recorded the attempt.
        payout.status = Status.PROCESSING
        payout.save(update_fields=["status"])
    payout.reason = f"{code} {words}".strip()[:300]


def _set_off(payout: Transaction, paid_after_all: Attempt, at: datetime) -> str:
    """Set the payout off against the member's debt, and complete the payout. Returns the callback's outcome in words.

    The member owes us this debt, because an earlier attempt was paid after all.
    """
    wallet, receivable = journal.wallet(payout.user_id), journal.receivable(payout.user_id)
    owed, written_off = receivables.record_repayment(
        settlement_id=payout.settlement_id, user_id=payout.user_id, amount=payout.amount
    )
    parts = [
        journal.Entry(f"redirect:{payout.pk}", journal.PAYABLE, wallet, payout.amount, payout.pk),
        journal.Entry(f"setoff:{paid_after_all.pk}", wallet, receivable, owed, payout.pk),
        journal.Entry(f"unwrite:{payout.pk}", wallet, journal.BAD_DEBT, written_off, payout.pk),
    ]
    journal.post([part for part in parts if part.amount > 0], at=at)
    payout.status, payout.completed_at, payout.receipt = Status.COMPLETED, at, paid_after_all.receipt
    payout.reason = f"Paid by the earlier request {paid_after_all}, which we had recorded as failed."
    payout.save(update_fields=["status", "completed_at", "receipt", "reason"])
    return "failed; an earlier request had paid, so the debt is settled"


def cancel_if_recalled(payout: Transaction, *, at: datetime) -> str:
    """Cancel a held payout whose settlement was undone. Return the outcome in words, else ""."""
    return _cancel(payout, at) if receivables.was_recalled(payout.pk) else ""


def _cancel(payout: Transaction, at: datetime) -> str:
    """Cancel a payout that is proven unpaid. Its settlement was undone while the payout was under way."""
    receivables.reverse_recall(payout, at=at)
    if payout.status == Status.PROCESSING:
        payout.status = Status.FAILED
        payout.save(update_fields=["status"])
    payout.status = Status.CANCELLED
    payout.reason = f"Its settlement was undone, and it was not paid: {payout.reason}"[:300]
    payout.save(update_fields=["status", "reason"])
    return "failed, and cancelled: its settlement was undone"


# --- the payout ------------------------------------------------------------------------------------------------------


def make_pending(payout: Transaction, *, due_at: datetime, reason: str = "") -> None:
    """Make a payout pending, to leave at `due_at` at the earliest, and not before the hold of a changed phone ends."""
    payout.status, payout.due_at, payout.failed_at = Status.PENDING, payout.user.money_may_leave_at(due_at), None
    payout.reason, payout.held_by_person = reason[:300], False
    payout.save(update_fields=["status", "due_at", "failed_at", "reason", "held_by_person"])


def hold(payout: Transaction, *, reason: str, by_person: bool = False) -> None:
    """Hold a payout until a person acts on it. If a person holds it (`by_person`), only a release ends the hold."""
    if payout.status == Status.FAILED:  # The table of transitions leads from FAILED to HELD over PENDING.
        make_pending(payout, due_at=payout.due_at)
    payout.status, payout.reason, payout.held_by_person = Status.HELD, reason[:300], by_person
    payout.save(update_fields=["status", "reason", "held_by_person"])


def end_hold_unsent(payout: Transaction, *, reason: str, at: datetime) -> None:
    """Make a held payout FAILED instead of pending, because it must not be sent as it is."""
    payout.status, payout.failed_at, payout.reason, payout.held_by_person = Status.FAILED, at, reason[:300], False
    payout.save(update_fields=["status", "failed_at", "reason", "held_by_person"])


def reissue(payout: Transaction, *, phone_number: str, at: datetime) -> None:
    """Let the next request of a payout go to another number, and make the payout pending."""
    payout.reissued_to = phone_number
    payout.save(update_fields=["reissued_to"])
    make_pending(payout, due_at=at)


def complete_in_wallet(payout: Transaction, *, at: datetime) -> None:
    """Pay a payout into the member's wallet instead of over M-Pesa, and complete the payout.

    Locks: the wallet.
    """
    wallet = journal.wallet(payout.user_id)
    journal.post([journal.Entry(f"redirect:{payout.pk}", journal.PAYABLE, wallet, payout.amount, payout.pk)], at=at)
    payout.status, payout.completed_at, payout.redirected_at = Status.COMPLETED, at, at
    payout.reason = "Paid into the wallet instead."
    payout.save(update_fields=["status", "completed_at", "redirected_at", "reason"])
