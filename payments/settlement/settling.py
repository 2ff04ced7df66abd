"""Dividing a resolved market's pool: set-based, resumable at any line, frozen before the first bet is touched.

`resolutions.resolve` declares the outcome and opens a Settlement. `settle` takes it from there in steps that each leave
the books whole: freeze the totals and the rule's numbers; write the verdict and dividend of each bet; write each
member's Transactions and transfers; take the fee and close. A market of up to one chunk settles in one transaction; a
larger one a chunk at a time, and nothing of it can be sent before the last step commits.

What it comes to is division.py's, which the preview of it asks too. A scratched outcome's stakes go back by a run of
their own while the market goes on; runs of one market are settled in the order of their numbers.
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
from payments import failpoints
from payments.ledger import journal, receivables
from payments.models import Settlement, Transaction
from payments.policy import Policy
from payments.settlement import allocation, division
from users.refusal import Refusal

log = logging.getLogger(__name__)

# Bets from outside are booked so many in a statement.
OUTSIDE_BETS = 100_000
# In chunks, the members of so many bets are booked in one transaction: their wallets are locked until it commits.
BETS_WHOSE_WALLETS_WAIT = 5_000


class BooksDisagree(Refusal):
    """What a settlement would book does not add up. Nothing of the step was booked; an engineer must look."""


@dataclass(frozen=True)
class Progress:
    """What one call of `settle` left behind. `to_send` are the first payouts that may leave now, at most 20."""

    found: bool
    settled: bool
    to_send: tuple[int, ...] = ()
    more_to_send: bool = False


def settle(*, market_id: int, at: datetime, policy: Policy, keep_going: Callable[[], bool]) -> Progress:
    """Divide a resolved market's pool and book it, as far as `keep_going` allows; call again to go on.

    Idempotent: a market that is settled, or not resolved, is left as it is. Safe to kill at any line.
    Locks: Market, Settlement, then a chunk of Bets by id, then of Recoveries and of wallets by id.
    Raises: BooksDisagree, and the step that found it books nothing.
    """
    with transaction.atomic(durable=True):
        settlement = _locked_settlement(market_id)
        if settlement is None:
            return Progress(found=False, settled=False)
        if settlement.state == Settlement.State.PENDING:
            _freeze(settlement, at)
        if (settlement.bet_count or 0) <= policy.settlement_chunk:
            while not _step(settlement, at=at, policy=policy, chunk=None):
                failpoints.hit("settlement step before commit")
    failpoints.hit("settlement step after commit")
    while settlement.state == Settlement.State.DIVIDING and keep_going():
        with transaction.atomic(durable=True):
            locked = _locked_settlement(market_id)
            if locked is None or locked.pk != settlement.pk:  # Another worker finished it.
                settlement.refresh_from_db()
            else:
                settlement = locked
                _step(settlement, at=at, policy=policy, chunk=policy.settlement_chunk)
                failpoints.hit("settlement step before commit")
        failpoints.hit("settlement step after commit")
    if settlement.state != Settlement.State.SETTLED or _waiting().filter(market=market_id).exists():
        return Progress(found=True, settled=False)
    if settlement.release_at is None or settlement.release_at > at:
        return Progress(found=True, settled=True)
    sendable = Transaction.objects.filter(
        settlement=settlement, status=Transaction.Status.PENDING, due_at__lte=at
    ).order_by("pk")
    first = tuple(sendable.values_list("pk", flat=True)[:21])
    return Progress(found=True, settled=True, to_send=first[:20], more_to_send=len(first) > 20)


def to_settle(limit: int) -> list[int]:
    """Ids of the markets that are resolved and not settled yet, oldest first."""
    waiting = _waiting().order_by("pk").values_list("market_id", flat=True)[:limit]
    return list(dict.fromkeys(waiting))


def _waiting() -> QuerySet[Settlement]:
    return Settlement.objects.filter(state__in=[Settlement.State.PENDING, Settlement.State.DIVIDING])


def _locked_settlement(market_id: int) -> Settlement | None:
    market = locks.locked_market(market_id)
    settlement = (
        _waiting().filter(market=market).order_by("number").select_for_update(no_key=True, of=("self",)).first()
    )
    if settlement is not None:
        settlement.market = market
    return settlement


def _freeze(settlement: Settlement, at: datetime) -> None:
    """Write down the totals, the funds and the cutoffs; from here on the division is only carried out."""
    market = settlement.market
    staked = division.staked(market)
    _book_bets_from_outside(market, staked, at)
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


def _book_bets_from_outside(market: Market, staked: division.Staked, at: datetime) -> None:
    """Book the bets that were made straight through the ORM: their stakes came from outside the books, from `opening`.

    In production such a bet cannot be made (a trigger refuses it), so a difference there is an error.
    """
    account = journal.pool(market.pk)
    held = stakes_held(market, staked)
    if journal.balance(account) == held:
        return
    ids = journal.open_accounts([journal.OPENING, account])
    span: dict[str, Any] = {"opening": ids[journal.OPENING], "pool": ids[account], "market": market.pk, "at": at}
    # A statement for each chunk: none of them runs into its time limit. Its plan may not depend on statistics that do
    # not know these rows yet: looking each bet up in the whole ledger by a nested loop takes hours.
    _execute("SET LOCAL enable_nestloop = off", {})
    low: int | None = 0
    while low is not None:
        ids_of = Bet.objects.filter(market=market, pk__gt=low).order_by("pk").values_list("pk", flat=True)
        high = next(iter(ids_of[OUTSIDE_BETS - 1 : OUTSIDE_BETS]), None)
        _execute(
            """
            INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
            SELECT 'stake:' || b.id, %(opening)s, %(pool)s, b.amount, 'stake', %(at)s FROM markets_bet b
            WHERE b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s
              AND current_setting('kasoko.production', true) IS DISTINCT FROM 'on'
              AND NOT EXISTS (SELECT FROM payments_transfer t WHERE t.credit_id = %(pool)s AND t.key = 'stake:' || b.id)
            ORDER BY b.id
            """,
            span | {"low": low, "high": high or 2**62},
        )
        low = high
    _execute("SET LOCAL enable_nestloop = DEFAULT", {})
    booked = journal.balance(account)
    if booked != held:
        raise BooksDisagree(f"Market {market.pk}: its bets sum to {held}, its pool account holds {booked}.")


def stakes_held(market: Market, staked: division.Staked) -> Decimal:
    """What the pool must hold before the market is decided: every stake but those that a scratch has given back."""
    runs = market.settlements.filter(rule=Settlement.Rule.SCRATCH, state=Settlement.State.SETTLED)
    given_back = set(runs.values_list("scratched", flat=True))
    return sum((total for outcome, (total, _) in staked.items() if outcome not in given_back), journal.ZERO)


def _outcomes(settlement: Settlement) -> list[str]:
    """The outcomes whose bets this run decides; bets on the others have their stakes back, or keep waiting."""
    if settlement.rule == Settlement.Rule.SCRATCH:
        return [settlement.scratched]
    return list(settlement.market.running_outcomes)


def _step(settlement: Settlement, *, at: datetime, policy: Policy, chunk: int | None) -> bool:
    """Do the next piece of work and say whether it was the last."""
    if not settlement.bets_divided:
        _divide_bets(settlement, chunk)
    elif _book_members(settlement, at=at, policy=policy, chunk=chunk):
        _finish(settlement, at, policy)
        return True
    return False


def _divide_bets(settlement: Settlement, chunk: int | None) -> None:
    """Write result and dividend of the next `chunk` bets by id (all for None), in one statement whatever the size."""
    low, high = settlement.last_bet_id, 2**62
    if chunk is not None:
        ids = Bet.objects.filter(market=settlement.market_id, pk__gt=low).order_by("pk").values_list("pk", flat=True)
        high = next(iter(ids[chunk - 1 : chunk]), high)
    outcomes = _outcomes(settlement)
    these = "b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s"
    back = f"""
        UPDATE markets_bet b SET result = 'REFUNDED', payout = amount
        WHERE {these} AND b.outcome = ANY (%(outcomes)s)"""  # noqa: S608 - our own words
    span: dict[str, Any] = {"market": settlement.market_id, "low": low, "high": high, "outcomes": outcomes}
    if settlement.refund:
        settlement.bets_done += _execute(back, span)
    else:
        in_time = ""
        if settlement.late_refund:
            span["closed_at"] = settlement.effective_close_at
            in_time = "AND b.placed_at <= %(closed_at)s"
            settlement.bets_done += _execute(f"{back} AND b.placed_at > %(closed_at)s", span)
        settlement.bets_done += _execute(
            f"""
            UPDATE markets_bet b SET result = CASE WHEN f.won THEN 'WON' ELSE 'LOST' END, payout = {division.DIVIDEND}
            FROM {division.FUNDS} WHERE {these} AND b.outcome = f.outcome {in_time}
            """,  # noqa: S608 - our own words
            span | division.fund_rows(settlement.funds, outcomes),
        )
    settlement.last_bet_id = high
    settlement.bets_divided = high == 2**62
    settlement.save(update_fields=["last_bet_id", "bets_divided", "bets_done"])


def _book_members(settlement: Settlement, *, at: datetime, policy: Policy, chunk: int | None) -> bool:
    """Write the Transactions and transfers of the next members by id, and say whether none is left after them.

    In chunks, the members of at most BETS_WHOSE_WALLETS_WAIT bets at a time; wallets are locked by the last statement.
    What goes by M-Pesa and what to the wallet is division.py's. Refunds go to the wallet they came from. A member who
    owes from an earlier settlement, and whose debt is to be set off, leaves a part of the dividend.
    """
    accounts = journal.open_accounts([journal.pool(settlement.market_id), journal.PAYABLE])
    span: dict[str, Any] = {
        "settlement": settlement.pk,
        "market": settlement.market_id,
        "outcomes": _outcomes(settlement),
        "low": settlement.last_user_id,
        "bets": 2**62 if chunk is None else min(chunk, BETS_WHOSE_WALLETS_WAIT),
        "at": at,
        "min": policy.min_amount,
        "max": policy.max_amount,
        "pool": accounts[journal.pool(settlement.market_id)],
        "payable": accounts[journal.PAYABLE],
    }
    back = {"type": Transaction.Type.REFUND, "result": Bet.Result.REFUNDED, "by_mpesa": False}
    kept: list[receivables.SetOff] = []
    if settlement.refund:
        bets, high, members = _owe(span | back, kept)
    else:
        if receivables.any_to_set_off():
            kept = receivables.to_set_off(_dividends_of_debtors(span))
        by_mpesa = policy.destination == Transaction.Destination.MPESA
        won = {"type": Transaction.Type.PAYOUT, "result": Bet.Result.WON, "by_mpesa": by_mpesa}
        bets, high, members = _owe(span | won, kept)
        if settlement.late_refund:
            members += _owe(span | back, [])[2]
    span["high"] = high
    _execute(
        """
        INSERT INTO payments_ledgeraccount (code, kind, user_id)
        SELECT DISTINCT 'wallet:' || t.user_id, 'wallet', t.user_id FROM payments_transaction t
        WHERE t.settlement_id = %(settlement)s AND t.destination = 'wallet' AND t.user_id > %(low)s
          AND t.user_id <= %(high)s
          AND NOT EXISTS (SELECT FROM payments_ledgeraccount a WHERE a.kind = 'wallet' AND a.user_id = t.user_id)
        ORDER BY 3 ON CONFLICT (code) DO NOTHING
        """,
        span,
    )
    settlement.last_user_id = high
    settlement.members_done += members
    settlement.save(update_fields=["last_user_id", "members_done"])
    # What the foreign keys have to say is said now, and not at the commit, while wallets are locked.
    _execute("SET CONSTRAINTS ALL IMMEDIATE", {})
    _execute(
        """
        INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
        SELECT CASE t.destination WHEN 'mpesa' THEN 'payout:' ELSE 'wallet:' END || t.id, %(pool)s,
            coalesce(a.id, %(payable)s), t.amount, CASE t.destination WHEN 'mpesa' THEN 'payout' ELSE 'wallet' END,
            %(at)s, t.id
        FROM payments_transaction t
        LEFT JOIN payments_ledgeraccount a
          ON a.kind = 'wallet' AND a.user_id = CASE t.destination WHEN 'wallet' THEN t.user_id END
        WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
        ORDER BY t.id
        """,
        span,
    )
    receivables.set_off(settlement.pk, kept, at=at)
    return bool(bets < span["bets"])


# The bets of the next members by id, and of no member only a part.
_THESE = """these AS MATERIALIZED (
        SELECT user_id, result, payout FROM markets_bet
        WHERE market_id = %(market)s AND user_id > %(low)s AND outcome = ANY (%(outcomes)s)
        ORDER BY user_id FETCH FIRST %(bets)s ROWS WITH TIES
    )"""
_WON = "SELECT user_id, sum(payout) AS amount FROM these WHERE payout > 0 AND result = %(result)s GROUP BY user_id"


def _owe(span: dict[str, Any], kept: list[receivables.SetOff]) -> tuple[int, int, int]:
    """Write the Transactions of one type for the next members: how many bets, the last member's id, how many members.

    Strong random numbers a statement, and from them a public id and the eight hex digits of each row: drawing them row
    by row costs as much as writing the row. A member's digits count on from one drawn start: of 32,767 tranches with
    digits drawn one by one, two would be alike one time in eight.
    """
    bets, high, members = _row(
        f"""
        WITH {_THESE}, {allocation.due(_WON, debtors=bool(kept))}, seed AS MATERIALIZED (
            SELECT gen_random_uuid()::text || gen_random_uuid() AS drawn,
                ('x' || translate(gen_random_uuid()::text, '-', ''))::bit(64)::bigint AS salt
        ), drawn AS (
            SELECT due.*, encode(sha256((seed.drawn || user_id || destination || tranche)::bytea), 'hex') AS hex,
                to_hex(((hashint8extended(user_id, seed.salt) & 4294967295)
                    + 2 * tranche + (destination = 'wallet')::int) & 4294967295) AS digits
            FROM due, seed
        ), booked AS (
            INSERT INTO payments_transaction (public_id, user_id, settlement_id, type, status, amount, destination,
                tranche, external_ref, phone_number, due_at, reason, receipt, created_at, completed_at)
            SELECT left(drawn.hex, 32)::uuid, drawn.user_id, %(settlement)s, %(type)s,
                CASE drawn.destination WHEN 'mpesa' THEN 'PENDING' ELSE 'COMPLETED' END, drawn.amount,
                drawn.destination, drawn.tranche,
                'KASOKO-' || %(market)s || '-' || drawn.user_id || '-' || lpad(drawn.digits, 8, '0'),
                member.phone_number, %(at)s, '', '', %(at)s,
                CASE drawn.destination WHEN 'wallet' THEN %(at)s::timestamptz END
            FROM drawn JOIN users_customuser member ON member.id = drawn.user_id
            WHERE member.id > %(low)s AND member.id <= (SELECT max(user_id) FROM these)
            ORDER BY drawn.user_id, drawn.destination, drawn.tranche
        )
        SELECT count(*), coalesce(max(user_id), %(low)s), (SELECT count(*) FROM won) FROM these
        """,  # noqa: S608 - our own words
        span | receivables.by_member(kept),
    )
    return bets, high, members


def _dividends_of_debtors(span: dict[str, Any]) -> dict[int, Decimal]:
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH {_THESE}, won AS ({_WON})
            SELECT user_id, amount FROM won
            WHERE user_id IN (SELECT user_id FROM payments_recovery WHERE decision = 'SET_OFF')
            """,  # noqa: S608 - our own words
            span | {"result": Bet.Result.WON},
        )
        return dict(cursor.fetchall())


def _finish(settlement: Settlement, at: datetime, policy: Policy) -> None:
    """Take the fee, check that the pool is empty to the cent, and close the market; a scratch leaves it as it is."""
    market = settlement.market
    fee = settlement.fee or journal.ZERO
    if fee > 0:
        journal.post(
            [
                journal.Entry(
                    f"fee:{settlement.pk}", debit=journal.pool(market.pk), credit=journal.FEE_INCOME, amount=fee
                )
            ],
            at=at,
        )
    owed = (settlement.net or journal.ZERO) + (settlement.late_refund or journal.ZERO)
    paid = Transaction.objects.filter(settlement=settlement).aggregate(total=Sum("amount"))["total"] or journal.ZERO
    settlement.state = Settlement.State.SETTLED
    settlement.settled_at, settlement.release_at = at, at + policy.hold_for(settlement.pool or journal.ZERO)
    settlement.release_open = not policy.canary
    if settlement.rule == Settlement.Rule.SCRATCH:
        settlement.release_at, settlement.release_open = at, True
    settlement.save(update_fields=["state", "settled_at", "release_at", "release_open"])
    if settlement.rule == Settlement.Rule.SCRATCH:
        _book_bets_from_outside(
            market, division.staked(market), at
        )  # It checks the pool against the stakes that stay, too.
        left = journal.ZERO
    else:
        left = journal.balance(journal.pool(market.pk))
        void = settlement.rule == Settlement.Rule.VOID
        market.status = Market.Status.VOID if void else Market.Status.SETTLED
        market.settled_at = at
        market.save(update_fields=["status", "settled_at"])
    if left != 0 or paid != owed:
        raise BooksDisagree(
            f"Market {market.pk}: {left} would stay in its pool, and transactions of {paid} against {owed} owed."
        )
    log.info("Settled market %s: paid_out=%.2f, platform_fee=%.2f", market.pk, paid, fee)


def _execute(sql: str, numbers: dict[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
        return cursor.rowcount


def _row(sql: str, numbers: dict[str, Any]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
        return cursor.fetchone()
