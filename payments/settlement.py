"""Dividing a resolved market's pool: set-based, resumable at any line, frozen before the first bet is touched.

`resolutions.resolve` declares the outcome and opens a Settlement. `settle` takes it from there in steps that each leave
the books whole: freeze the totals and the rule's numbers; write the verdict and dividend of each bet; write each
member's Transactions and transfers; take the fee and close. A market of up to one chunk settles in one transaction; a
larger one a chunk at a time, and nothing of it can be sent before the last step commits.

A dividend is stake × fund ÷ stakes on the outcome, floored to the cent; the left-over cents go to the largest
remainders, ties to the lowest bet id. Freezing finds, for each outcome, the last bet that gets such a cent (its
remainder and id: the cutoff), so each bet's dividend can then be computed by itself, in any chunk, after any crash.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from django.db import connection, transaction
from django.db.models import Count, Sum

from markets import parimutuel
from markets.models import Bet, Market
from payments import crashpoints, ledger, stakes
from payments.models import Settlement, Transaction
from payments.policy import Policy

log = logging.getLogger(__name__)
# In chunks, the members of so many bets are booked in one transaction: their wallets are locked until it commits.
BETS_WHOSE_WALLETS_WAIT = 5_000


class BooksDisagree(Exception):
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
    Locks: Market, Settlement, then a chunk of Bets by id, then of wallets by id.
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
                crashpoints.reach("settlement step before commit")
    crashpoints.reach("settlement step after commit")
    while settlement.state == Settlement.State.DIVIDING and keep_going():
        with transaction.atomic(durable=True):
            locked = _locked_settlement(market_id)
            if locked is None:  # Another worker finished it.
                settlement.refresh_from_db()
            else:
                settlement = locked
                _step(settlement, at=at, policy=policy, chunk=policy.settlement_chunk)
                crashpoints.reach("settlement step before commit")
        crashpoints.reach("settlement step after commit")
    if settlement.state != Settlement.State.SETTLED:
        return Progress(found=True, settled=False)
    sendable = Transaction.objects.filter(
        settlement=settlement, status=Transaction.Status.PENDING, due_at__lte=at
    ).order_by("pk")
    first = tuple(sendable.values_list("pk", flat=True)[:21])
    return Progress(found=True, settled=True, to_send=first[:20], more_to_send=len(first) > 20)


def to_settle(limit: int) -> list[int]:
    """Ids of the markets that are resolved and not settled yet, oldest first."""
    waiting = Settlement.objects.filter(state__in=[Settlement.State.PENDING, Settlement.State.DIVIDING])
    return list(waiting.order_by("pk").values_list("market_id", flat=True)[:limit])


def _locked_settlement(market_id: int) -> Settlement | None:
    market = stakes.locked_market(market_id)
    settlement = (
        Settlement.objects.select_for_update(no_key=True, of=("self",))
        .filter(market=market, state__in=[Settlement.State.PENDING, Settlement.State.DIVIDING])
        .first()
    )
    if settlement is not None:
        settlement.market = market
    return settlement


def _freeze(settlement: Settlement, at: datetime) -> None:
    """Write down the totals, the funds and the cutoffs; from here on the division is only carried out."""
    market = settlement.market
    rows = Bet.objects.filter(market=market).values_list("outcome").annotate(total=Sum("amount"), bets=Count("pk"))
    found = {outcome: (total, bets) for outcome, total, bets in rows.order_by()}
    stakes = {name: _cents(found[name][0]) if name in found else 0 for name in market.outcome_names}
    pool = Decimal(sum(stakes.values())) / 100
    _book_bets_from_outside(market, pool, at)

    divided = parimutuel.funds(
        rule=cast(parimutuel.Rule, settlement.rule),
        stakes_by_outcome=stakes,
        weights={outcome: Decimal(weight) for outcome, weight in settlement.weights.items()},
        fee_pct=settlement.fee_pct,
        protect_stake=settlement.protect_stake,
    )
    settlement.bet_count = sum(bets for _, bets in found.values())
    settlement.pool = pool
    settlement.winning_pool = Decimal(divided.winning_pool) / 100
    settlement.fee = Decimal(divided.fee) / 100
    settlement.net = Decimal(divided.net) / 100
    settlement.refund = divided.refund
    settlement.funds = {
        outcome: {"stakes": stakes[outcome], "fund": fund, **_cutoff(market.pk, outcome, stakes[outcome], fund)}
        for outcome, fund in divided.by_outcome.items()
    }
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


def _book_bets_from_outside(market: Market, pool: Decimal, at: datetime) -> None:
    """Book the bets that were made straight through the ORM: their stakes came from outside the books, from `opening`.

    In production such a bet cannot be made (a trigger refuses it), so a difference there is an error.
    """
    account = ledger.pool(market.pk)
    if ledger.balance(account) == pool:
        return
    ids = ledger.open_accounts([ledger.OPENING, account])
    _execute(
        """
        INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at)
        SELECT 'stake:' || b.id, %(opening)s, %(pool)s, b.amount, 'stake', %(at)s FROM markets_bet b
        WHERE b.market_id = %(market)s AND current_setting('kasoko.production', true) IS DISTINCT FROM 'on'
          AND NOT EXISTS (SELECT FROM payments_transfer t WHERE t.key = 'stake:' || b.id)
        ORDER BY b.id
        """,
        {"opening": ids[ledger.OPENING], "pool": ids[account], "market": market.pk, "at": at},
    )
    booked = ledger.balance(account)
    if booked != pool:
        raise BooksDisagree(f"Market {market.pk}: its bets sum to {pool}, its pool account holds {booked}.")


def _cutoff(market_id: int, outcome: str, stakes: int, fund: int) -> dict[str, Any]:
    """The remainder and the id of the last bet on `outcome` that gets a left-over cent.

    Without left-over cents the remainder is one that no bet can have: remainders are less than the stakes' sum.
    Numeric throughout: stake × fund overflows bigint for pools that one rich member can make. A remainder by itself is
    less than the stakes in cents, and sorts faster as a bigint.
    """
    numbers = {"market": market_id, "outcome": outcome, "stakes": stakes, "fund": fund}
    (floors,) = _row(
        """
        SELECT coalesce(sum(div(amount * 100 * %(fund)s, %(stakes)s)), 0) FROM markets_bet
        WHERE market_id = %(market)s AND outcome = %(outcome)s
        """,
        numbers,
    )
    left_over = fund - int(floors)
    if left_over == 0:
        return {"cutoff_remainder": stakes, "cutoff_bet": 0}
    remainder, bet_id = _row(
        """
        SELECT mod(amount * 100 * %(fund)s, %(stakes)s)::bigint, id FROM markets_bet
        WHERE market_id = %(market)s AND outcome = %(outcome)s
        ORDER BY 1 DESC, id LIMIT 1 OFFSET %(before)s
        """,
        {**numbers, "before": left_over - 1},
    )
    return {"cutoff_remainder": int(remainder), "cutoff_bet": bet_id}


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
    span = {"market": settlement.market_id, "low": low, "high": high}
    if settlement.refund:
        settlement.bets_done += _execute(
            """
            UPDATE markets_bet SET result = 'REFUNDED', payout = amount
            WHERE market_id = %(market)s AND id > %(low)s AND id <= %(high)s
            """,
            span,
        )
    else:
        # A losing outcome has a fund of nothing: every floor and every remainder is 0, and no cutoff is reached.
        lost = {"stakes": 1, "fund": 0, "cutoff_remainder": 1, "cutoff_bet": 0}
        outcomes = settlement.market.outcome_names
        shares = [settlement.funds.get(outcome, lost) for outcome in outcomes]
        settlement.bets_done += _execute(
            """
            UPDATE markets_bet b SET result = CASE WHEN f.won THEN 'WON' ELSE 'LOST' END, payout = (
                div(b.amount * 100 * f.fund, f.stakes) + CASE
                    WHEN mod(b.amount * 100 * f.fund, f.stakes) > f.cutoff_remainder THEN 1
                    WHEN mod(b.amount * 100 * f.fund, f.stakes) = f.cutoff_remainder AND b.id <= f.cutoff_bet THEN 1
                    ELSE 0 END) / 100
            FROM unnest(%(outcomes)s::text[], %(won)s::bool[], %(stakes)s::numeric[], %(fund)s::numeric[],
                        %(cutoff_remainder)s::numeric[], %(cutoff_bet)s::bigint[])
                AS f (outcome, won, stakes, fund, cutoff_remainder, cutoff_bet)
            WHERE b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s AND b.outcome = f.outcome
            """,
            span
            | {"outcomes": list(outcomes), "won": [outcome in settlement.funds for outcome in outcomes]}
            | {key: [share[key] for share in shares] for key in lost},
        )
    settlement.last_bet_id = high
    settlement.bets_divided = high == 2**62
    settlement.save(update_fields=["last_bet_id", "bets_divided", "bets_done"])


def _book_members(settlement: Settlement, *, at: datetime, policy: Policy, chunk: int | None) -> bool:
    """Write the Transactions and transfers of the next members by id, and say whether none is left after them.

    In chunks, the members of at most BETS_WHOSE_WALLETS_WAIT bets at a time; wallets are locked by the last statement.
    Of a dividend, whole shillings go by M-Pesa in tranches of at most `max_amount`; the cents, a sum or a last tranche
    under `min_amount`, refunds, and everything where the operator pays to wallets, go to the wallet at once.
    """
    accounts = ledger.open_accounts([ledger.pool(settlement.market_id), ledger.PAYABLE])
    span = {
        "settlement": settlement.pk,
        "market": settlement.market_id,
        "low": settlement.last_user_id,
        "bets": 2**62 if chunk is None else min(chunk, BETS_WHOSE_WALLETS_WAIT),
        "at": at,
        "type": Transaction.Type.REFUND if settlement.refund else Transaction.Type.PAYOUT,
        "by_mpesa": policy.destination == "mpesa" and not settlement.refund,
        "min": policy.min_amount,
        "max": policy.max_amount,
        "pool": accounts[ledger.pool(settlement.market_id)],
        "payable": accounts[ledger.PAYABLE],
    }
    # One strong random number a statement, and from it a public id and the eight hex digits of each row: drawing them
    # row by row costs as much as writing the row.
    bets, high, members = _row(
        """
        WITH these AS MATERIALIZED (
            SELECT user_id, payout FROM markets_bet WHERE market_id = %(market)s AND user_id > %(low)s
            ORDER BY user_id FETCH FIRST %(bets)s ROWS WITH TIES
        ), won AS (
            SELECT user_id, sum(payout) AS amount FROM these WHERE payout > 0 GROUP BY user_id
        ), carried AS (
            SELECT user_id, amount,
                CASE WHEN NOT %(by_mpesa)s THEN 0
                     WHEN mod(floor(amount), %(max)s) >= %(min)s THEN floor(amount)
                     ELSE floor(amount) - mod(floor(amount), %(max)s) END AS by_mpesa
            FROM won
        ), due AS (
            SELECT user_id, 'mpesa' AS destination, 'PENDING' AS status, tranche,
                least(%(max)s, by_mpesa - (tranche - 1) * %(max)s) AS amount, NULL::timestamptz AS completed_at
            FROM carried, generate_series(1, ceil(by_mpesa / %(max)s)::int) AS tranche
            UNION ALL
            SELECT user_id, 'wallet', 'COMPLETED', 1, amount - by_mpesa, %(at)s FROM carried WHERE amount > by_mpesa
        ), seed AS MATERIALIZED (
            SELECT gen_random_uuid()::text || gen_random_uuid() AS drawn
        ), drawn AS (
            SELECT due.*, encode(sha256((seed.drawn || user_id || destination || tranche)::bytea), 'hex') AS hex
            FROM due, seed
        ), booked AS (
            INSERT INTO payments_transaction (public_id, user_id, settlement_id, type, status, amount, destination,
                tranche, external_ref, phone_number, due_at, reason, receipt, created_at, completed_at)
            SELECT left(drawn.hex, 32)::uuid, drawn.user_id, %(settlement)s, %(type)s, drawn.status, drawn.amount,
                drawn.destination, drawn.tranche,
                'KASOKO-' || %(market)s || '-' || drawn.user_id || '-' || right(drawn.hex, 8),
                member.phone_number, %(at)s, '', '', %(at)s, drawn.completed_at
            FROM drawn JOIN users_customuser member ON member.id = drawn.user_id
            WHERE member.id > %(low)s AND member.id <= (SELECT max(user_id) FROM these)
            ORDER BY drawn.user_id, drawn.destination, drawn.tranche
        )
        SELECT count(*), coalesce(max(user_id), %(low)s), (SELECT count(*) FROM won) FROM these
        """,
        span,
    )
    span["high"] = high
    _execute(
        """
        INSERT INTO payments_ledgeraccount (code, kind, user_id)
        SELECT 'wallet:' || t.user_id, 'wallet', t.user_id FROM payments_transaction t
        WHERE t.settlement_id = %(settlement)s AND t.destination = 'wallet' AND t.user_id > %(low)s
          AND t.user_id <= %(high)s
          AND NOT EXISTS (SELECT FROM payments_ledgeraccount a WHERE a.kind = 'wallet' AND a.user_id = t.user_id)
        ORDER BY t.user_id ON CONFLICT (code) DO NOTHING
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
    return bets < span["bets"]


def _finish(settlement: Settlement, at: datetime, policy: Policy) -> None:
    """Take the fee, check that the pool is empty to the cent, and close the market."""
    market = settlement.market
    fee = settlement.fee or ledger.ZERO
    if fee > 0:
        ledger.post(
            [ledger.Entry(f"fee:{settlement.pk}", debit=ledger.pool(market.pk), credit=ledger.FEE_INCOME, amount=fee)],
            at=at,
        )
    left = ledger.balance(ledger.pool(market.pk))
    paid = Transaction.objects.filter(settlement=settlement).aggregate(total=Sum("amount"))["total"] or ledger.ZERO
    if left != 0 or paid != settlement.net:
        raise BooksDisagree(
            f"Market {market.pk}: {left} would stay in its pool, and transactions of {paid} against a net of "
            f"{settlement.net}."
        )
    settlement.state = Settlement.State.SETTLED
    settlement.settled_at = settlement.release_at = at
    settlement.release_open = not policy.canary
    settlement.save(update_fields=["state", "settled_at", "release_at", "release_open"])
    void = settlement.rule == Settlement.Rule.VOID
    market.status = Market.Status.VOID if void else Market.Status.SETTLED
    market.settled_at = at
    market.save(update_fields=["status", "settled_at"])
    log.info("Settled market %s: paid_out=%.2f, platform_fee=%.2f", market.pk, paid, fee)


def _cents(amount: Decimal) -> int:
    return int(amount * 100)


def _execute(sql: str, numbers: dict[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
        return cursor.rowcount


def _row(sql: str, numbers: dict[str, Any]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
        return cursor.fetchone()
