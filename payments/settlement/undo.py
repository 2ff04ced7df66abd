"""Undo of a settlement: take back unsent money, and make the rest a member debt.

`begin` declares the undo. From then on no payout of the settlement is sent. `carry_out` works member by member. It
cancels payouts that have not left. It takes back wallet credits, as far as the balance allows. The rest becomes a
receivable (ledger/receivables.py): wallet money that the member has spent, and money that M-Pesa has paid or may still
pay. At the end no bet has a result, the pool holds every stake, and the market may be resolved again. Status queries
about requests in doubt go on. If a request is proven not paid, the member's debt for it is cancelled
(payouts/evidence/booking.py).

Like settling, an undo works in chunks and may be killed at any line and resumed. It keeps its place in the settlement's
cursors (`last_user_id`, `last_bet_id`).
Lock order: Market, Transactions by id, Attempts, DayTotals, Recoveries, wallets, the Settlement's row. That row is
last, because a claim holds Transactions while it waits for the row.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet

from markets import locks
from markets.models import Bet, Market
from payments import failpoints, named_sql, own_affairs
from payments.ledger import journal
from payments.models import Attempt, Settlement, Transaction, Transfer
from payments.payouts import attempts, day_limit
from payments.payouts.restores import asking
from payments.policy import Policy
from payments.settlement import division, failures, proposals, status
from users import audit, second_person
from users.proposals import Draft, Proposed, lapse, make, refuse_while_one_waits
from users.refusal import Refusal

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

State = Settlement.State
# The value of a cursor that has passed the last id.
CURSOR_DONE = 2**62
_SQL = named_sql.beside(__file__)


class NotUndoable(Refusal):
    """The market has no settlement that could be undone."""


@dataclass(frozen=True)
class Undoing:
    """An undo that has begun. No more payouts are sent, and `carry_out` does the rest."""

    market_id: int
    settlement_id: int


def undo(*, market_id: int, reason: str, by: audit.Actor, at: datetime, policy: Policy) -> Undoing | Proposed:
    """Begin to undo a settled market, or propose it if the pool needs a second person.

    Sending of the settlement's payouts stops in both cases.
    Locks: Market, the actor's acts of this kind, Settlement.
    Raises: locks.MarketNotFound; NotUndoable; own_affairs.StakeInMarket; users.proposals.ProposalWaits;
    users.proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        settlement = status.deciding_settlement(market.pk)
        if settlement is None or settlement.state != State.SETTLED or settlement.rule == Settlement.Rule.VOID:
            raise NotUndoable(
                f"Market {market_id} is {market.status}. Only a settled market can be undone, never a void."
            )
        own_affairs.refuse_stakeholders(market, by)
        refuse_while_one_waits(proposals.subject(market_id))
        pool = (settlement.pool or journal.ZERO) + (settlement.late_refund or journal.ZERO)
        otherwise = policy.approval_above
        if not second_person.needed(proposals.UNDO, amount=pool, by=by, at=at, otherwise=otherwise):
            return begin(market, settlement, reason=reason, by=by, at=at, action="market.undo")
        settlement.stopped_at = at
        settlement.save(update_fields=["stopped_at"])
        draft = Draft(proposals.UNDO, proposals.subject(market_id), hash_of(settlement), reason, pool)
        return make(draft, by=by, at=at)


def begin(
    market: Market,
    settlement: Settlement,
    *,
    reason: str,
    by: audit.Actor,
    at: datetime,
    action: str,
    proposed_by: int | None = None,
) -> Undoing:
    """Declare the undo of a SETTLED settlement, or of a division or scratch that found its books wrong.

    `proposed_by` is the id of the first person, if `by` approved a proposal.
    Runs in the caller's transaction, which has locked the market. Call it last: its audit entry locks the end of the
    audit trail, which comes last in the lock order.
    """
    settlement.state = State.UNDOING
    settlement.last_user_id = settlement.last_bet_id = 0
    settlement.undone_by_id, settlement.undone_at, settlement.undone_reason = by.user_id, at, reason[:300]
    settlement.save(update_fields=["state", "last_user_id", "last_bet_id", "undone_by", "undone_at", "undone_reason"])
    # An open proposal to undo the settlement has nothing left to decide.
    lapse(proposals.subject(market.pk), words="The settlement was undone meanwhile.", by=by, at=at)
    alarm.warning("Market %s: settlement %s is being undone by staff user %s", market.pk, settlement.number, by.user_id)
    audit.record(
        action=action,
        by=by,
        subject=f"market:{market.pk}",
        before={"status": market.status, "settlement": settlement.number, "outcome": market.resolved_outcome},
        after={"status": market.status if settlement.scratched else Market.Status.CLOSED}
        | ({"proposed_by": proposed_by} if proposed_by is not None else {}),
        at=at,
        reason=reason,
    )
    return Undoing(market.pk, settlement.pk)


def hash_of(settlement: Settlement) -> str:
    """Hash a settlement with its totals, so that a second person's approval holds for exactly these figures."""
    fields = ("pk", "market_id", "number", "pool", "fee", "net", "state")
    totals = {name: str(getattr(settlement, name)) for name in fields}
    return hashlib.sha256(json.dumps(totals, sort_keys=True).encode()).hexdigest()


def close_again(market: Market) -> None:
    """Close the market again, as before its resolution, in the caller's transaction.

    A market that was decided before its end stopped taking bets then. It is closed for good since that moment, and the
    reminders count from it.
    """
    market.status = Market.Status.CLOSED
    if market.closed_at is None and market.resolved_at is not None and market.resolved_at < market.end_date:
        market.closed_at = market.resolved_at
    market.resolved_outcome = market.resolved_at = market.settled_at = market.effective_close_at = None
    columns = ["status", "closed_at", "resolved_outcome", "resolved_at", "settled_at", "effective_close_at"]
    market.save(update_fields=columns)


def put_back(scratch: Settlement) -> None:
    """Let the outcome of a withdrawn scratch win again, in the caller's transaction. Its stakes are in the pool."""
    scratch.market.outcomes.filter(name=scratch.scratched).update(scratched_at=None)


def to_carry_out(limit: int) -> list[int]:
    """Return the ids of the markets whose settlement is being undone, oldest first."""
    return list(
        Settlement.objects.filter(state=State.UNDOING).order_by("pk").values_list("market_id", flat=True)[:limit]
    )


def carry_out(*, market_id: int, at: datetime, policy: Policy, keep_going: Callable[[], bool]) -> bool:
    """Carry out an undo as far as `keep_going` allows, and return True if nothing is left to do now.

    After a restore an undo waits for payouts that may have left without a row. The sweep asks about them and calls this
    again.

    Idempotent: skips a market without an undo in progress. Safe to kill at any line.
    Locks: Market, a chunk of Transactions by id, their Attempts, Recoveries, wallets, the Settlement.
    Raises: failures.BooksDisagree. The step that raises it is rolled back, and the settlement keeps the reason.
    """
    try:
        return _carry_out(market_id, at=at, policy=policy, keep_going=keep_going)
    except failures.BooksDisagree as error:
        failures.record(market_id, str(error))
        raise


def _carry_out(market_id: int, *, at: datetime, policy: Policy, keep_going: Callable[[], bool]) -> bool:
    while True:
        with transaction.atomic(durable=True):
            market = locks.locked_market(market_id)
            settlement = market.settlements.filter(state=State.UNDOING).first()
            if settlement is None:
                return True
            if settlement.last_user_id < CURSOR_DONE:
                if not _undo_payouts_of_members(settlement, at=at, policy=policy):
                    return True
            elif settlement.last_bet_id < CURSOR_DONE:
                _take_results_back(settlement, policy.settlement_chunk)
            else:
                _finish(market, settlement, at)
            failpoints.hit("undo step before commit")
        failpoints.hit("undo step after commit")
        if not keep_going():
            return False


def _undo_payouts_of_members(settlement: Settlement, *, at: datetime, policy: Policy) -> bool:
    """Cancel payouts, reverse wallet credits and book the rest as receivables, for the next chunk of members by id.

    Does nothing and returns False if a payout of the chunk may have left before a restore and is not asked about yet.
    """
    low = settlement.last_user_id
    members = (
        Transaction.objects.filter(settlement=settlement, user_id__gt=low)
        .order_by("user_id").values_list("user_id", flat=True).distinct()
    )  # fmt: skip
    high = next(iter(members[policy.settlement_chunk - 1 : policy.settlement_chunk]), CURSOR_DONE)
    payouts = Transaction.objects.filter(settlement=settlement, user_id__gt=low, user_id__lte=high)
    # Until the commit, no claim, callback or operator changes these payouts. An earlier claim has committed, so its
    # attempt is visible here.
    locked = payouts.order_by("pk").select_for_update(no_key=True, of=("self",))
    if asking.any_not_opened(locked.values_list("pk", flat=True)):
        return False
    _stop_waiting_attempts(payouts, at=at, policy=policy)
    debts = settlement.recoveries.filter(user_id__gt=low, user_id__lte=high).order_by("pk")
    list(debts.select_for_update(no_key=True, of=("self",)).values_list("pk"))  # Lock order: before wallets.
    codes = [journal.PAYABLE, journal.pool(settlement.market_id)]
    accounts = journal.open_accounts(codes)
    parameters = {
        "settlement": settlement.pk,
        "low": low,
        "high": high,
        "at": at,
        "open": list(Attempt.OPEN),
        "payable": accounts[journal.PAYABLE],
        "pool": accounts[journal.pool(settlement.market_id)],
    }
    for name in ("cancel_unsent", "open_receivable_accounts", "reverse_credits", "book_receivables", "record_debts"):
        _execute(_SQL[name], parameters)
    settlement.last_user_id = high
    settlement.save(update_fields=["last_user_id"])
    return True


def _stop_waiting_attempts(payouts: QuerySet[Transaction], *, at: datetime, policy: Policy) -> None:
    """Stop requests that were to be sent again. One that never left fails; one that may have left is in doubt."""
    promised = Attempt.objects.filter(transaction__in=payouts, resend_at__isnull=False).order_by("pk")
    for attempt in promised.select_for_update(no_key=True, of=("self",)):
        attempts.resend_at(attempt, None)
    rows = Attempt.objects.filter(transaction__in=payouts, state=Attempt.State.WAITING)
    locked = rows.select_related("transaction").order_by("pk").select_for_update(no_key=True, of=("self",))
    waiting = list(locked)
    day_limit.lock(attempt.transaction.user_id for attempt in waiting)
    for attempt in waiting:
        if attempt.first_sent_at is None and attempt.doubted_at is None:
            words = "Not sent: the settlement is undone"
            attempts.fail(attempt.transaction, attempt, code="", words=words, at=at, policy=policy)
        else:
            attempts.doubt(attempt, ask_at=at, at=at)


def _take_results_back(settlement: Settlement, chunk: int) -> None:
    """Make the next chunk of bets PENDING again: bets on running outcomes, or of a scratch, bets on its outcome.

    Stakes that were taken back stay in the wallets.
    """
    low = settlement.last_bet_id
    ids = Bet.objects.filter(market=settlement.market_id, pk__gt=low).order_by("pk").values_list("pk", flat=True)
    high = next(iter(ids[chunk - 1 : chunk]), CURSOR_DONE)
    decided = division.outcomes_of(settlement)
    bets = Bet.objects.filter(market=settlement.market_id, pk__gt=low, pk__lte=high, taken_back_at=None)
    bets = bets.filter(outcome__in=decided)
    bets.update(result=Bet.Result.PENDING, payout=journal.ZERO)
    settlement.last_bet_id = high
    settlement.save(update_fields=["last_bet_id"])


def _finish(market: Market, settlement: Settlement, at: datetime) -> None:
    """Move the fee back to the pool, check that the pool equals all stakes to the cent, and close the market again.

    After the undo of a scratch the market stays as it is, and the outcome may win again. A division that found its
    books wrong gave the market no result, so it is withdrawn although the pool is still wrong. The pool then holds what
    it held before the division, and the next settlement finds the difference again.
    """
    fee = Transfer.objects.filter(key=f"fee:{settlement.pk}").first()
    if fee is not None:
        pool = journal.pool(market.pk)
        journal.post([journal.Entry(f"reverse:{fee.pk}", journal.FEE_INCOME, pool, fee.amount)], at=at)
    held = journal.balance(journal.pool(market.pk))
    staked = division.stakes_held(market, division.staked(market))
    was_divided = settlement.settled_at is not None
    if held != staked:
        words = f"Market {market.pk}: after the undo the pool would hold {held}, but the stakes are {staked}."
        if was_divided:
            raise failures.BooksDisagree(words)
        alarm.critical("%s Its division is withdrawn. Correct the books before you resolve it again.", words)
    settlement.state = State.UNDONE
    if was_divided:
        settlement.failure = ""
    settlement.save(update_fields=["state", "failure"])
    if settlement.rule == Settlement.Rule.SCRATCH:
        put_back(settlement)
    else:
        close_again(market)
    log.info("Undid settlement %s of market %s", settlement.number, market.pk)


def _execute(sql: str, parameters: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
