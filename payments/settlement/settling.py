"""Settling: divide a resolved market's pool and book it in set-based steps.

If the process is killed at any line, the next call resumes. `resolutions.resolve` declares the outcome and opens a
Settlement. `settle` continues in steps, and each step keeps the books in balance. It freezes the totals and the rule's
parameters before it changes a bet. It writes each bet's result and dividend, then each member's Transactions and
transfers. Then it takes the fee and closes the market. A market of up to one chunk settles in one transaction. A larger
market settles a chunk at a time, and none of its payouts can be sent before the last step commits.

`division` computes the figures, and a preview uses the same code. The stakes on a scratched outcome go back in a
settlement of that outcome alone, while the market stays open. The settlements of one market are settled in the order
of their numbers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from django.db import connection, transaction
from django.db.models import QuerySet, Sum

from markets import locks, parimutuel
from markets.models import Bet, Market
from payments import failpoints, named_sql
from payments.ledger import journal, receivables
from payments.models import Settlement, Transaction
from payments.payouts.restores import listing
from payments.policy import Policy
from payments.settlement import allocation, division, failures, outside_bets, references
from users import audit

log = logging.getLogger(__name__)

# A transaction of a chunked settlement books the members of this many bets, and completes the bets of the last member.
# The members' wallets stay locked until the transaction commits.
BETS_PER_WALLET_LOCK = 5_000
LARGEST_ID = 2**62
_SQL = named_sql.beside(__file__)


@dataclass(frozen=True)
class Progress:
    """The state after one call of `settle`. `to_send` holds the first payouts that may leave now, at most 20."""

    found: bool
    settled: bool
    to_send: tuple[int, ...] = ()
    more_to_send: bool = False


def settle(
    *,
    market_id: int,
    at: datetime,
    policy: Policy,
    keep_going: Callable[[], bool],
    clock: Callable[[], datetime] | None = None,
) -> Progress:
    """Divide a resolved market's pool and book it as far as `keep_going` allows. Another call continues.

    `clock` returns the time, because a call takes seconds. Without it, every step takes place at `at`.
    Idempotent: skips a market that is settled or not resolved. Safe to kill at any line.
    Locks: Market, Settlement, then a chunk of Bets by id, then Recoveries by id, then wallets by id, then the end of
    the audit trail.
    Raises: failures.BooksDisagree. The step that raises it is rolled back, and the settlement keeps the reason in
    `failure`.
    """
    try:
        return _settle(market_id, clock=clock or (lambda: at), policy=policy, keep_going=keep_going)
    except failures.BooksDisagree as error:
        failures.record(market_id, str(error))
        raise


def _settle(
    market_id: int, *, clock: Callable[[], datetime], policy: Policy, keep_going: Callable[[], bool]
) -> Progress:
    with transaction.atomic(durable=True):
        settlement = _locked_settlement(market_id)
        if settlement is None:
            return Progress(found=False, settled=False)
        if settlement.state == Settlement.State.PENDING:
            _freeze(settlement, clock())
        if (settlement.bet_count or 0) <= policy.settlement_chunk:
            while not _step(settlement, clock=clock, policy=policy, chunk=None):
                failpoints.hit("settlement step before commit")
    failpoints.hit("settlement step after commit")
    while settlement.state == Settlement.State.DIVIDING and keep_going():
        with transaction.atomic(durable=True):
            locked = _locked_settlement(market_id)
            if locked is None or locked.pk != settlement.pk:  # Another worker finished this settlement.
                settlement.refresh_from_db()
            else:
                settlement = locked
                _step(settlement, clock=clock, policy=policy, chunk=policy.settlement_chunk)
                failpoints.hit("settlement step before commit")
        failpoints.hit("settlement step after commit")
    if settlement.state != Settlement.State.SETTLED or _waiting().filter(market=market_id).exists():
        return Progress(found=True, settled=False)
    at = clock()
    if settlement.release_at is None or settlement.release_at > at:
        return Progress(found=True, settled=True)
    due = Transaction.objects.filter(settlement=settlement, status=Transaction.Status.PENDING, due_at__lte=at)
    first = tuple(due.order_by("pk").values_list("pk", flat=True)[:21])
    return Progress(found=True, settled=True, to_send=first[:20], more_to_send=len(first) > 20)


def to_settle(limit: int) -> list[int]:
    """Return the ids of the markets with an unfinished settlement, oldest settlement first."""
    waiting = _waiting().order_by("pk").values_list("market_id", flat=True)[:limit]
    return list(dict.fromkeys(waiting))


def _waiting() -> QuerySet[Settlement]:
    return Settlement.objects.filter(state__in=[Settlement.State.PENDING, Settlement.State.DIVIDING])


def _locked_settlement(market_id: int) -> Settlement | None:
    market = locks.locked_market(market_id)
    if market.settlements.filter(state=Settlement.State.UNDOING).exists():
        return None  # Until the undo ends, the pool does not hold all its stakes.
    waiting = _waiting().filter(market=market).order_by("number")
    settlement = waiting.select_for_update(no_key=True, of=("self",)).first()
    if settlement is not None:
        settlement.market = market
    return settlement


def _freeze(settlement: Settlement, at: datetime) -> None:
    """Record the totals, the funds and the cutoffs. Later steps only apply them."""
    market = settlement.market
    staked = division.staked(market)
    outside_bets.book(market, staked, at)
    if settlement.rule == Settlement.Rule.SCRATCH:
        figures = division.scratch(staked, settlement.scratched)
    else:
        figures = division.divide(
            market,
            staked,
            rule=cast(parimutuel.Rule, settlement.rule),
            weights={outcome: Decimal(weight) for outcome, weight in settlement.weights.items()},
            fee_pct=settlement.fee_pct,
            protect_stake=settlement.protect_stake,
            effective_close_at=settlement.effective_close_at,
        )
    settlement.bet_count = figures.bet_count
    settlement.pool = Decimal(figures.pool) / 100
    settlement.winning_pool = Decimal(figures.winning_pool) / 100
    settlement.fee = Decimal(figures.fee) / 100
    settlement.net = Decimal(figures.net) / 100
    settlement.late_refund = Decimal(figures.late_refund) / 100
    settlement.refund = figures.refund
    settlement.funds = dict(figures.funds)
    settlement.state = Settlement.State.DIVIDING
    settlement.save()
    log.info(
        "Settling market %s: total_pool=%.2f, winning_pool=%.2f, platform_fee=%.2f, net_pool=%.2f, bets=%s",
        market.pk,
        settlement.pool,
        settlement.winning_pool,
        settlement.fee,
        settlement.net,
        settlement.bet_count,
    )


def _step(settlement: Settlement, *, clock: Callable[[], datetime], policy: Policy, chunk: int | None) -> bool:
    """Take the next step and return True if it was the last."""
    if not settlement.bets_divided:
        _divide_bets(settlement, chunk)
    elif _book_members(settlement, at=clock(), policy=policy, chunk=chunk):
        # The members are booked: read the clock again, because `settled_at` is the end of the step.
        _finish(settlement, clock(), policy)
        return True
    return False


def _divide_bets(settlement: Settlement, chunk: int | None) -> None:
    """Write the result and dividend of the next `chunk` bets by id, or of all bets if `chunk` is None."""
    low, high = settlement.last_bet_id, LARGEST_ID
    if chunk is not None:
        ids = Bet.objects.filter(market=settlement.market_id, pk__gt=low).order_by("pk").values_list("pk", flat=True)
        high = next(iter(ids[chunk - 1 : chunk]), high)
    outcomes = division.outcomes_of(settlement)
    chosen = "b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s"
    refund = f"""
        UPDATE markets_bet b SET result = 'REFUNDED', payout = amount
        WHERE {chosen} AND b.outcome = ANY (%(outcomes)s) AND b.taken_back_at IS NULL"""  # noqa: S608 - fixed text
    parameters = {"market": settlement.market_id, "low": low, "high": high, "outcomes": outcomes}
    if settlement.refund:
        settlement.bets_done += _execute(refund, parameters)
    else:
        in_time = ""
        if settlement.late_refund:
            parameters["closed_at"] = settlement.effective_close_at
            in_time = "AND b.placed_at <= %(closed_at)s"
            settlement.bets_done += _execute(f"{refund} AND b.placed_at > %(closed_at)s", parameters)
        settlement.bets_done += _execute(
            f"""
            UPDATE markets_bet b SET result = CASE WHEN f.won THEN 'WON' ELSE 'LOST' END, payout = {division.DIVIDEND}
            FROM {division.FUNDS} WHERE {chosen} AND b.outcome = f.outcome AND b.taken_back_at IS NULL {in_time}
            """,  # noqa: S608 - fixed text
            parameters | division.fund_rows(settlement.funds, outcomes),
        )
    settlement.last_bet_id = high
    settlement.bets_divided = high == LARGEST_ID
    settlement.save(update_fields=["last_bet_id", "bets_divided", "bets_done"])


def _book_members(settlement: Settlement, *, at: datetime, policy: Policy, chunk: int | None) -> bool:
    """Write the Transactions and transfers of the next members by id. Return True if they were the last.

    A chunk has the members of BETS_PER_WALLET_LOCK bets. Only the last statements lock the wallets, so the locks are
    short. `allocation` divides a dividend between M-Pesa and the wallet. Refunds go to the wallet. If a debt is to be
    set off, a part of the member's dividend stays with us.
    """
    accounts = journal.open_accounts([journal.pool(settlement.market_id), journal.PAYABLE])
    parameters: dict[str, Any] = {
        "settlement": settlement.pk,
        "number": settlement.number,
        "market": settlement.market_id,
        "market_public_id": settlement.market.public_id,
        "outcomes": division.outcomes_of(settlement),
        "low": settlement.last_user_id,
        "bets": LARGEST_ID if chunk is None else min(chunk, BETS_PER_WALLET_LOCK),
        "at": at,
        "min": policy.min_amount,
        "max": policy.max_amount,
        "pool": accounts[journal.pool(settlement.market_id)],
        "payable": accounts[journal.PAYABLE],
    }
    refund = {"type": Transaction.Type.REFUND, "result": Bet.Result.REFUNDED, "by_mpesa": False}
    set_offs: list[receivables.SetOff] = []
    if settlement.refund:
        bets, high, members = _create_transactions(parameters | refund, set_offs)
    else:
        if receivables.any_to_set_off():
            set_offs = receivables.to_set_off(_dividends_of_debtors(parameters))
        by_mpesa = policy.destination == Transaction.Destination.MPESA
        payout = {"type": Transaction.Type.PAYOUT, "result": Bet.Result.WON, "by_mpesa": by_mpesa}
        bets, high, members = _create_transactions(parameters | payout, set_offs)
        if settlement.late_refund:
            members += _create_transactions(parameters | refund, [])[2]
    parameters["high"] = high
    _execute(_SQL["open_wallets"], parameters)
    settlement.last_user_id = high
    settlement.members_done += members
    settlement.save(update_fields=["last_user_id", "members_done"])
    # Check foreign keys before the wallets are locked. A check at commit would hold these locks longer.
    _execute("SET CONSTRAINTS ALL IMMEDIATE", {})
    _execute(_SQL["book_transfers"], parameters)
    receivables.set_off(settlement.pk, set_offs, at=at)
    return bool(bets < parameters["bets"])


# CTE with the bets of the next members by id. WITH TIES keeps all bets of a member in one chunk. A stake that was taken
# back is in the wallet already.
_CHOSEN = """chosen AS MATERIALIZED (
        SELECT user_id, result, payout FROM markets_bet
        WHERE market_id = %(market)s AND user_id > %(low)s AND outcome = ANY (%(outcomes)s) AND taken_back_at IS NULL
        ORDER BY user_id FETCH FIRST %(bets)s ROWS WITH TIES
    )"""
_AMOUNTS_BY_MEMBER = """
    SELECT user_id, sum(payout) AS amount FROM chosen WHERE payout > 0 AND result = %(result)s GROUP BY user_id"""


def _create_transactions(parameters: dict[str, Any], set_offs: list[receivables.SetOff]) -> tuple[int, int, int]:
    """Create the Transactions of one type for the next members.

    Returns the number of their bets, the last member's id, and the number of members.
    Each statement generates strong random numbers once, and derives each row's public id from them. Random numbers for
    each row would cost as much as writing the row. The references are derived from the debts (references.py).
    """
    parameters = parameters | {
        f"{destination}_place": references.first_place(
            settlement_number=parameters["number"], kind=(parameters["type"], destination)
        )
        for destination in ("mpesa", "wallet")
    }
    bets, high, members = _row(
        f"""
        WITH {_CHOSEN}, {allocation.due(_AMOUNTS_BY_MEMBER, debtors=bool(set_offs))}, seed AS MATERIALIZED (
            SELECT gen_random_uuid()::text || gen_random_uuid() AS drawn
        ), drawn AS (
            SELECT due.*, encode(sha256((seed.drawn || user_id || destination || tranche)::bytea), 'hex') AS hex
            FROM due, seed
        ), booked AS (
            INSERT INTO payments_transaction (public_id, user_id, settlement_id, type, status, amount, destination,
                tranche, external_ref, phone_number, due_at, reason, receipt, created_at, completed_at)
            SELECT left(drawn.hex, 32)::uuid, drawn.user_id, %(settlement)s, %(type)s,
                CASE drawn.destination WHEN 'mpesa' THEN 'PENDING' ELSE 'COMPLETED' END, drawn.amount,
                drawn.destination, drawn.tranche,
                'KASOKO-' || %(market)s || '-' || drawn.user_id || '-' || {references.DIGITS},
                member.phone_number, greatest(%(at)s, member.phone_held_until), '', '', %(at)s,
                CASE drawn.destination WHEN 'wallet' THEN %(at)s::timestamptz END
            FROM drawn JOIN users_customuser member ON member.id = drawn.user_id
            WHERE member.id > %(low)s AND member.id <= (SELECT max(user_id) FROM chosen)
            ORDER BY drawn.user_id, drawn.destination, drawn.tranche
        )
        SELECT count(*), coalesce(max(user_id), %(low)s), (SELECT count(*) FROM won) FROM chosen
        """,  # noqa: S608 - fixed text
        parameters | receivables.by_member(set_offs),
    )
    return bets, high, members


def _dividends_of_debtors(parameters: dict[str, Any]) -> dict[int, Decimal]:
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH {_CHOSEN}, won AS ({_AMOUNTS_BY_MEMBER})
            SELECT user_id, amount FROM won
            WHERE user_id IN (SELECT user_id FROM payments_recovery WHERE decision = 'SET_OFF')
            """,  # noqa: S608 - fixed text
            parameters | {"result": Bet.Result.WON},
        )
        return dict(cursor.fetchall())


def _finish(settlement: Settlement, at: datetime, policy: Policy) -> None:
    """Take the fee, check that the pool is empty to the cent, and close the market. A scratch leaves the market open.

    Locks: the end of the audit trail, last.
    Raises: failures.BooksDisagree.
    """
    market, scratch = settlement.market, settlement.rule == Settlement.Rule.SCRATCH
    pool, fee = journal.pool(market.pk), settlement.fee or journal.ZERO
    if fee > 0:
        entry = journal.Entry(f"fee:{settlement.pk}", debit=pool, credit=journal.FEE_INCOME, amount=fee)
        journal.post([entry], at=at)
    owed = (settlement.net or journal.ZERO) + (settlement.late_refund or journal.ZERO)
    paid = Transaction.objects.filter(settlement=settlement).aggregate(total=Sum("amount"))["total"] or journal.ZERO
    settlement.state, settlement.failure = Settlement.State.SETTLED, ""
    settlement.settled_at, settlement.release_at = at, at + policy.hold_for(settlement.pool or journal.ZERO)
    settlement.release_open = not policy.canary
    if scratch:
        settlement.release_at, settlement.release_open = at, True
    settlement.save(update_fields=["state", "failure", "settled_at", "release_at", "release_open"])
    if scratch:
        # This also checks that the pool holds exactly the remaining stakes.
        outside_bets.book(market, division.staked(market), at)
        left = journal.ZERO
    else:
        left = journal.balance(pool)
        void = settlement.rule == Settlement.Rule.VOID
        market.status = Market.Status.VOID if void else Market.Status.SETTLED
        market.settled_at = at
        market.save(update_fields=["status", "settled_at"])
    if left != 0 or paid != owed:
        raise failures.BooksDisagree(
            f"Market {market.pk} does not balance: {left} would stay in its pool."
            f" Its transactions sum to {paid}, but {owed} is owed."
        )
    listing.list_settlement(settlement_id=settlement.pk, market_id=market.pk)
    audit.record(
        action="market.settle",
        by=audit.MACHINE,
        subject=f"market:{market.pk}",
        before={"settlement": settlement.number, "state": Settlement.State.DIVIDING},
        after={
            "settlement": settlement.number,
            "rule": settlement.rule,
            "status": market.status,
            "pool": f"{settlement.pool:.2f}",
            "fee": f"{fee:.2f}",
            "late_refund": f"{settlement.late_refund:.2f}",
            "paid": f"{paid:.2f}",
            "terms_version": market.terms_version,
        },
        at=at,
    )
    log.info("Settled market %s: paid_out=%.2f, platform_fee=%.2f", market.pk, paid, fee)


def _execute(sql: str, parameters: dict[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.rowcount


def _row(sql: str, parameters: dict[str, Any]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()
