"""Orphans: results of requests that we sent and no longer have.

A server that loses its last commits forgets requests that M-Pesa has carried out. Their results still arrive, each
under the token of its id, and are parked. The payout with the reference of such a request takes it over, whatever its
number: `place` opens an attempt of kind FOUND, to which the parked result applies. Until then the payout does not leave
(eligibility.DUE). If no payout has the reference within CLAIM_WITHIN, a proven payment is booked in `suspense`, and the
sending stops until a person has looked. A payout that gets the reference later takes the suspense over.

Lock order: Transaction, Attempt, Orphan, then wallets (ledger).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from payments import failpoints
from payments.ledger import journal
from payments.models import AskFirst, Attempt, Breaker, Callback, Orphan, Transaction
from payments.mpesa import messages, result_codes, strict_json
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import attempts, breakers, found
from payments.payouts.evidence.status_queries import LONGEST_QUERY_GAP, DueQuery
from payments.policy import Policy

alarm = logging.getLogger("kasoko.alarm")

State = Orphan.State
# A payout that is settled again after a loss has its reference within minutes.
CLAIM_WITHIN = timedelta(minutes=5)


def record(originator_conversation_id: str, *, at: datetime, addresses: Addresses) -> None:
    """Record a request that M-Pesa reports and we do not have, and make a status query about it due.

    Runs in the caller's transaction. Idempotent: by id. A request that counted as not paid is looked at again.
    """
    orphan = Orphan(
        originator_conversation_id=originator_conversation_id,
        external_ref=originator_conversation_id.rpartition("-")[0],
        token_hash=token_hash(_query_token(originator_conversation_id, addresses)),
        first_seen_at=at,
        next_query_at=at,
    )
    Orphan.objects.bulk_create([orphan], ignore_conflicts=True)
    again = Orphan.objects.filter(originator_conversation_id=originator_conversation_id)
    again = again.filter(Q(state=State.NOT_PAID) | Q(state=State.WAITING, is_supposed=True))
    again.update(state=State.WAITING, is_supposed=False, closed_at=None, next_query_at=at)
    alarm.critical("A result for request %s, which we sent and do not have: commits were lost", orphan)


def suppose(
    payouts: Mapping[Transaction, Sequence[int]], *, ask_at: datetime, at: datetime, addresses: Addresses
) -> None:
    """Ask M-Pesa from `ask_at` about requests that may have left before a restore: numbers of each payout.

    Runs in the caller's transaction, which holds the Transactions. A request that M-Pesa denied before an earlier
    restore is asked about again.
    """
    ids = [f"{payout.external_ref}-{number}" for payout, numbers in payouts.items() for number in numbers]
    supposed = [
        Orphan(
            originator_conversation_id=ocid,
            external_ref=ocid.rpartition("-")[0],
            token_hash=token_hash(_query_token(ocid, addresses)),
            is_supposed=True,
            first_seen_at=at,
            next_query_at=ask_at,
        )
        for ocid in ids
    ]
    Orphan.objects.bulk_create(supposed, ignore_conflicts=True)
    again = Orphan.objects.filter(originator_conversation_id__in=ids, state=State.NOT_PAID)
    again.update(state=State.WAITING, is_supposed=True, closed_at=None, next_query_at=ask_at, queries=0)


def _query_token(originator_conversation_id: str, addresses: Addresses) -> str:
    return addresses.token(f"{originator_conversation_id}?orphan")


def asked_with(token: str) -> str:
    """Return the id of the orphan about which we asked with this token, or an empty string."""
    orphan = Orphan.objects.filter(token_hash=token_hash(token)).first()
    return orphan.originator_conversation_id if orphan else ""


# --- questions -------------------------------------------------------------------------------------------------------


def count_due(*, at: datetime, limit: int, supposed: bool = False) -> int:
    """Count the orphans whose next status query is due, up to `limit`: reported ones, or supposed ones."""
    return _due(at, supposed)[:limit].count()


def _due(at: datetime, supposed: bool) -> QuerySet[Orphan]:
    waiting = Orphan.objects.filter(state=State.WAITING, is_supposed=supposed, next_query_at__lte=at)
    return waiting.order_by("next_query_at", "pk")


def withdraw(query: DueQuery, *, at: datetime, policy: Policy) -> None:
    """Make the next query due after `retry_after`, because this query never left. Locks: the Orphan."""
    _leased(query).update(next_query_at=at + policy.retry_after)


def record_put(query: DueQuery) -> None:
    """Count a query whose POST was made, and let the usual gap to the next query begin. Locks: the Orphan."""
    failpoints.hit("status query posted")
    about = Orphan.objects.filter(originator_conversation_id=query.originator_conversation_id, state=State.WAITING)
    about.update(queries=F("queries") + 1)
    _leased(query).update(next_query_at=query.next_query_at)


def _leased(query: DueQuery) -> QuerySet[Orphan]:
    """Return the orphan of a query, if nothing else has changed the time of its next query meanwhile."""
    return Orphan.objects.filter(
        originator_conversation_id=query.originator_conversation_id,
        state=State.WAITING,
        next_query_at=query.leased_until,
    )


def ask(*, at: datetime, policy: Policy, addresses: Addresses, limit: int, supposed: bool = False) -> list[DueQuery]:
    """Claim up to `limit` orphans whose next status query is due. The gaps double from `query_gap` to an hour.

    A query counts only once its POST is recorded (`record_put`). If the worker dies before, the next query is due
    `query_after` later.
    Reported orphans go first, before queries about attempts. Supposed ones are many after a restore, so they go last.
    Locks: the Orphans (skipping locked ones).
    """
    with transaction.atomic(durable=True):
        queries = []
        for orphan in _due(at, supposed).select_for_update(skip_locked=True, no_key=True)[:limit]:
            gap = min(policy.query_gap * 2 ** min(orphan.queries, 10), LONGEST_QUERY_GAP)
            orphan.next_query_at = leased_until = at + min(gap, policy.query_after)
            orphan.save(update_fields=["next_query_at"])
            ocid, token = orphan.originator_conversation_id, _query_token(orphan.originator_conversation_id, addresses)
            queries.append(DueQuery(None, ocid, token, leased_until=leased_until, next_query_at=at + gap))
    return queries


# --- evidence about one orphan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """The stored messages about an orphan, weighed. `amount`, `receipt` and `phone_visible` are as reported."""

    is_paid: bool = False
    is_not_paid: bool = False
    amount: Decimal | None = None
    receipt: str = ""
    phone_visible: str = ""


def weigh(
    results: Sequence[tuple[messages.Result, bool]],
    answers: Sequence[tuple[messages.StatusAnswer, bool, datetime]],
    *,
    policy: Policy,
) -> Evidence:
    """Weigh the results and the answers about an orphan, each with True if its sender is trusted. Pure.

    Paid: an answer that says Completed. A result alone proves nothing, because we have no amount and no phone to
    compare it with. Not paid: two answers that say failed, received `query_gap` apart, or one of them and a result with
    a definite code. Untrusted messages prove nothing. A report of payment, even an untrusted one, overrules every
    failure.
    """
    reported, proven = Evidence(), None
    reported_paid, has_definite_code = False, False
    for result, trusted in results:
        definite = result_codes.meaning(result.result_code).definite
        has_definite_code |= trusted and result.is_final and definite and not result.says_paid
        reported_paid |= result.says_paid
        if result.says_paid and result.amount is not None and result.receipt:
            phone = result.receiver_phone_visible or ""
            reported = Evidence(False, False, result.amount, result.receipt[:64], phone[:20])
    failed_at = []
    for answer, trusted, received_at in answers:
        reported_paid |= answer.payment_status == "completed"
        if trusted and answer.payment_status == "failed":
            failed_at.append(received_at)
        if trusted and answer.payment_status == "completed" and answer.amount is not None and answer.receipt:
            phone = answer.receiver_phone_visible or ""
            proven = Evidence(True, False, answer.amount, answer.receipt[:64], phone[:20])
    if reported_paid:
        return proven or reported
    apart = max(failed_at) - min(failed_at) if failed_at else timedelta(0)
    return Evidence(is_not_paid=bool(failed_at) and (has_definite_code or apart >= policy.query_gap))


def _evidence(orphan: Orphan, policy: Policy) -> Evidence:
    """Read and weigh the parked messages about an orphan."""
    results, answers = [], []
    parked = Callback.objects.filter(
        originator_conversation_id=orphan.originator_conversation_id, applied_at=None, attempt=None
    )
    for callback in parked.order_by("pk"):
        trusted, body = callback.trusted or not policy.production, bytes(callback.body)
        try:
            if callback.kind == Callback.Kind.RESULT:
                results.append((messages.parse_result(body), trusted))
            elif callback.kind == Callback.Kind.STATUS:
                answer = messages.parse_status(body)
                if answer.originator_conversation_id in (None, orphan.originator_conversation_id):
                    answers.append((answer, trusted, callback.received_at))
        except strict_json.Unreadable as error:
            alarm.error("Callback %s about orphan %s cannot be read: %s", callback.pk, orphan, error)
    return weigh(results, answers, policy=policy)


# --- placing ---------------------------------------------------------------------------------------------------------


def to_place(*, limit: int) -> list[int]:
    """Return the ids of orphans to place, oldest first: waiting ones, and suspense that a payout can take over."""
    has_payout = Exists(Transaction.objects.filter(external_ref=OuterRef("external_ref"), destination="mpesa"))
    waiting = Orphan.objects.filter(Q(state=State.WAITING) | Q(state=State.SUSPENSE) & has_payout)
    return list(waiting.order_by("pk").values_list("pk", flat=True)[:limit])


def place(*, orphan_id: int, at: datetime, policy: Policy, addresses: Addresses) -> str:
    """Give an orphan to the payout that has its reference, or book it in `suspense`, and return the outcome in words.

    Idempotent: skips an orphan that has its place.
    Locks: the Transaction, its open Attempt, the Orphan.
    """
    with transaction.atomic(durable=True):
        reference = Orphan.objects.values_list("external_ref", flat=True).get(pk=orphan_id)
        payouts = Transaction.objects.filter(external_ref=reference, destination=Transaction.Destination.MPESA)
        payout = payouts.select_for_update(no_key=True, of=("self",)).first()
        unresolved = Orphan.objects.filter(pk=orphan_id, state__in=Orphan.UNRESOLVED)
        orphan = unresolved.select_for_update(no_key=True).first()
        if orphan is None:
            return "placed already"
        if payout is not None and orphan.is_supposed:
            outcome = _weigh_supposed(orphan, payout, at=at, policy=policy, addresses=addresses)
        elif payout is not None:
            outcome = _give(orphan, payout, at=at, policy=policy, addresses=addresses)
        else:
            outcome = _suspend(orphan, at=at, policy=policy)
        failpoints.hit("orphan before commit")
    return outcome


def _give(orphan: Orphan, payout: Transaction, *, at: datetime, policy: Policy, addresses: Addresses) -> str:
    """Give an orphan to its payout. The parked messages then apply to the payout's attempt of this id."""
    ocid = orphan.originator_conversation_id
    was_suspense = orphan.state == State.SUSPENSE
    orphan.state, orphan.closed_at, orphan.next_query_at = State.CLAIMED, at, None
    orphan.save(update_fields=["state", "closed_at", "next_query_at"])
    if payout.attempts.filter(originator_conversation_id=ocid).exists():
        return "claimed: its request is in the books again"
    number = ocid.rpartition("-")[2]
    if orphan.is_supposed:
        found.close_earlier(payout, int(number), at=at)
    found.reopen(payout, int(number), sent_at=orphan.first_seen_at, at=at, policy=policy, addresses=addresses)
    alarm.critical(
        "Request %s, which our books had lost, belongs to transaction %s%s",
        ocid,
        payout.pk,
        " and takes its suspense over" if was_suspense else "",
    )
    return f"claimed by transaction {payout.pk}"


def _weigh_supposed(orphan: Orphan, payout: Transaction, *, at: datetime, policy: Policy, addresses: Addresses) -> str:
    """Weigh M-Pesa's answers about a request that may have left before a restore.

    If M-Pesa knows it, the payout takes it over, and it is asked about once more as a request of ours. If M-Pesa does
    not know it, the payout's own request may be sent as soon as M-Pesa does not know that one either. One "not found"
    may be wrong, and this request is the only sign of a payment. So two answers must agree, as for a failure.
    """
    listed = AskFirst.objects.filter(transaction=payout).first()
    since = listed.later_asked_at if listed is not None else None
    answers = _answers(orphan, since or orphan.first_seen_at, policy)
    if {"completed", "failed", "reversed"} & {status for status, _ in answers}:
        return _give(orphan, payout, at=at, policy=policy, addresses=addresses)
    final = payout.status in (Transaction.Status.COMPLETED, Transaction.Status.CANCELLED)
    if not final and not _is_denied(answers, policy):
        return "supposed: M-Pesa has not denied it twice yet"
    orphan.state, orphan.closed_at, orphan.next_query_at = State.NOT_PAID, at, None
    orphan.save(update_fields=["state", "closed_at", "next_query_at"])
    attempt = attempts.open_attempt(payout)
    if attempt is not None and attempt.state == Attempt.State.IN_DOUBT and attempt.next_query_at is not None:
        attempts.ask_at(attempt, min(attempt.next_query_at, at))
    return "supposed: M-Pesa does not know it"


def _is_denied(answers: Sequence[tuple[str, datetime]], policy: Policy) -> bool:
    """Return True if two answers say "not found". The queries are a `query_gap` apart, and answers may be slow."""
    denied = [received_at for status, received_at in answers if status == "not_found"]
    return bool(denied) and max(denied) - min(denied) >= policy.query_gap / 2


def _answers(orphan: Orphan, since: datetime, policy: Policy) -> list[tuple[str, datetime]]:
    """Return what M-Pesa's answers since a time say about a supposed request, and when each was received.

    Untrusted answers say nothing.
    """
    parked = Callback.objects.filter(
        originator_conversation_id=orphan.originator_conversation_id,
        applied_at=None,
        attempt=None,
        kind=Callback.Kind.STATUS,
        received_at__gte=since,
    )
    found = []
    for callback in parked.order_by("pk"):
        try:
            answer = messages.parse_status(bytes(callback.body))
        except strict_json.Unreadable as error:
            alarm.error("Callback %s about request %s cannot be read: %s", callback.pk, orphan, error)
            continue
        about_it = answer.originator_conversation_id in (None, orphan.originator_conversation_id)
        if about_it and not answer.is_thin and (callback.trusted or not policy.production):
            found.append((str(answer.payment_status), callback.received_at))
    return found


def _suspend(orphan: Orphan, *, at: datetime, policy: Policy) -> str:
    """Record what M-Pesa reports about an orphan without a payout. Book it in `suspense` after CLAIM_WITHIN."""
    if orphan.state == State.SUSPENSE:
        return "in suspense already"
    evidence = _evidence(orphan, policy)
    orphan.amount, orphan.receipt, orphan.phone_visible = evidence.amount, evidence.receipt, evidence.phone_visible
    outcome = "waits for a payout with its reference"
    if evidence.is_not_paid:
        orphan.state, orphan.closed_at, orphan.next_query_at = State.NOT_PAID, at, None
        outcome = "not paid"
    elif evidence.is_paid and evidence.amount is not None and at >= orphan.first_seen_at + CLAIM_WITHIN:
        orphan.state, orphan.next_query_at = State.SUSPENSE, None
        entry = journal.Entry(f"foreign:{evidence.receipt}", journal.SUSPENSE, journal.MPESA_UTILITY, evidence.amount)
        journal.post([entry], at=at)
        outcome = "booked in suspense"
    orphan.save()
    return outcome


def stop_for_unclaimed(*, at: datetime) -> int:
    """Stop the sending once for all orphans that no payout has claimed within CLAIM_WITHIN. Return their number.

    An orphan shows that commits were lost. Other payouts of the lost time may be paid already, so a person looks. The
    same orphan never stops the sending again.
    Locks: the Orphans, then the Breaker.
    """
    with transaction.atomic(durable=True):
        reported = Orphan.objects.filter(stopped_at=None, is_supposed=False)
        unclaimed = reported.filter(first_seen_at__lte=at - CLAIM_WITHIN)
        rows = unclaimed.exclude(state=State.CLAIMED).order_by("pk").select_for_update(no_key=True, skip_locked=True)
        orphans = list(rows)
        if orphans:
            Orphan.objects.filter(pk__in=[orphan.pk for orphan in orphans]).update(stopped_at=at)
            reason = (
                f"M-Pesa reports {len(orphans)} request(s) that our books do not have, such as {orphans[0]}."
                " Commits were lost. See the runbook: A result for a request we do not have."
            )
            breakers.stop(Breaker.Cause.ORPHAN, reason=reason, at=at)
    return len(orphans)


def unclaimed(*, limit: int) -> list[Orphan]:
    """Return the orphans that no payout has claimed, oldest first."""
    reported = Orphan.objects.filter(is_supposed=False)
    return list(reported.exclude(state__in=[State.CLAIMED, State.NOT_PAID]).order_by("pk")[:limit])
