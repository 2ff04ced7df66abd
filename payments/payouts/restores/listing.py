"""Lists of the payouts that may have left without a row before a restore.

Only these can have left:
- of each settlement, the next payouts in sending order, as many as the pace allows in the lost time;
- payouts that had a request before, and payouts that a person held, because a person may have sent them again;
- requests that were to be sent again under the same id.

A settlement may be lost as a whole and made again. So the payouts of a settlement that is finished after a restore are
listed too, if its market existed when the restore was noticed.
"""

import logging
from collections.abc import Callable
from datetime import datetime

from django.db import connection, transaction
from django.db.models import Q

from markets import locks
from payments.models import Attempt, Breaker, Restore, Transaction
from payments.payouts import breakers
from payments.payouts.restores import changes
from users import audit

log = logging.getLogger(__name__)

State = Restore.State
BATCH = 200
# A payout that an older restore lists and that has not left since keeps its older restore. Its further requests are
# asked about again, because answers before this loss prove nothing.
_ON_CONFLICT = """
    ON CONFLICT (transaction_id) DO UPDATE SET ended_at = NULL, later_asked_at = NULL, restore_id =
        CASE WHEN payments_askfirst.ended_at IS NULL THEN payments_askfirst.restore_id ELSE excluded.restore_id END
"""
_LIST_TRIED = f"""
    INSERT INTO payments_askfirst (restore_id, transaction_id)
    SELECT %(restore)s, t.id FROM payments_transaction t
    WHERE t.destination = 'mpesa' AND t.type = 'PAYOUT' AND t.status IN ('PENDING', 'PROCESSING', 'HELD', 'FAILED')
      AND (t.status = 'HELD' OR EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = t.id))
    {_ON_CONFLICT}
"""  # noqa: S608 - fixed text
_LIST_NEXT = """
    INSERT INTO payments_askfirst (restore_id, transaction_id)
    SELECT %(restore)s, t.id FROM payments_transaction t
    WHERE {group} AND t.status = 'PENDING' AND t.destination = 'mpesa' AND t.type = 'PAYOUT'
    ORDER BY t.due_at, t.id LIMIT %(limit)s
    {on_conflict}
"""
_LIST_OF_SETTLEMENT = _LIST_NEXT.format(group="t.settlement_id = %(settlement)s", on_conflict=_ON_CONFLICT)
_LIST_WITHOUT_SETTLEMENT = _LIST_NEXT.format(group="t.settlement_id IS NULL", on_conflict=_ON_CONFLICT)
_NEXT_SETTLEMENT = """
    SELECT settlement_id FROM payments_transaction
    WHERE status = 'PENDING' AND settlement_id > %(after)s ORDER BY settlement_id LIMIT 1
"""


def list_payouts(*, at: datetime, keep_going: Callable[[], bool]) -> None:
    """List the payouts of each new restore as far as `keep_going` allows. Then let all other payouts leave again.

    If the lost time is longer than the resend horizon, no payout leaves until two people have decided.
    Idempotent: another call continues.
    Locks: the Restore; Transactions by id, their Attempts; then as `end_stop`.
    """
    for restore_id in Restore.objects.filter(state=State.LISTING).order_by("pk").values_list("pk", flat=True):
        while keep_going() and _list_more(restore_id, at):
            pass


def list_settlement(*, settlement_id: int, market_id: int) -> None:
    """List the first payouts of a settlement that is being finished, in the caller's transaction.

    After a loss longer than the resend horizon all of its payouts are listed. Such a loss may include bets, and other
    bets mean another sending order.
    Locks: the lock of restores, shared. A new restore waits for the settlements that are being finished.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [locks.RESTORES])
        for restore in Restore.objects.filter(last_market_id__gte=market_id).order_by("pk"):
            limit = None if restore.needs_decision else restore.payouts_a_settlement
            cursor.execute(_LIST_OF_SETTLEMENT, {"restore": restore.pk, "settlement": settlement_id, "limit": limit})


def _list_more(restore_id: int, at: datetime) -> bool:
    """Take the next step of a listing. Return False if the listing is complete."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        restore = Restore.objects.select_for_update(no_key=True).get(pk=restore_id)
        if restore.state != State.LISTING:
            return False
        parameters = {"restore": restore.pk, "limit": restore.payouts_a_settlement, "after": restore.last_settlement_id}
        if restore.last_settlement_id < 0:
            if _ask_about_resends(restore, at):
                return True
            cursor.execute(_LIST_TRIED, parameters)
            cursor.execute(_LIST_WITHOUT_SETTLEMENT, parameters)
        cursor.execute(_NEXT_SETTLEMENT, parameters)
        found = cursor.fetchone()
        if found is None:
            _end(restore, at)
            return False
        (restore.last_settlement_id,) = found
        cursor.execute(_LIST_OF_SETTLEMENT, parameters | {"settlement": restore.last_settlement_id})
        restore.save(update_fields=["last_settlement_id"])
    return True


def _ask_about_resends(restore: Restore, at: datetime) -> bool:
    """Make the next requests that are to be sent again wait for a status query. Return False if there are none.

    Such a request may have left again without a row. A request that waited without a first POST may have had one.
    Locks: Transactions by id, their Attempts.
    """
    to_send_again = Attempt.objects.filter(Q(state=Attempt.State.WAITING) | Q(resend_at__isnull=False))
    ids = list(to_send_again.order_by("pk").values_list("transaction", flat=True)[:BATCH])
    payouts = {
        payout.pk: payout
        for payout in Transaction.objects.filter(pk__in=ids).order_by("pk").select_for_update(no_key=True, of=("self",))
    }
    locked = to_send_again.filter(transaction__in=payouts).order_by("pk")
    for attempt in locked.select_for_update(no_key=True, of=("self",)):
        changes.ask_before_resend(attempt, maybe_sent_at=restore.survived_at, at=at)
    return bool(ids)


def _end(restore: Restore, at: datetime) -> None:
    """End the listing. After a short loss all payouts that are not listed leave again."""
    restore.state = State.STOPPED if restore.needs_decision else State.ASKING
    restore.save(update_fields=["state"])
    log.warning("Restore %s: %s payouts are asked about before they leave", restore.pk, restore.ask_first.count())
    end_stop(reason="The payouts that may have left are listed.", by=audit.MACHINE, at=at)


def end_stop(*, reason: str, by: audit.Actor, at: datetime) -> None:
    """Let payouts leave again unless another restore still stops them, in the caller's transaction.

    Locks: the lock of restores, so that no new restore begins meanwhile; the Breaker, the end of the audit trail.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [locks.RESTORES])
    if not Restore.objects.filter(state__in=[State.LISTING, State.STOPPED]).exists():
        breakers.end_stop(Breaker.Cause.RESTORE, by=by, reason=reason, at=at)
