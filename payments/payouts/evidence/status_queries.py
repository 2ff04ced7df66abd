"""Status queries about attempts: the choice of due attempts, and the queries themselves."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from django.db import transaction
from django.db.models import Max, Q, QuerySet

from payments import failpoints
from payments.models import Attempt, StatusQuery, Transaction
from payments.mpesa import client, gateway_errors
from payments.mpesa.callback_urls import Addresses, token_hash
from payments.payouts import attempts
from payments.policy import Policy

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

State = Attempt.State
Status = Transaction.Status
LONGEST_QUERY_GAP = timedelta(hours=1)


class QueryGateway(Protocol):
    """A gateway that POSTs status queries: client.Gateway, or a simulated M-Pesa."""

    def ask_status(
        self,
        *,
        originator_conversation_id: str | None = None,
        receipt: str | None = None,
        result_url: str,
        timeout_url: str,
        remarks: str,
    ) -> client.Accepted: ...


@dataclass(frozen=True)
class DueQuery:
    """A status query that is committed and must be POSTed now: about `receipt` if given, else about our id.

    `query_id` is None if it is about an orphan. Until its POST is recorded, the next query is due at `leased_until`.
    Afterwards it is due at `next_query_at`.
    """

    query_id: int | None
    originator_conversation_id: str
    token: str
    receipt: str = ""
    leased_until: datetime | None = None
    next_query_at: datetime | None = None


def count_due(*, at: datetime, limit: int) -> int:
    """Count the attempts whose next status query is due, up to `limit`."""
    return _due(at)[:limit].count()


def _due(at: datetime) -> QuerySet[Attempt]:
    settled = Q(state=State.REVERSED) | Q(state=State.PAID, decision="")
    done = Q(state=State.WAITING) | settled & Q(second_receipt="")
    return Attempt.objects.filter(next_query_at__lte=at).exclude(done)


def ask(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> list[DueQuery]:
    """Claim up to `limit` attempts whose next status query is due, and store a query for each attempt.

    The first query is due `query_after` after the POST. Later queries follow at gaps that double from `query_gap` to an
    hour. A query counts only once its POST is recorded (`record_put`). If the worker dies before, the next query is due
    `query_after` later. The retry of a proven failure waits `query_after` for the answer to one query. About a request
    that staff decided as paid, the receipt and our id are asked about in turn.
    A payout in doubt for longer than `review_after` is HELD for a person; its queries continue.
    Locks: Transactions (skipping locked ones), then their Attempts.
    """
    with transaction.atomic(durable=True):
        ids = list(_due(at).order_by("next_query_at").values_list("transaction", "pk")[:limit])
        payouts = {
            payout.pk: payout
            for payout in Transaction.objects.filter(pk__in=[payout for payout, _ in ids])
            .order_by("pk")
            .select_for_update(skip_locked=True, no_key=True, of=("self",))
        }
        due = Attempt.objects.filter(pk__in=[pk for _, pk in ids], transaction__in=payouts, next_query_at__lte=at)
        queries = []
        for attempt in due.select_for_update(no_key=True, of=("self",)).order_by("pk"):
            stored = attempt.queries.count()
            asked = attempt.queries.filter(is_put=True).count()
            may_end = attempt.state == State.FAILED or attempt.second_receipt != ""
            if may_end and _asked_enough(payouts[attempt.transaction_id], attempt, at, policy):
                _stop_asking(attempt)
                continue
            gap = min(policy.query_gap * 2 ** min(asked, 10), LONGEST_QUERY_GAP)
            if _is_only_for_a_retry(attempt):
                # The failure has two sources already. So the retry waits for this answer no longer than for any result,
                # however many queries came before.
                gap = policy.query_after
            leased_until = at + min(gap, policy.query_after)
            attempts.ask(attempt, next_query_at=leased_until, at=at)
            token = addresses.token(f"{attempt.originator_conversation_id}?{stored + 1}")
            query = StatusQuery.objects.create(
                attempt=attempt,
                number=stored + 1,
                token_hash=token_hash(token),
                asked_at=at,
                receipt=_receipt(attempt),
                is_put=False,
            )
            ocid = attempt.originator_conversation_id
            queries.append(DueQuery(query.pk, ocid, token, query.receipt, leased_until, at + gap))
            _hold_if_old(payouts[attempt.transaction_id], attempt, at, policy)
    failpoints.hit("question after commit")
    return queries


def _stop_asking(attempt: Attempt) -> None:
    """End the questions about an attempt. A second receipt that M-Pesa has not confirmed is for a person."""
    attempts.ask_at(attempt, None)
    if attempt.second_receipt:
        alarm.critical(
            "Attempt %s: M-Pesa has not confirmed the second receipt %s. Nothing was booked. Check M-Pesa's statement.",
            attempt,
            attempt.second_receipt,
        )


def _receipt(attempt: Attempt) -> str:
    """Return the receipt to ask about next, or "" to ask about the attempt's own id."""
    if attempt.second_receipt:
        return attempt.second_receipt
    last = attempt.queries.order_by("number").last()
    by_receipt = attempt.decision == Attempt.Decision.PAID and (last is None or not last.receipt)
    return attempt.receipt if by_receipt else ""


def _asked_enough(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> bool:
    """Return True if a proven failure, or a second receipt, needs no further query.

    If a callback reported a payment, or the attempt was found again, we keep asking for `review_after` from the last
    callback. Otherwise one query that was put after the retry was requested is enough.
    """
    if not _is_only_for_a_retry(attempt):
        reported_at = attempt.callbacks.aggregate(last=Max("received_at"))["last"] or attempt.closed_at or at
        return at - reported_at >= policy.review_after
    return attempt.queries.filter(asked_at__gte=payout.due_at, is_put=True).exists()


def _is_only_for_a_retry(attempt: Attempt) -> bool:
    """Return True if we ask about a proven failure because of a retry, and no message reports a payment."""
    return attempt.state == State.FAILED and not attempt.paid_report and attempt.kind != Attempt.Kind.FOUND


def post(query: DueQuery, *, gateway: QueryGateway, addresses: Addresses) -> str | None:
    """POST one status query and return Daraja's id for the query, or None if Daraja did not take it.

    Touches no database. Call `record_put` with the result.
    Raises: NotSent if the query never left. Then call `withdraw`.
    """
    ocid = query.originator_conversation_id
    subject = {"receipt": query.receipt} if query.receipt else {"originator_conversation_id": ocid}
    try:
        accepted = gateway.ask_status(
            **subject,
            result_url=addresses.status_result(query.token),
            timeout_url=addresses.timeout(query.token),
            remarks="Payout status",
        )
    except gateway_errors.NotSent:
        raise
    except gateway_errors.GatewayError as error:
        log.warning("Status query about %s not taken: %s", query.originator_conversation_id, error)
        return None
    return accepted.conversation_id


def withdraw(query: DueQuery, *, at: datetime, policy: Policy) -> None:
    """Remove a query that never left, and make the next query due after `retry_after`.

    A query that nobody could answer must not count: the gap to the next query doubles with each query, and a retry
    waits for one query about the failed request.
    Idempotent: does nothing if the query is not the attempt's last, or has been answered.
    Locks: Transaction, Attempt.
    """
    if query.query_id is None:  # The query is about an orphan.
        return
    with transaction.atomic(durable=True):
        asked = StatusQuery.objects.filter(pk=query.query_id, verdict="", conversation_id="").first()
        if asked is None:
            return
        _, attempt = attempts.locked(asked.attempt_id)
        if attempt.queries.filter(number__gt=asked.number).exists():
            return
        StatusQuery.objects.filter(pk=asked.pk, verdict="").delete()
        if attempt.next_query_at is not None:
            attempts.ask_at(attempt, min(attempt.next_query_at, at + policy.retry_after))


def record_put(query: DueQuery, conversation_id: str | None) -> None:
    """Record that a query was POSTed, with Daraja's id for it, and let the usual gap to the next query begin.

    We do not match the answer by this id. We match the answer by the address to which it was posted. If anything else
    has changed the time of the next query meanwhile, that time stays.
    Locks: the StatusQuery, then the Attempt, each in its own statement.
    """
    failpoints.hit("status query posted")
    if query.query_id is None:  # The query is about an orphan: `orphans.record_put` records it.
        return
    asked = StatusQuery.objects.filter(pk=query.query_id)
    asked.update(is_put=True, conversation_id=(conversation_id or "")[:64])
    leased = Attempt.objects.filter(queries=query.query_id, next_query_at=query.leased_until)
    leased.update(next_query_at=query.next_query_at)


def _hold_if_old(payout: Transaction, attempt: Attempt, at: datetime, policy: Policy) -> None:
    """Hold a payout for a person if its attempt has been in doubt for `review_after`.

    An attempt that is asked about after a restore may count as POSTed long ago. Its time begins with the first query.
    """
    since = max(filter(None, [attempt.first_sent_at or attempt.opened_at, attempt.asked_first_at, attempt.cleared_at]))
    if attempt.state in Attempt.OPEN and payout.status == Status.PROCESSING and at - since >= policy.review_after:
        attempts.hold(payout, reason="In doubt for too long. A person must check M-Pesa's statement.")
        alarm.error("Transaction %s is held: in doubt since %s", payout.pk, since.isoformat())
