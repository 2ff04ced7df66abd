"""The rule for payouts that may leave, shared by all code that sends.

The SQL below names a payout `t` and its settlement `s`. A payout with a settlement may leave if the payout is DUE and
the settlement is RELEASED. A payout without a settlement may leave if it is DUE.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import Exists, Max, OuterRef, Q

from markets.models import NAIROBI
from payments.models import AskFirst, Orphan, Restore, RestoreDecision, Settlement, Transaction
from users import proposals

# A payout that was paid once gets no other request. A payment to a number that has been replaced does not count.
# A payout also waits while we still ask M-Pesa about its failed request. We ask for one of two reasons: a retry was
# requested, or a callback reported that the failed request was paid. A payout also waits while M-Pesa reports a
# request with its reference that our books do not have (an orphan).
DUE_OR_ASKED_FIRST = """
    t.status = 'PENDING' AND t.destination = 'mpesa' AND t.type = 'PAYOUT' AND t.due_at <= %(at)s
    AND NOT EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = t.id
        AND (a.state = 'PAID' AND a.phone_number = coalesce(nullif(t.reissued_to, ''), t.phone_number)
            OR a.state = 'FAILED' AND a.next_query_at IS NOT NULL))
    AND NOT EXISTS (SELECT FROM payments_orphan o
        WHERE o.external_ref = t.external_ref AND o.state IN ('WAITING', 'SUSPENSE') AND NOT o.is_supposed)
"""
# A payout that may have left before a restore is never claimed. `restores.asking` opens its request, and asks first.
# OFFSET 0 makes this a look-up for each row. Without it the planner may join this table to all due payouts. Measured
# for 120,000 due payouts on tables that are not analysed: 270 ms instead of 4 ms.
DUE = f"""{DUE_OR_ASKED_FIRST}
    AND NOT EXISTS (SELECT FROM payments_askfirst f WHERE f.transaction_id = t.id AND f.ended_at IS NULL OFFSET 0)
"""
# The condition for a settlement that is neither undone nor stopped. `active` is the same condition for the ORM.
ACTIVE = "s.state = 'SETTLED' AND s.stopped_at IS NULL AND s.sending_suspended_at IS NULL"
# The condition for a released settlement: its hold is over, and its canary is complete or has a free slot.
RELEASED = f"""
    {ACTIVE} AND s.release_at <= %(at)s AND (s.release_open OR s.id = ANY (%(in_canary)s::bigint[]))
"""
_MAY_LEAVE = f"""
    SELECT t.id FROM payments_transaction t LEFT JOIN payments_settlement s ON s.id = t.settlement_id
    WHERE t.id = ANY (%(payouts)s::bigint[]) AND {DUE} AND (s.id IS NULL OR {RELEASED})
"""  # noqa: S608 - fragments of this module


def active(settlement: str = "") -> Q:
    """Return the filter for settlements that are neither undone nor stopped; `settlement` is the ORM path to them."""
    return Q(
        (f"{settlement}state", Settlement.State.SETTLED),
        (f"{settlement}stopped_at", None),
        (f"{settlement}sending_suspended_at", None),
    )


_LOCK_ACTIVE = f"""
    SELECT s.id FROM payments_settlement s WHERE s.id = ANY (%s) AND {ACTIVE} ORDER BY s.id FOR SHARE
"""  # noqa: S608 - a fragment of this module


def lock_active(settlement_ids: Iterable[int]) -> set[int]:
    """Return the settlements that are neither undone nor stopped, and lock them in this state until the commit.

    Locks: these Settlements by id, FOR SHARE.
    """
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_ACTIVE, [sorted(settlement_ids)])
        return {settlement_id for (settlement_id,) in cursor.fetchall()}


def is_paid(payout: Transaction, number: str = "") -> bool:
    """Return True if a request of the payout to its receiver, or to `number`, was paid. Then no other request leaves.

    A payment to a number that has been replaced does not count.
    """
    return payout.attempts.filter(state="PAID", phone_number=number or payout.receiver).exists()


def stop_of(payout: Transaction, *, at: datetime) -> str:
    """Return why the payout's settlement stops every manual action that moves its money, or an empty string.

    Every road asks this: retry, bulk retry, release, payment to the wallet, remedies of disputes, re-issue.
    Locks: none. A stop that commits at the same moment counts as later than the action. A claim checks again under
    lock, and an undo takes back what the action did.
    """
    if payout.settlement_id is None:
        return ""
    settlement = Settlement.objects.select_related("market").get(pk=payout.settlement_id)
    if settlement.state in (Settlement.State.UNDOING, Settlement.State.UNDONE):
        return f"The settlement of transaction {payout.pk} is undone, so nothing of it is paid. No money moved."
    if settlement.state != Settlement.State.SETTLED:
        return f"The settlement of transaction {payout.pk} is not finished. No money moved. Wait for it."
    if settlement.stopped_at is not None or settlement.market_id in proposals.open_subjects("market", "market.undo"):
        return (
            f"An undo of the settlement of transaction {payout.pk} is proposed, so its payouts are stopped."
            " No money moved. Approve or reject the proposal first."
        )
    if settlement.sending_suspended_at is not None:
        return (
            f"The payouts of market {settlement.market_id} are suspended by a person. No money moved."
            " Resume the sending on the market's page first."
        )
    if settlement.release_at is None or settlement.release_at > at:
        until = (
            f"{settlement.release_at.astimezone(NAIROBI):%d %b %Y %H:%M}" if settlement.release_at else "its release"
        )
        return (
            f"The payouts of market {settlement.market_id} are held until {until}. No money moved."
            " Wait until then, or withdraw the resolution."
        )
    return ""


def stopped(at: datetime) -> Q:
    """Return the filter for payouts whose settlement stops their money, as `stop_of` says."""
    undone = proposals.open_subjects("market", "market.undo")
    may_move = Settlement.objects.filter(active(), release_at__lte=at).exclude(market__in=undone)
    return Q(settlement__isnull=False) & ~Q(settlement__in=may_move)


def unasked() -> Q:
    """Return the filter for payouts of which M-Pesa has not been asked about each request that a restore may have lost.

    Such a payout may be paid already, under this number or a later one. So nothing else may be done with its money.
    """
    listed = AskFirst.objects.filter(transaction=OuterRef("pk"), ended_at=None)
    open_questions = Orphan.objects.filter(
        external_ref=OuterRef("external_ref"), state=Orphan.State.WAITING, is_supposed=True
    )
    return Q(Exists(listed.filter(later_asked_at=None))) | Q(Exists(listed)) & Q(Exists(open_questions))


def is_unasked(payout: Transaction) -> bool:
    """Return True if `unasked` holds for the payout. Locks: none."""
    return Transaction.objects.filter(unasked(), pk=payout.pk).exists()


def decided_alone(transaction_ids: Iterable[int]) -> set[int]:
    """Return the payouts of which two people decided, for this payout alone, that its lost requests did not leave.

    A decision from before the newest restore does not count, because further requests may be lost since. Locks: none.
    """
    newest = Restore.objects.aggregate(newest=Max("noticed_at"))["newest"]
    confirmed = RestoreDecision.objects.filter(confirmed=True, transaction__in=list(transaction_ids))
    if newest is not None:
        confirmed = confirmed.filter(closed_at__gte=newest)
    return {pk for pk in confirmed.values_list("transaction", flat=True) if pk is not None}


def may_leave(transaction_ids: Sequence[int], *, in_canary: Sequence[int], at: datetime) -> set[int]:
    """Return the payouts among `transaction_ids` that may leave at `at`.

    `in_canary`: the settlements whose canary has a free slot (`canary.in_canary`).
    Locks: none; a claim checks again under lock.
    """
    parameters: dict[str, Any] = {"payouts": list(transaction_ids), "in_canary": list(in_canary), "at": at}
    with connection.cursor() as cursor:
        cursor.execute(_MAY_LEAVE, parameters)
        return {transaction_id for (transaction_id,) in cursor.fetchall()}
