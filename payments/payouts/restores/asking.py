"""Requests that are asked about before they leave, because they may have left without a row before a restore.

Such a request is opened in doubt, as if it had been POSTed at the last moment that survived. The rules for requests in
doubt then decide: M-Pesa's Completed books the payment, and "not found" sends the same id within the resend horizon.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, Max

from payments.models import AskFirst, Attempt, Restore, Transaction
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempt_limit, attempts, eligibility
from payments.payouts.evidence import orphans
from payments.payouts.restores import changes
from payments.policy import Policy

# A person retries a payout that M-Pesa refused, and needs about this time. We expect no more than MOST_RETRIES.
RETRY_GAP = timedelta(minutes=1)
MOST_RETRIES = 3
# A payment to a number that has been replaced does not count.
_NO_OPEN_REQUEST = """NOT EXISTS (SELECT FROM payments_attempt o WHERE o.transaction_id = t.id
        AND (o.state IN ('SENDING', 'WAITING', 'ACCEPTED', 'IN_DOUBT')
            OR o.state = 'PAID' AND o.phone_number = coalesce(nullif(t.reissued_to, ''), t.phone_number)))"""
# A payout of an undo is asked about at once, because it can be cancelled only if it did not leave. The canary does not
# count here: a status query moves no money.
_LOCK_DUE = f"""
    SELECT t.id FROM payments_askfirst f JOIN payments_transaction t ON t.id = f.transaction_id
    LEFT JOIN payments_settlement s ON s.id = t.settlement_id
    WHERE f.ended_at IS NULL AND {_NO_OPEN_REQUEST}
      AND ({eligibility.DUE_OR_ASKED_FIRST} AND (s.id IS NULL OR {eligibility.ACTIVE} AND s.release_at <= %(at)s)
        OR s.state = 'UNDOING' AND t.status IN ('PENDING', 'FAILED', 'HELD'))
    ORDER BY t.id LIMIT %(limit)s FOR NO KEY UPDATE OF t SKIP LOCKED
"""  # noqa: S608 - fragments of eligibility
_UNDOING_NOT_OPENED = f"""
    SELECT EXISTS (SELECT FROM payments_askfirst f JOIN payments_transaction t ON t.id = f.transaction_id
        WHERE f.ended_at IS NULL AND t.id = ANY (%(payouts)s::bigint[])
          AND t.status IN ('PENDING', 'FAILED', 'HELD') AND {_NO_OPEN_REQUEST})
"""  # noqa: S608 - a fragment of this module


def open_due(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> int:
    """Open the requests that are due and must be asked about first, at most `limit`, and return their number.

    They may be opened while sending is stopped, because only status queries are sent.
    Idempotent: a payout has at most one open request.
    Locks: Transactions by id (skipping locked ones).
    """
    with transaction.atomic(durable=True):
        AskFirst.objects.filter(ended_at=None, transaction__status__in=["COMPLETED", "CANCELLED"]).update(ended_at=at)
        with connection.cursor() as cursor:
            cursor.execute(_LOCK_DUE, {"at": at, "limit": limit})
            ids = [transaction_id for (transaction_id,) in cursor.fetchall()]
        listed = {
            entry.transaction_id: entry
            for entry in AskFirst.objects.filter(transaction__in=ids).select_related("restore")
        }
        tried = Attempt.objects.filter(transaction__in=ids).values_list("transaction").annotate(last=Max("number"))
        last_numbers = dict(tried.order_by())
        decided = eligibility.decided_alone(ids)
        numbers = {}
        for payout in Transaction.objects.filter(pk__in=ids).order_by("pk"):
            number = 1 + last_numbers.get(payout.pk, 0)
            if number <= attempt_limit.LARGEST_NUMBER:
                numbers[payout] = number
            elif payout.status == Transaction.Status.PENDING:
                attempts.hold(payout, reason=attempt_limit.NO_NUMBERS)
        changes.open_in_doubt(
            numbers,
            maybe_sent_at={pk: entry.restore.survived_at for pk, entry in listed.items()},
            cleared_at={pk: at if entry.restore.decided_at or pk in decided else None for pk, entry in listed.items()},
            at=at,
            policy=policy,
            addresses=addresses,
        )
    return len(ids)


def ask_about_later(*, at: datetime, policy: Policy, addresses: Addresses, limit: int) -> int:
    """Begin to ask about further requests of listed payouts, at most `limit` payouts, and return their number.

    The next request of a payout may have failed, a retry under a later number may have left, and both may be lost.
    The first question waits `query_after`, because a request that M-Pesa does not know yet may be in its queue.
    Idempotent: each entry of the list begins once.
    Locks: Transactions by id (skipping locked ones).
    """
    with transaction.atomic(durable=True):
        entries = AskFirst.objects.filter(ended_at=None, later_asked_at=None).order_by("transaction")
        listed = {entry.transaction_id: entry for entry in entries.select_related("restore")[:limit]}
        payouts = Transaction.objects.filter(pk__in=listed).order_by("pk")
        numbers: dict[Transaction, range] = {}
        ask_at = at
        for payout in payouts.select_for_update(no_key=True, of=("self",), skip_locked=True):
            entry = listed[payout.pk]
            last = payout.attempts.aggregate(last=Max("number"))["last"] or 0
            is_open = payout.attempts.filter(state__in=Attempt.OPEN).exists()
            # The next request of a pending payout is opened in doubt (`open_due`), so it is asked about as an attempt.
            first = last + 2 if payout.status == Transaction.Status.PENDING and not is_open else last + 1
            entry.last_number = min(last + 1 + _retries(entry.restore), attempt_limit.LARGEST_NUMBER)
            entry.later_asked_at = at
            entry.save(update_fields=["last_number", "later_asked_at"])
            numbers[payout] = range(first, entry.last_number + 1)
            ask_at = max(ask_at, entry.restore.noticed_at + policy.query_after)
        orphans.suppose(numbers, ask_at=ask_at, at=at, addresses=addresses)
    return len(numbers)


def _retries(restore: Restore) -> int:
    """Return the number of retries of one payout that may be lost: one, and one for each lost minute, at most three."""
    return int(min(1 + (restore.noticed_at - restore.survived_at) / RETRY_GAP, MOST_RETRIES))


def any_not_opened(payout_ids: Iterable[int]) -> bool:
    """Return True if one of these payouts may have left before a restore and is not asked about yet.

    An undo waits for it. The next sweep opens its request.
    """
    parameters: dict[str, Any] = {"payouts": list(payout_ids)}
    with connection.cursor() as cursor:
        cursor.execute(_UNDOING_NOT_OPENED, parameters)
        return bool(cursor.fetchone()[0])


def progress() -> list[tuple[Restore, int]]:
    """Return each restore, the newest first, with the number of its payouts that wait for M-Pesa's answer."""
    waiting = AskFirst.objects.filter(ended_at=None, transaction__status__in=["PENDING", "PROCESSING"])
    counts = dict(waiting.values_list("restore").annotate(count=Count("pk")).order_by())
    return [(restore, counts.get(restore.pk, 0)) for restore in Restore.objects.order_by("-pk")]
