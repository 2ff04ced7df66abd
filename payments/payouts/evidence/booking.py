"""Booking of proven payments, one at a time or in bulk.

`pay` books one payment, whatever the state of its attempt. `book` books many results that are plainly paid
(rules.is_plainly_paid) in a few statements, and writes the same rows as `pay`. Both functions build their entries with
`payment_entries`.
The caller owns the database transaction and holds the locks.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db import connection

from payments.ledger import journal, receivables
from payments.models import Attempt, Orphan, Transaction, Transfer
from payments.mpesa import tariff
from payments.payouts import attempts, breakers, day_limit
from payments.payouts.evidence import second_receipts
from payments.policy import Policy
from users import figures

alarm = logging.getLogger("kasoko.alarm")

State = Attempt.State
Status = Transaction.Status

_CLOSE_ATTEMPTS = """
    UPDATE payments_attempt a
    SET state = 'PAID', receipt = proof.receipt, closed_at = %(at)s, next_query_at = NULL, resend_at = NULL
    FROM unnest(%(attempts)s::bigint[], %(receipts)s::text[]) AS proof (attempt_id, receipt)
    WHERE a.id = proof.attempt_id
"""
_COMPLETE_PAYOUTS = """
    UPDATE payments_transaction t
    SET status = 'COMPLETED', completed_at = %(at)s, receipt = proof.receipt, reason = ''
    FROM unnest(%(payouts)s::bigint[], %(receipts)s::text[]) AS proof (payout_id, receipt)
    WHERE t.id = proof.payout_id
"""


@dataclass(frozen=True)
class Proof:
    """Proof that an open attempt was paid: the attempt, its member and M-Pesa's receipt."""

    attempt: Attempt
    user_id: int
    receipt: str


def book(proofs: Sequence[Proof], *, at: datetime) -> None:
    """Book many proven payments in bulk and complete their payouts. Each proof is for a different payout.

    Writes the same rows that `pay` writes for each of these payments.
    Locks: none further; the caller holds the Transactions and the Attempts.
    """
    if not proofs:
        return
    columns: dict[str, Any] = {
        "attempts": [proof.attempt.pk for proof in proofs],
        "payouts": [proof.attempt.transaction_id for proof in proofs],
        "receipts": [proof.receipt[:64] for proof in proofs],
        "at": at,
    }
    with connection.cursor() as cursor:
        cursor.execute(_CLOSE_ATTEMPTS, columns)
        cursor.execute(_COMPLETE_PAYOUTS, columns)
    journal.post([entry for proof in proofs for entry in payment_entries(proof.user_id, proof.attempt, at=at)], at=at)
    posted = (proof.attempt.posted_at for proof in proofs if proof.attempt.posted_at)
    breakers.paid(max(posted, default=None), at=at)


def pay(
    payout: Transaction,
    attempt: Attempt,
    *,
    receipt: str,
    amount: Decimal | None = None,
    phone_number: str = "",
    at: datetime,
    policy: Policy,
) -> str:
    """Book proof of payment for one attempt, and return the outcome in words.

    `amount` is what M-Pesa paid, if it is not the attempt's amount. A shortfall goes to the wallet. An excess becomes a
    receivable from the member. `phone_number` is the number that M-Pesa paid, if it is not the attempt's. Unless it is
    the member's present number, the payment is misdirected.

    Never refuses: M-Pesa made the payment, so it is recorded in any state of the attempt. If our debt was already
    settled in another way, the payment becomes a receivable from the member.
    """
    if attempt.state in (State.PAID, State.REVERSED):
        return _pay_again(payout, attempt, receipt[:64], at=at)
    in_suspense = suspended(attempt)
    if in_suspense is not None:
        receipt, amount = in_suspense.receipt, in_suspense.amount
    receipt = receipt[:64]
    late = attempt.state == State.FAILED
    attempt.phone_number = phone_number or attempt.phone_number
    if attempt.phone_number != payout.receiver and (late or attempt.phone_number != payout.user.phone_number):
        return _book_misdirected(payout, attempt, receipt, amount, at)
    other_open = late and payout.attempts.filter(state__in=Attempt.OPEN).exists()
    debt_open = not late or (not other_open and journal.owed(payout.pk) == payout.amount)
    attempt.state, attempt.receipt, attempt.closed_at, attempt.next_query_at = State.PAID, receipt, at, None
    attempt.resend_at, attempt.decision = None, Attempt.Decision.NONE
    attempt.paid_amount = None if amount == attempt.amount else amount
    attempt.save()
    if late:
        day_limit.count_paid_late(attempt, payout.user_id)
    else:
        _count_lost(payout, attempt)
    source = journal.SUSPENSE if in_suspense else journal.MPESA_UTILITY
    _book_payment(payout, attempt, source=source, reopen=late and debt_open, debt_open=debt_open, at=at)
    if late:
        alarm.critical("Attempt %s was recorded as failed and was paid after all", attempt)
    if attempt.paid_amount is not None:
        alarm.critical("Attempt %s: M-Pesa paid %s instead of %s", attempt, attempt.paid_amount, attempt.amount)
    if debt_open:
        payout.status, payout.completed_at = Status.COMPLETED, at
        payout.receipt, payout.reason = receipt, ""
        payout.save(update_fields=["status", "completed_at", "receipt", "reason"])
        return "paid"
    waiting = payout.attempts.filter(state=State.WAITING, first_sent_at=None).first()
    if waiting is not None:  # This request never left us, and now it must not leave.
        return attempts.fail(
            payout, waiting, code="", words="An earlier request was paid after all", at=at, policy=policy
        )
    if payout.status in (Status.PENDING, Status.PROCESSING):
        attempts.hold(payout, reason=f"Its earlier request {attempt} was paid after all.")
    return "paid after the debt was settled in another way: the member owes the amount back"


def _book_misdirected(payout: Transaction, attempt: Attempt, receipt: str, amount: Decimal | None, at: datetime) -> str:
    """Book a payment to a number that two people have replaced. We still owe the payout to the member.

    The old number may belong to another person by now, so the payment is no debt of the member. An open request ends,
    and the payout leaves again or waits for a person as before.
    """
    was_open = attempt.state in Attempt.OPEN
    attempt.state, attempt.receipt, attempt.closed_at = State.PAID, receipt, at
    attempt.next_query_at, attempt.resend_at, attempt.decision = None, None, Attempt.Decision.NONE
    attempt.paid_amount = None if amount == attempt.amount else amount
    attempt.save()
    key, tx = f"misdirected:{attempt.pk}", payout.pk
    source = journal.SUSPENSE if suspended(attempt) else journal.MPESA_UTILITY
    entry = journal.Entry(key, journal.MISDIRECTED, source, attempt.paid_amount or attempt.amount, tx)
    entries = [entry, *_charge(attempt, at)]
    if was_open:
        accounts = (journal.IN_FLIGHT, journal.PAYABLE)
        entries.insert(0, journal.Entry(f"return:{attempt.booking}", *accounts, attempt.amount, tx))
        _count_lost(payout, attempt)
    else:
        day_limit.count_paid_late(attempt, payout.user_id)
    journal.post(entries, at=at)
    alarm.critical("Attempt %s was paid to a number that has been replaced: receipt %s", attempt, receipt)
    outcome = "paid to the member's old number: ask M-Pesa to reverse it; the payout is still owed"
    if was_open:
        return _owe_still(payout, attempt, outcome, at=at)
    return outcome


def _owe_still(payout: Transaction, attempt: Attempt, outcome: str, *, at: datetime) -> str:
    """Let a payout continue without the request that paid the old number, and return the outcome in words."""
    if cancelled := attempts.cancel_if_recalled(payout, at=at):
        return cancelled
    if payout.status == Status.PROCESSING:
        attempts.make_pending(payout, due_at=at)
    elif payout.status == Status.HELD and not payout.held_by_person:
        reason = f"Its request {attempt} was paid to the member's old number. The payout is still owed. Retry it."
        attempts.hold(payout, reason=reason)
    return outcome


def _count_lost(payout: Transaction, attempt: Attempt) -> None:
    """Count a request for the member's limit of the day, if it left before a restore and is not counted yet."""
    if attempt.counted_on is None and attempt.first_sent_at is not None:
        attempt.counted_on = day_limit.day_of(attempt.first_sent_at)
        attempt.save(update_fields=["counted_on"])
        day_limit.count_left([(payout.user_id, attempt.amount)], day=attempt.counted_on)


def _pay_again(payout: Transaction, attempt: Attempt, receipt: str, *, at: datetime) -> str:
    """Book further proof of payment for an attempt that is booked as paid, and return the outcome in words."""
    is_new = bool(receipt) and receipt.upper() != attempt.receipt.upper()
    if is_new and attempt.receipt and attempt.decision != Attempt.Decision.PAID:
        return _book_second_receipt(payout, attempt, receipt, at=at)
    outcome = "paid already"
    if attempt.decision == Attempt.Decision.PAID:
        outcome = "paid, as staff had decided"
        if is_new:
            alarm.critical("Attempt %s: M-Pesa's receipt is %s, not %s as decided", attempt, receipt, attempt.receipt)
            outcome = f"paid, but M-Pesa's receipt is {receipt}, not {attempt.receipt} as staff had decided"
        attempts.mark_decided(attempt, Attempt.Decision.NONE, ask_at=None)
    elif is_new:
        outcome = "paid already; the receipt is known now"
    if is_new:
        settles = payout.status == Status.COMPLETED and payout.receipt == attempt.receipt
        attempt.receipt = receipt
        attempt.save(update_fields=["receipt"])
        if settles:  # Another request may have paid the payout. Then the payout keeps that receipt.
            payout.receipt = receipt
            payout.save(update_fields=["receipt"])
    return outcome


def _book_second_receipt(payout: Transaction, attempt: Attempt, receipt: str, *, at: datetime) -> str:
    """Book a second payment under one id, once per receipt. The member owes the amount back.

    M-Pesa paid the same request twice, to the same phone, so the member has the money. If two people have replaced this
    phone since, the money may be another person's, and is no debt of the member.
    Locks: the Recovery.
    """
    alarm.critical("Attempt %s has a second receipt %s, besides %s", attempt, receipt, attempt.receipt)
    second_receipts.end(attempt, receipt)
    if settled := second_receipts.has_place(attempt, receipt):
        return settled
    key = second_receipts.key_of(receipt)
    owes = journal.MISDIRECTED
    if attempt.phone_number == payout.receiver:
        owes = journal.receivable(payout.user_id)
        receivables.owe(settlement_id=payout.settlement_id, user_id=payout.user_id, amount=attempt.amount, at=at)
    second = journal.Entry(key, owes, journal.MPESA_UTILITY, attempt.amount, payout.pk)
    journal.post([second, *_charge(attempt, at, key=f"charge:{key}")], at=at)
    return f"a second receipt {receipt}: M-Pesa paid twice, so the member owes the amount back"


def take_back(payout: Transaction, attempt: Attempt, *, reason: str, at: datetime) -> None:
    """Take back a payment that a person decided and that M-Pesa contradicts. The request is in doubt again.

    The transfers of the payment are reversed, so its amount is in flight again. The payout waits for a person.
    Locks: none further; the caller holds the Transaction and the Attempt.
    """
    keys = [f"{code}:{attempt.booking}" for code in ("won", "paid", "charge")]
    booked = Transfer.objects.filter(key__in=keys).select_related("debit", "credit").order_by("pk")
    journal.post(
        [
            journal.Entry(f"reverse:{entry.pk}", entry.credit.code, entry.debit.code, entry.amount, payout.pk)
            for entry in booked
        ],
        at=at,
    )
    attempt.state, attempt.doubted_at = State.IN_DOUBT, attempt.doubted_at or at
    attempt.decision, attempt.receipt, attempt.closed_at = Attempt.Decision.NONE, "", None
    attempt.corrections += 1
    attempt.next_query_at = at
    attempt.save()
    payout.completed_at, payout.receipt = None, ""
    payout.save(update_fields=["completed_at", "receipt"])
    attempts.hold(payout, reason=reason)


def return_payment(payout: Transaction, attempt: Attempt, *, reason: str, at: datetime) -> str:
    """Book that M-Pesa reversed a payment, so that we owe the payout again. Return the outcome in words.

    The payment counts no more for the member's limit of the day.
    Locks: the DayTotal; the Recovery, if the settlement was undone; then as `_regain`.
    """
    if outcome := _regain(payout, attempt, at=at):
        return outcome
    in_suspense = suspended(attempt)
    key = f"claimed:{attempt.receipt}" if in_suspense else f"paid:{attempt.booking}"
    paid = Transfer.objects.filter(key=key)
    if payout.status != Status.COMPLETED or attempt.paid_amount is not None or not paid.exists():
        return "reversed: this payment did not settle the payout as it is. A person must correct the books."
    key = f"returned:{attempt.pk}"
    _stop_counting(payout, attempt)
    journal.post([journal.Entry(key, journal.MPESA_UTILITY, journal.PAYABLE, attempt.amount, payout.pk)], at=at)
    _mark_reversed(attempt)
    payout.completed_at = None
    payout.save(update_fields=["completed_at"])
    attempts.hold(payout, reason=reason)
    return attempts.cancel_if_recalled(payout, at=at) or "held: M-Pesa reversed the payment, so we owe it again"


def _regain(payout: Transaction, attempt: Attempt, *, at: datetime) -> str:
    """Book the reversal of a payment that did not settle the payout, and return the outcome in words.

    A late payment had become the member's debt, which ends. A payment to a replaced number is at our expense until now.
    Returns an empty string if the payment settled the payout. The payout itself stays as it is.
    Locks: the Recovery and the wallet, if the payment was late.
    """
    key, amount = f"regained:{attempt.pk}", attempt.paid_amount or attempt.amount
    if journal.is_booked(f"late:{attempt.pk}"):
        _stop_counting(payout, attempt)
        receivables.reverse_late(payout, key=key, amount=amount, at=at)
        _mark_reversed(attempt)
        return "reversed: M-Pesa took the late payment back, so the member does not owe it any more"
    if journal.is_booked(f"misdirected:{attempt.pk}"):
        _stop_counting(payout, attempt)
        entry = journal.Entry(key, journal.MPESA_UTILITY, journal.MISDIRECTED, amount, payout.pk)
        journal.post([entry], at=at)
        _mark_reversed(attempt)
        return "reversed: M-Pesa took the payment to the replaced number back"
    return ""


def _stop_counting(payout: Transaction, attempt: Attempt) -> None:
    """Take a reversed payment out of its day, before any wallet is locked. The caller saves the attempt."""
    day_limit.give_back(attempt, payout.user_id)
    attempt.counted_on = None


def _mark_reversed(attempt: Attempt) -> None:
    attempt.state, attempt.decision = State.REVERSED, Attempt.Decision.NONE
    attempt.next_query_at = second_receipts.next_query_after_reversal(attempt)
    attempt.save()


def suspended(attempt: Attempt) -> Orphan | None:
    """Return the orphan of an attempt that was found again, if its payment is booked in `suspense`. Otherwise None."""
    if attempt.kind != Attempt.Kind.FOUND:
        return None
    orphan = Orphan.objects.get(originator_conversation_id=attempt.originator_conversation_id)
    return orphan if journal.is_booked(f"foreign:{orphan.receipt}") else None


def _book_payment(
    payout: Transaction, attempt: Attempt, *, source: str, reopen: bool, debt_open: bool, at: datetime
) -> None:
    """Post the entries of one payment: as a payout if the debt is open, otherwise as a receivable.

    `source` is the account that holds the payment: the M-Pesa account, or `suspense`.
    """
    amount, tx = attempt.amount, payout.pk
    paid = attempt.paid_amount or amount
    receivable = journal.receivable(payout.user_id)
    if debt_open:
        entries = payment_entries(payout.user_id, attempt, at=at)
        if source == journal.SUSPENSE:  # The payment left the M-Pesa account when it was booked in suspense.
            claimed = journal.Entry(f"claimed:{attempt.receipt}", journal.IN_FLIGHT, source, min(paid, amount), tx)
            entries = [claimed, *_charge(attempt, at)]
        owed = paid - amount
    else:
        entries = [journal.Entry(f"late:{attempt.pk}", receivable, source, paid, tx), *_charge(attempt, at)]
        owed = paid
    if debt_open and paid < amount:
        wallet = journal.wallet(payout.user_id)
        entries.append(journal.Entry(f"short:{attempt.pk}", journal.IN_FLIGHT, wallet, amount - paid, tx))
    elif debt_open and paid > amount:
        entries.append(journal.Entry(f"excess:{attempt.pk}", receivable, source, paid - amount, tx))
    if owed > 0:
        receivables.owe(settlement_id=payout.settlement_id, user_id=payout.user_id, amount=owed, at=at)
    if reopen:
        entries.insert(0, journal.Entry(f"reopen:{attempt.booking}", journal.PAYABLE, journal.IN_FLIGHT, amount, tx))
    journal.post(entries, at=at)


def payment_entries(user_id: int, attempt: Attempt, *, at: datetime) -> list[journal.Entry]:
    """Return the entries for a payment that is proven to have reached the member."""
    amount, tx, wallet = attempt.amount, attempt.transaction_id, journal.wallet(user_id)
    amount = min(amount, attempt.paid_amount or amount)
    return [
        journal.Entry(f"won:{attempt.booking}", journal.IN_FLIGHT, wallet, amount, tx),
        journal.Entry(f"paid:{attempt.booking}", wallet, journal.MPESA_UTILITY, amount, tx),
        *_charge(attempt, at),
    ]


def _charge(attempt: Attempt, at: datetime, *, key: str = "") -> list[journal.Entry]:
    try:
        charge = tariff.charge(attempt.paid_amount or attempt.amount, figures.bands(at))
    except (
        tariff.NoTariff,
        figures.UnknownFigure,
    ) as error:  # Book the payment anyway. M-Pesa's statement shows the charge.
        alarm.error("Attempt %s: %s", attempt, error)
        charge = journal.ZERO
    if charge <= 0:
        return []
    key, tx = key or f"charge:{attempt.booking}", attempt.transaction_id
    return [journal.Entry(key, journal.CHARGE_EXPENSE, journal.MPESA_CHARGES_PAID, charge, tx)]
