"""Application of evidence: reads the facts under lock, asks `rules`, and carries the action out.

The caller owns the database transaction. Lock order: Transaction, Attempt, Recovery, then wallets (ledger).
"""

import logging
from datetime import datetime

from payments.ledger import journal
from payments.models import Attempt, Settlement, StatusQuery, Transaction, Verdict
from payments.mpesa import messages
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts, breakers, eligibility
from payments.payouts.evidence import answers, booking, records, rules, second_receipts
from payments.policy import Policy

alarm = logging.getLogger("kasoko.alarm")

# The columns that `facts_of` reads, for queries that load no others.
ATTEMPT_COLUMNS = (
    "transaction",
    "kind",
    "state",
    "originator_conversation_id",
    "conversation_id",
    "amount",
    "phone_number",
    "opened_at",
    "posted_at",
    "first_sent_at",
    "next_query_at",
    "known_at",
    "cleared_at",
    "asked_first_at",
    "result_code",
    "result_words",
    "receipt",
    "second_receipt",
    "paid_report",
    "paid_amount",
    "decision",
    "corrections",
)

_HOLDABLE = (Transaction.Status.PENDING, Transaction.Status.PROCESSING, Transaction.Status.FAILED)


def facts_of(
    payout: Transaction,
    attempt: Attempt,
    *,
    settlement_stands: bool = True,
    later_unasked: bool = False,
    other_numbers: tuple[str, ...] = (),
) -> records.Facts:
    """Return the facts about an attempt that the rules weigh."""
    return records.Facts(
        attempt=str(attempt),
        state=attempt.state,
        payout_status=payout.status,
        settlement_stands=settlement_stands,
        originator_conversation_id=attempt.originator_conversation_id,
        conversation_id=attempt.conversation_id,
        amount=attempt.amount,
        phone_number=attempt.phone_number,
        opened_at=attempt.opened_at,
        posted_at=attempt.posted_at,
        first_sent_at=attempt.first_sent_at,
        next_query_at=attempt.next_query_at,
        known_at=attempt.known_at,
        cleared_at=attempt.cleared_at,
        result_code=attempt.result_code,
        result_words=attempt.result_words,
        receipt=attempt.receipt,
        paid_report=attempt.paid_report,
        asked_first=attempt.asked_first_at is not None,
        is_found=attempt.kind == Attempt.Kind.FOUND,
        decision=attempt.decision,
        later_unasked=later_unasked,
        other_numbers=other_numbers,
        second_receipt=attempt.second_receipt,
    )


def apply_result(attempt_id: int, result: messages.Result, *, trusted: bool, at: datetime, policy: Policy) -> str:
    """Apply the result of one attempt in the caller's transaction, and return the outcome in words.

    Locks: Transaction, Attempt.
    """
    payout, attempt = attempts.locked(attempt_id)
    action = rules.weigh_result(facts_of(payout, attempt), result, trusted=trusted, at=at, policy=policy)
    return _carry_out(payout, attempt, action, at=at, policy=policy)


def apply_timeout(attempt_id: int, *, at: datetime, policy: Policy) -> str:
    """Apply a queue timeout in the caller's transaction, and return the outcome in words.

    Locks: Transaction, Attempt.
    """
    payout, attempt = attempts.locked(attempt_id)
    action = rules.weigh_timeout(facts_of(payout, attempt), at=at, policy=policy)
    return _carry_out(payout, attempt, action, at=at, policy=policy)


def apply_status_answer(
    query_id: int, answer: messages.StatusAnswer, *, trusted: bool, at: datetime, policy: Policy
) -> str:
    """Apply the answer to one status query in the caller's transaction, and return the outcome in words.

    Locks: Transaction, Attempt.
    """
    query = StatusQuery.objects.get(pk=query_id)
    payout, attempt = attempts.locked(query.attempt_id)
    others = attempt.queries.exclude(pk=query.pk).filter(receipt="").order_by("asked_at")
    stands, later_unasked = _settlement_stands(payout), eligibility.is_unasked(payout)
    action = answers.weigh_answer(
        facts_of(
            payout,
            attempt,
            settlement_stands=stands,
            later_unasked=later_unasked,
            other_numbers=_other_numbers(payout, attempt),
        ),
        records.Query(query.asked_at, query.verdict, query.receipt),
        tuple(records.Query(asked_at, verdict) for asked_at, verdict in others.values_list("asked_at", "verdict")),
        answer,
        trusted=trusted,
        at=at,
        policy=policy,
    )
    if action.keeps_answer:
        query.verdict, query.answered_at = answer.payment_status, at
        query.save(update_fields=["verdict", "answered_at"])
    return _carry_out(payout, attempt, action, at=at, policy=policy)


def _other_numbers(payout: Transaction, attempt: Attempt) -> tuple[str, ...]:
    """Return the other numbers of the member to which a lost request with the attempt's id may have gone."""
    if attempt.known_at is None and attempt.asked_first_at is None:
        return ()
    confirmed = payout.verdicts.filter(kind=Verdict.Kind.REISSUE, confirmed=True)
    numbers = {payout.phone_number, payout.user.phone_number, *confirmed.values_list("phone_number", flat=True)}
    return tuple(sorted(numbers - {attempt.phone_number}))


def _settlement_stands(payout: Transaction) -> bool:
    """Return True if the payout's settlement is neither undone nor being undone. A payout without one stands."""
    undone = [Settlement.State.UNDOING, Settlement.State.UNDONE]
    if payout.settlement_id is None:
        return True
    return not Settlement.objects.filter(pk=payout.settlement_id, state__in=undone).exists()


def apply_plain_result(
    result: messages.Result, *, at: datetime, policy: Policy, addresses: Addresses
) -> tuple[int | None, str] | None:
    """Apply a callback that names a payout by its external reference alone, in the caller's transaction.

    This is only for trying the system out: the endpoint exists only when MPESA_PRODUCTION is False. Returns the
    attempt's id and the outcome in words, or None if no payout has that reference. If the payout has no open attempt,
    an attempt of kind manual is opened.
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
        mismatch = f"mismatch: the result says {result.amount} instead of {payout.amount}"
        return (attempt.pk if attempt else None), mismatch
    if attempt is None or attempt.state not in Attempt.OPEN:
        if journal.owed(payout.pk) != payout.amount:
            return (attempt.pk if attempt else None), f"{payout.status} already"
        number = attempt.number + 1 if attempt else 1
        attempt = attempts.open_manual(payout, number, at, policy, addresses)
    action = rules.weigh_plain_result(facts_of(payout, attempt), result, at=at)
    return attempt.pk, _carry_out(payout, attempt, action, at=at, policy=policy)


def _carry_out(payout: Transaction, attempt: Attempt, action: records.Action, *, at: datetime, policy: Policy) -> str:
    """Carry out an action of the rules, and return the outcome in words.

    Locks: Recovery and wallets as its step needs, then Breakers. The caller holds the Transaction and the Attempt.
    """
    if action.alarm:
        alarm.log(logging.getLevelNamesMapping()[action.level.upper()], "%s", action.alarm)
    outcome = _step(payout, attempt, action, at=at, policy=policy)
    # Breakers are locked last, because a payment or a failure may still lock wallets.
    if action.step == "pay":
        breakers.paid(attempt.posted_at, at=at)
    if action.trips:
        breakers.trip_by_code(action.trips, reason=action.trip_reason, at=at, policy=policy)
    return outcome


def _step(payout: Transaction, attempt: Attempt, action: rules.Action, *, at: datetime, policy: Policy) -> str:
    """Change the attempt and its payout as the action says, and return the outcome in words."""
    if action.is_known:
        attempts.mark_known(attempt, at=at)
    if action.step in ("pay", "fail", "reverse"):
        return _prove(payout, attempt, action, at=at, policy=policy)
    if action.step == "contradict":
        booking.take_back(payout, attempt, reason=action.hold_reason, at=at)
        attempts.keep_report(attempt, "", action.code, action.words, "", at=at)
    elif action.step == "report":
        attempts.keep_report(attempt, action.paid_report, action.code, action.words, action.receipt, at=at)
    elif action.step == "doubt" and action.ask_at is not None:
        attempts.doubt(attempt, ask_at=action.ask_at, at=at, words=action.words, code=action.code)
    elif action.step in ("ask", "stop_asking"):
        attempts.ask_at(attempt, action.ask_at)
    elif action.step == "resend":
        attempts.resend_at(attempt, at)
    elif action.step == "ask_second":
        return second_receipts.ask_about(attempt, action.receipt, outcome=action.outcome, at=at)
    elif action.step == "drop_second":
        second_receipts.end(attempt, action.receipt)
    if action.hold_reason and payout.status in _HOLDABLE:
        attempts.hold(payout, reason=action.hold_reason)
    return action.outcome


def _prove(payout: Transaction, attempt: Attempt, action: records.Action, *, at: datetime, policy: Policy) -> str:
    """Book a proven payment, failure or reversal, and return the outcome in words."""
    if action.step == "pay":
        return booking.pay(
            payout,
            attempt,
            receipt=action.receipt,
            amount=action.amount,
            phone_number=action.phone_number,
            at=at,
            policy=policy,
        )
    if action.step == "reverse":
        return booking.return_payment(payout, attempt, reason=action.hold_reason, at=at)
    return attempts.fail(payout, attempt, code=action.code, words=action.words, at=at, policy=policy)
