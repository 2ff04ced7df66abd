"""State changes of attempts that are asked about after a restore. The caller owns the database transaction."""

from collections.abc import Mapping
from datetime import datetime

from django.db.models import QuerySet

from payments.models import Attempt, Transaction
from payments.mpesa.callback_urls import Addresses
from payments.payouts import attempts, eligibility
from payments.policy import Policy

State = Attempt.State
Status = Transaction.Status


def open_in_doubt(
    payouts: Mapping[Transaction, int],
    *,
    maybe_sent_at: Mapping[int, datetime],
    cleared_at: Mapping[int, datetime | None],
    at: datetime,
    policy: Policy,
    addresses: Addresses,
) -> None:
    """Open an attempt of each payout in doubt, with a status query due now. Its request has not left here.

    `payouts` maps each payout to the number of its new attempt. A request with this id may have left before a restore,
    at `maybe_sent_at` (by payout id). So the attempt counts as POSTed then, and the rules for requests in doubt decide.
    Locks: none further; the caller holds the Transactions.
    """
    opened = [attempts.new_attempt(payout, number, at, policy, addresses) for payout, number in payouts.items()]
    for attempt in opened:
        attempt.counted_on = None  # It counts for the member's limit of the day when it leaves.
    attempts.open_many(opened, at=at)
    for attempt in opened:
        attempt.state, attempt.posted_at = State.IN_DOUBT, None
        attempt.first_sent_at, attempt.asked_first_at = maybe_sent_at[attempt.transaction_id], at
        attempt.cleared_at = cleared_at[attempt.transaction_id]
        attempt.doubted_at = attempt.next_query_at = at
    columns = ("state", "posted_at", "first_sent_at", "asked_first_at", "cleared_at", "doubted_at", "next_query_at")
    Attempt.objects.bulk_update(opened, columns)
    ids = [payout.pk for payout in payouts]
    # A payout of an undo may be FAILED or HELD. Only a pending payout can become PROCESSING.
    Transaction.objects.filter(pk__in=ids, status__in=[Status.FAILED, Status.HELD]).update(status=Status.PENDING)
    attempts.start(ids)


def ask_before_resend(attempt: Attempt, *, maybe_sent_at: datetime, at: datetime) -> None:
    """Ask about an attempt that was to be sent again, because a restore may have lost the row of a POST.

    The attempt counts as POSTed at `maybe_sent_at` if no POST of it is known. It is sent again only if a status query
    does not find it.
    Locks: none further; the caller holds the Transaction and the Attempt.
    """
    attempt.first_sent_at = attempt.first_sent_at or maybe_sent_at
    attempt.asked_first_at, attempt.cleared_at, attempt.resend_at = at, None, None
    attempts.doubt(attempt, ask_at=at, at=at)


def clear_to_leave(chosen: QuerySet[Attempt], *, at: datetime) -> None:
    """Let the chosen attempts that are asked about after a restore leave, if the next status query does not find them.

    A payout that was held only because nobody decided in time is under way again. A payout stays held if an earlier
    request of it was paid after all.
    Locks: their Transactions by id, then these Attempts by id.
    """
    in_doubt = chosen.filter(state=State.IN_DOUBT, asked_first_at__isnull=False)
    payouts = Transaction.objects.filter(attempts__in=in_doubt).order_by("pk")
    ids = list(payouts.select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True))
    locked = in_doubt.filter(transaction__in=ids).order_by("pk").select_for_update(no_key=True, of=("self",))
    cleared = {attempt.pk: attempt for attempt in locked}
    Attempt.objects.filter(pk__in=cleared).update(cleared_at=at, next_query_at=at)
    undecided = [attempt.transaction_id for attempt in cleared.values() if not attempt.paid_report]
    held = Transaction.objects.filter(pk__in=undecided, status=Status.HELD, held_by_person=False)
    released = [payout.pk for payout in held if not eligibility.is_paid(payout)]
    held.filter(pk__in=released).update(status=Status.PENDING)
    attempts.start(released)
