"""Undoing a settlement: what has not left comes back, what M-Pesa carried is owed by whom it reached.

`begin` declares it, and from then on nothing of the settlement is sent. `carry_out` does it, member by member: payouts
that did not leave are cancelled; wallet parts come back by reversing transfers as far as the wallet holds them; the
rest, what M-Pesa has carried or may carry at this moment, becomes the member's debt (recoveries.py). Then the bets have
no verdict again, the pool holds every stake, and the market may be resolved anew. A request whose fate is open goes on
being asked about: if it is proven not paid, the debt it stood for is cancelled (evidence.py).

Like settling it goes a chunk at a time, resumable at any line, from the same cursors.
Lock order: Market, Transactions by id, Attempts, Recoveries, wallets; the Settlement's row last, because a claim holds
Transactions while it waits for it.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from markets import locks
from markets.models import Bet, Market
from payments import failpoints, own_affairs
from payments.ledger import journal
from payments.models import Attempt, Proposal, Settlement, Transaction, Transfer
from payments.payouts import attempts
from payments.policy import Policy
from payments.settlement import division, proposals, settling
from users import audit
from users.refusal import Refusal

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

State = Settlement.State
END = 2**62


class NotUndoable(Refusal):
    """The market has no settlement that could be undone."""


@dataclass(frozen=True)
class Undoing:
    """An undo that has begun: nothing more is sent, `carry_out` does the rest."""

    market_id: int
    settlement_id: int


def undo(*, market_id: int, reason: str, by: audit.Actor, at: datetime, policy: Policy) -> Undoing | proposals.Proposed:
    """Begin to undo a settled market. Above `policy.approval_above` it is a proposal; sending stops in either case.

    Locks: Market, Settlement.
    Raises: stakes.MarketNotFound; NotUndoable; proposals.StakeInMarket; proposals.ProposalWaits;
    proposals.PersonNeeded.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        run = deciding_run(market)
        if run is None or run.state != State.SETTLED or run.rule == Settlement.Rule.VOID:
            raise NotUndoable(f"Market {market_id} is {market.status}: only a settled one can be undone, never a void.")
        own_affairs.refuse_stakeholders(market, by)
        proposals.refuse_while_one_waits(market)
        pool = (run.pool or journal.ZERO) + (run.late_refund or journal.ZERO)
        if not policy.needs_approval(pool):
            return begin(market, run, reason=reason, by=by, at=at, action="market.undo")
        run.stopped_at = at
        run.save(update_fields=["stopped_at"])
        kind = Proposal.Kind.UNDO
        return proposals.make(market, kind=kind, preview_hash=hash_of(run), pool=pool, by=by, at=at, reason=reason)


def begin(market: Market, run: Settlement, *, reason: str, by: audit.Actor, at: datetime, action: str) -> Undoing:
    """Declare the undo of a SETTLED run, in the caller's transaction, which has the market locked; it comes last."""
    run.state = State.UNDOING
    run.last_user_id = run.last_bet_id = 0
    run.undone_by_id, run.undone_at, run.undone_reason = by.user_id, at, reason[:300]
    run.save(update_fields=["state", "last_user_id", "last_bet_id", "undone_by", "undone_at", "undone_reason"])
    # One that waits to do the same is answered by this one.
    market.proposals.filter(state=Proposal.State.OPEN).update(
        state=Proposal.State.STALE, words="It was undone meanwhile.", decided_by=by.user_id, decided_at=at
    )
    alarm.warning("Market %s: settlement %s is being undone by member %s", market.pk, run.number, by.user_id)
    audit.record(
        action=action,
        by=by,
        subject=f"market:{market.pk}",
        before={"status": market.status, "settlement": run.number, "outcome": market.resolved_outcome},
        after={"status": Market.Status.CLOSED},
        at=at,
        reason=reason,
    )
    return Undoing(market.pk, run.pk)


def deciding_run(market: Market) -> Settlement | None:
    """The run that decides the market, or is being undone; scratches of single outcomes are none."""
    live = market.settlements.filter(state__in=[State.PENDING, State.DIVIDING, State.SETTLED, State.UNDOING])
    return live.exclude(rule=Settlement.Rule.SCRATCH).first()


def hash_of(run: Settlement) -> str:
    """What a second person approves: this very run, with its totals."""
    totals = {name: str(getattr(run, name)) for name in ("pk", "market_id", "number", "pool", "fee", "net", "state")}
    return hashlib.sha256(json.dumps(totals, sort_keys=True).encode()).hexdigest()


def close_again(market: Market) -> None:
    """Leave the market as it was before its resolution, in the caller's transaction."""
    market.status = Market.Status.CLOSED
    market.resolved_outcome = market.resolved_at = market.settled_at = market.effective_close_at = None
    market.save(update_fields=["status", "resolved_outcome", "resolved_at", "settled_at", "effective_close_at"])


def to_carry_out(limit: int) -> list[int]:
    """Ids of the markets whose settlement is being undone, oldest first."""
    return list(
        Settlement.objects.filter(state=State.UNDOING).order_by("pk").values_list("market_id", flat=True)[:limit]
    )


def carry_out(*, market_id: int, at: datetime, policy: Policy, keep_going: Callable[[], bool]) -> bool:
    """Go on with an undo that has begun, as far as `keep_going` allows; whether nothing is left to do.

    Idempotent: what is undone, or was not to be, is left as it is. Safe to kill at any line.
    Locks: Market, a chunk of Transactions by id, their Attempts, Recoveries, wallets, the Settlement.
    Raises: settlement.BooksDisagree, and the step that found it books nothing.
    """
    while True:
        with transaction.atomic(durable=True):
            market = locks.locked_market(market_id)
            run = market.settlements.filter(state=State.UNDOING).first()
            if run is None:
                return True
            if run.last_user_id < END:
                _recall_members(run, at=at, policy=policy)
            elif run.last_bet_id < END:
                _take_verdicts_back(run, policy.settlement_chunk)
            else:
                _finish(market, run, at)
            failpoints.hit("undo step before commit")
        failpoints.hit("undo step after commit")
        if not keep_going():
            return False


def _recall_members(run: Settlement, *, at: datetime, policy: Policy) -> None:
    """Cancel, take back or make a debt of what the next chunk of members, by id, was to have."""
    low = run.last_user_id
    members = (
        Transaction.objects.filter(settlement=run, user_id__gt=low)
        .order_by("user_id").values_list("user_id", flat=True).distinct()
    )  # fmt: skip
    high = next(iter(members[policy.settlement_chunk - 1 : policy.settlement_chunk]), END)
    theirs = Transaction.objects.filter(settlement=run, user_id__gt=low, user_id__lte=high)
    # From here on no claim, callback or operator moves them; what was claimed before has its attempt committed.
    list(theirs.order_by("pk").select_for_update(no_key=True, of=("self",)).values_list("pk"))
    _settle_what_waits(theirs, at=at, policy=policy)
    debts = run.recoveries.filter(user_id__gt=low, user_id__lte=high).order_by("pk")
    list(debts.select_for_update(no_key=True, of=("self",)).values_list("pk"))  # Before any wallet, as everywhere.
    codes = [journal.PAYABLE, journal.pool(run.market_id)]
    accounts = journal.open_accounts(codes)
    span = {
        "settlement": run.pk,
        "low": low,
        "high": high,
        "at": at,
        "open": list(Attempt.OPEN),
        "payable": accounts[journal.PAYABLE],
        "pool": accounts[journal.pool(run.market_id)],
    }
    for statement in (_CANCEL, _OPEN_ACCOUNTS, _REVERSE, _RECALL, _OWE):
        _execute(statement, span)
    run.last_user_id = high
    run.save(update_fields=["last_user_id"])


def _settle_what_waits(theirs: Any, *, at: datetime, policy: Policy) -> None:
    """A request that waits to be sent stays here: one that never left has failed; one that may have is in doubt."""
    waiting = Attempt.objects.filter(transaction__in=theirs, state=Attempt.State.WAITING)
    for attempt in waiting.select_related("transaction").order_by("pk").select_for_update(no_key=True, of=("self",)):
        if attempt.first_sent_at is None and attempt.doubted_at is None:
            words = "Not sent: the settlement is undone"
            attempts.fail(attempt.transaction, attempt, code="", words=words, at=at, policy=policy)
        else:
            attempts.doubt(attempt, ask_at=at, at=at)


# A payout that nothing has left of is owed no more. By the invariant on `payable` the books owe exactly these.
_CANCEL = """
WITH cancelled AS (
    UPDATE payments_transaction t SET status = 'CANCELLED', reason = 'Its settlement was undone.'
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND t.destination = 'mpesa' AND t.status IN ('PENDING', 'HELD', 'FAILED')
      AND NOT EXISTS (SELECT FROM payments_attempt a WHERE a.transaction_id = t.id AND a.state = ANY (%(open)s))
    RETURNING t.id, t.amount
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT 'undo:' || id, %(payable)s, %(pool)s, amount, 'undo', %(at)s, id FROM cancelled ORDER BY id
"""
_OPEN_ACCOUNTS = """
INSERT INTO payments_ledgeraccount (code, kind, user_id)
SELECT DISTINCT 'receivable:' || t.user_id, 'receivable', t.user_id FROM payments_transaction t
WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s AND t.status <> 'CANCELLED'
  AND NOT EXISTS (SELECT FROM payments_ledgeraccount a WHERE a.code = 'receivable:' || t.user_id)
ORDER BY 3 ON CONFLICT (code) DO NOTHING
"""
# What came to the wallet: its own parts, and payouts that went there instead. Not those that went there only to settle
# what M-Pesa had paid after all: these the member has in the phone.
_TO_WALLET = """
    SELECT t.id, t.user_id, t.amount, f.id AS transfer_id
    FROM payments_transaction t JOIN payments_transfer f ON f.transaction_id = t.id AND f.code IN ('wallet', 'redirect')
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND (t.destination = 'wallet' OR NOT EXISTS (
          SELECT FROM payments_transfer o WHERE o.transaction_id = t.id AND o.code IN ('setoff', 'unwrite')))"""
_REVERSE = f"""
WITH given AS ({_TO_WALLET}), locked AS (
    SELECT id, balance FROM users_customuser WHERE id IN (SELECT user_id FROM given) ORDER BY id FOR NO KEY UPDATE
), back AS (
    SELECT g.id, g.transfer_id, g.user_id, least(g.amount, greatest(0, l.balance + g.amount
        - sum(g.amount) OVER (PARTITION BY g.user_id ORDER BY g.id))) AS amount
    FROM given g JOIN locked l ON l.id = g.user_id
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT 'reverse:' || back.transfer_id, a.id, %(pool)s, back.amount, 'reverse', %(at)s, back.id
FROM back JOIN payments_ledgeraccount a ON a.kind = 'wallet' AND a.user_id = back.user_id
WHERE back.amount > 0 ORDER BY back.id
"""  # noqa: S608 - our own words
_RECALL = f"""
WITH given AS ({_TO_WALLET}), gone AS (
    SELECT t.id, t.user_id, t.amount - coalesce(r.amount, 0) AS amount
    FROM payments_transaction t LEFT JOIN given g ON g.id = t.id
    LEFT JOIN payments_transfer r ON r.key = 'reverse:' || g.transfer_id
    WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
      AND t.status <> 'CANCELLED'
)
INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
SELECT 'recall:' || gone.id, a.id, %(pool)s, gone.amount, 'recall', %(at)s, gone.id
FROM gone JOIN payments_ledgeraccount a ON a.kind = 'receivable' AND a.user_id = gone.user_id
WHERE gone.amount > 0 ORDER BY gone.id
"""  # noqa: S608 - our own words
_OWE = """
INSERT INTO payments_recovery (settlement_id, user_id, amount, recovered, written_off, decision, reason, created_at)
SELECT %(settlement)s, t.user_id, sum(f.amount), 0, 0, 'OPEN', '', %(at)s
FROM payments_transaction t JOIN payments_transfer f ON f.transaction_id = t.id AND f.code = 'recall'
WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
GROUP BY t.user_id ORDER BY t.user_id
ON CONFLICT (settlement_id, user_id) DO UPDATE SET amount = payments_recovery.amount + excluded.amount,
    decision = CASE payments_recovery.decision WHEN 'WRITTEN_OFF' THEN 'OPEN' ELSE payments_recovery.decision END
"""


def _take_verdicts_back(run: Settlement, chunk: int) -> None:
    low = run.last_bet_id
    ids = Bet.objects.filter(market=run.market_id, pk__gt=low).order_by("pk").values_list("pk", flat=True)
    high = next(iter(ids[chunk - 1 : chunk]), END)
    scratched = Q(outcome__in=list(run.market.outcomes.exclude(scratched_at=None).values_list("name", flat=True)))
    theirs = Bet.objects.filter(market=run.market_id, pk__gt=low, pk__lte=high).exclude(scratched)
    theirs.update(result=Bet.Result.PENDING, payout=journal.ZERO)
    run.last_bet_id = high
    run.save(update_fields=["last_bet_id"])


def _finish(market: Market, run: Settlement, at: datetime) -> None:
    """Give the fee back, check that the pool holds every stake to the cent, and close the market again."""
    fee = Transfer.objects.filter(key=f"fee:{run.pk}").first()
    if fee is not None:
        pool = journal.pool(market.pk)
        journal.post([journal.Entry(f"reverse:{fee.pk}", journal.FEE_INCOME, pool, fee.amount)], at=at)
    held = journal.balance(journal.pool(market.pk))
    staked = settling.stakes_held(market, division.staked(market))
    if held != staked:
        raise settling.BooksDisagree(f"Market {market.pk}: undone, its pool would hold {held} of {staked} staked.")
    run.state = State.UNDONE
    run.save(update_fields=["state"])
    close_again(market)
    log.info("Undid settlement %s of market %s", run.number, market.pk)


def _execute(sql: str, numbers: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
