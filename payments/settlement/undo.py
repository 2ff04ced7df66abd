"""Undo of a settlement: take back the money that has not left, and make the rest a member debt.

`begin` declares the undo; from then on nothing of the settlement is sent. `carry_out` works member by member: it
cancels payouts that have not left, reverses wallet parts as far as the wallet's balance allows, and makes the rest a
debt (ledger/receivables.py). The rest is the money that M-Pesa has carried, or may be carrying now. Then no bet has a
result, the pool holds every stake, and the market may be resolved again. A request in doubt is still asked about. If
it proves not paid, its debt is cancelled (payouts/evidence/booking.py).

Like settling, it works in chunks, can be resumed at any line, and keeps its place in the same cursors.
Lock order: Market, Transactions by id, Attempts, Recoveries, wallets; the Settlement's row last, because a claim holds
Transactions while it waits for that row.
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
from payments.models import Attempt, Proposal, Settlement, Transaction, Transfer
from payments.payouts import attempts
from payments.policy import Policy
from payments.settlement import division, proposals, settling, status
from users import audit
from users.refusal import Refusal

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

State = Settlement.State
END = 2**62
_SQL = named_sql.beside(__file__)


class NotUndoable(Refusal):
    """The market has no settlement that could be undone."""


@dataclass(frozen=True)
class Undoing:
    """An undo that has begun. Nothing more is sent; `carry_out` does the rest."""

    market_id: int
    settlement_id: int


def undo(*, market_id: int, reason: str, by: audit.Actor, at: datetime, policy: Policy) -> Undoing | proposals.Proposed:
    """Begin to undo a settled market, or propose it if the pool is above `policy.approval_above`.

    Sending stops in both cases.
    Locks: Market, Settlement.
    Raises: locks.MarketNotFound; NotUndoable; own_affairs.StakeInMarket; proposals.ProposalWaits;
    proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        settlement = status.deciding_settlement(market.pk)
        if settlement is None or settlement.state != State.SETTLED or settlement.rule == Settlement.Rule.VOID:
            raise NotUndoable(
                f"Market {market_id} is {market.status}. Only a settled market can be undone, never a void."
            )
        own_affairs.refuse_stakeholders(market, by)
        proposals.refuse_while_one_waits(market)
        pool = (settlement.pool or journal.ZERO) + (settlement.late_refund or journal.ZERO)
        if not policy.needs_approval(pool):
            return begin(market, settlement, reason=reason, by=by, at=at, action="market.undo")
        settlement.stopped_at = at
        settlement.save(update_fields=["stopped_at"])
        return proposals.make(
            market, decision=None, reason=reason, preview_hash=hash_of(settlement), pool=pool, by=by, at=at
        )


def begin(
    market: Market, settlement: Settlement, *, reason: str, by: audit.Actor, at: datetime, action: str
) -> Undoing:
    """Declare the undo of a SETTLED settlement.

    Runs in the caller's transaction, which has locked the market. Call it last, because it writes the audit entry.
    """
    settlement.state = State.UNDOING
    settlement.last_user_id = settlement.last_bet_id = 0
    settlement.undone_by_id, settlement.undone_at, settlement.undone_reason = by.user_id, at, reason[:300]
    settlement.save(update_fields=["state", "last_user_id", "last_bet_id", "undone_by", "undone_at", "undone_reason"])
    # An open proposal to undo it has nothing left to decide.
    market.proposals.filter(state=Proposal.State.OPEN).update(
        state=Proposal.State.STALE, words="It was undone meanwhile.", decided_by=by.user_id, decided_at=at
    )
    alarm.warning("Market %s: settlement %s is being undone by member %s", market.pk, settlement.number, by.user_id)
    audit.record(
        action=action,
        by=by,
        subject=f"market:{market.pk}",
        before={"status": market.status, "settlement": settlement.number, "outcome": market.resolved_outcome},
        after={"status": Market.Status.CLOSED},
        at=at,
        reason=reason,
    )
    return Undoing(market.pk, settlement.pk)


def hash_of(settlement: Settlement) -> str:
    """Hash a settlement with its totals: a second person approves the undo of exactly this settlement."""
    fields = ("pk", "market_id", "number", "pool", "fee", "net", "state")
    totals = {name: str(getattr(settlement, name)) for name in fields}
    return hashlib.sha256(json.dumps(totals, sort_keys=True).encode()).hexdigest()


def close_again(market: Market) -> None:
    """Close the market again, as before its resolution, in the caller's transaction."""
    market.status = Market.Status.CLOSED
    market.resolved_outcome = market.resolved_at = market.settled_at = market.effective_close_at = None
    market.save(update_fields=["status", "resolved_outcome", "resolved_at", "settled_at", "effective_close_at"])


def to_carry_out(limit: int) -> list[int]:
    """Return the ids of the markets whose settlement is being undone, oldest first."""
    return list(
        Settlement.objects.filter(state=State.UNDOING).order_by("pk").values_list("market_id", flat=True)[:limit]
    )


def carry_out(*, market_id: int, at: datetime, policy: Policy, keep_going: Callable[[], bool]) -> bool:
    """Carry out an undo as far as `keep_going` allows, and return whether it is complete.

    Idempotent: skips a market without an undo in progress. Safe to kill at any line.
    Locks: Market, a chunk of Transactions by id, their Attempts, Recoveries, wallets, the Settlement.
    Raises: settling.BooksDisagree; the step that raises it books nothing.
    """
    while True:
        with transaction.atomic(durable=True):
            market = locks.locked_market(market_id)
            settlement = market.settlements.filter(state=State.UNDOING).first()
            if settlement is None:
                return True
            if settlement.last_user_id < END:
                _recall_members(settlement, at=at, policy=policy)
            elif settlement.last_bet_id < END:
                _take_results_back(settlement, policy.settlement_chunk)
            else:
                _finish(market, settlement, at)
            failpoints.hit("undo step before commit")
        failpoints.hit("undo step after commit")
        if not keep_going():
            return False


def _recall_members(settlement: Settlement, *, at: datetime, policy: Policy) -> None:
    """Cancel the payouts of the next chunk of members by id, reverse wallet parts, and make the rest their debts."""
    low = settlement.last_user_id
    members = (
        Transaction.objects.filter(settlement=settlement, user_id__gt=low)
        .order_by("user_id").values_list("user_id", flat=True).distinct()
    )  # fmt: skip
    high = next(iter(members[policy.settlement_chunk - 1 : policy.settlement_chunk]), END)
    payouts = Transaction.objects.filter(settlement=settlement, user_id__gt=low, user_id__lte=high)
    # From here on no claim, callback or operator moves them. An earlier claim has committed its attempt.
    list(payouts.order_by("pk").select_for_update(no_key=True, of=("self",)).values_list("pk"))
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
    for name in ("cancel", "open_receivables", "reverse", "recall", "owe"):
        _execute(_SQL[name], parameters)
    settlement.last_user_id = high
    settlement.save(update_fields=["last_user_id"])


def _stop_waiting_attempts(payouts: QuerySet[Transaction], *, at: datetime, policy: Policy) -> None:
    """Stop requests that wait to be sent again: fail those that never left, and mark those in doubt that may have."""
    waiting = Attempt.objects.filter(transaction__in=payouts, state=Attempt.State.WAITING)
    for attempt in waiting.select_related("transaction").order_by("pk").select_for_update(no_key=True, of=("self",)):
        if attempt.first_sent_at is None and attempt.doubted_at is None:
            words = "Not sent: the settlement is undone"
            attempts.fail(attempt.transaction, attempt, code="", words=words, at=at, policy=policy)
        else:
            attempts.doubt(attempt, ask_at=at, at=at)


def _take_results_back(settlement: Settlement, chunk: int) -> None:
    """Make the next chunk of bets PENDING again, apart from bets on scratched outcomes."""
    low = settlement.last_bet_id
    ids = Bet.objects.filter(market=settlement.market_id, pk__gt=low).order_by("pk").values_list("pk", flat=True)
    high = next(iter(ids[chunk - 1 : chunk]), END)
    scratched = list(settlement.market.outcomes.exclude(scratched_at=None).values_list("name", flat=True))
    bets = Bet.objects.filter(market=settlement.market_id, pk__gt=low, pk__lte=high).exclude(outcome__in=scratched)
    bets.update(result=Bet.Result.PENDING, payout=journal.ZERO)
    settlement.last_bet_id = high
    settlement.save(update_fields=["last_bet_id"])


def _finish(market: Market, settlement: Settlement, at: datetime) -> None:
    """Return the fee, check that the pool holds every stake to the cent, and close the market again."""
    fee = Transfer.objects.filter(key=f"fee:{settlement.pk}").first()
    if fee is not None:
        pool = journal.pool(market.pk)
        journal.post([journal.Entry(f"reverse:{fee.pk}", journal.FEE_INCOME, pool, fee.amount)], at=at)
    held = journal.balance(journal.pool(market.pk))
    staked = settling.stakes_held(market, division.staked(market))
    if held != staked:
        raise settling.BooksDisagree(f"Market {market.pk}: undone, its pool would hold {held} of {staked} staked.")
    settlement.state = State.UNDONE
    settlement.save(update_fields=["state"])
    close_again(market)
    log.info("Undid settlement %s of market %s", settlement.number, market.pk)


def _execute(sql: str, parameters: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
