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

from markets import parimutuel
from markets.models import Bet, Market, Outcome
from payments import crashpoints, division, ledger, recoveries, stakes
from payments.models import Settlement, Transaction
from payments.policy import Policy

log = logging.getLogger(__name__)


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
                crashpoints.reach("settlement step before commit")
    crashpoints.reach("settlement step after commit")
    while settlement.state == Settlement.State.DIVIDING and keep_going():
        with transaction.atomic(durable=True):
            locked = _locked_settlement(market_id)
            if locked is None or locked.pk != settlement.pk:  # Another worker finished it.
                settlement.refresh_from_db()
            else:
                settlement = locked
                _step(settlement, at=at, policy=policy, chunk=policy.settlement_chunk)
                crashpoints.reach("settlement step before commit")
        crashpoints.reach("settlement step after commit")
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
    market = stakes.locked_market(market_id)
    settlement = (
        _waiting().filter(market=market).order_by("number").select_for_update(no_key=True, of=("self",)).first()
    )
    if settlement is not None:
        settlement.market = market
    return settlement


def _freeze(settlement: Settlement, at: datetime) -> None:
    """Write down the totals, the funds and the cutoffs; from here on the division is only carried out."""
    market = settlement.market
    _book_bets_from_outside(market, at)
    if settlement.rule == Settlement.Rule.SCRATCH:
        figures = division.scratch(market, settlement.scratched)
    else:
        figures = division.divide(
            market,
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


def _book_bets_from_outside(market: Market, at: datetime) -> None:
    """Book the bets that were made straight through the ORM: their stakes came from outside the books, from `opening`.

    In production such a bet cannot be made (a trigger refuses it), so a difference there is an error.
    """
    account = ledger.pool(market.pk)
    held = stakes_held(market)
    if ledger.balance(account) != held:
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
    if booked != held:
        raise BooksDisagree(f"Market {market.pk}: its bets sum to {held}, its pool account holds {booked}.")


def stakes_held(market: Market) -> Decimal:
    """What the pool must hold before the market is decided: every stake but those that a scratch has given back."""
    given_back = market.settlements.filter(rule=Settlement.Rule.SCRATCH, state=Settlement.State.SETTLED)
    bets = Bet.objects.filter(market=market).exclude(outcome__in=list(given_back.values_list("scratched", flat=True)))
    return bets.aggregate(total=Sum("amount"))["total"] or ledger.ZERO


def _scratched(settlement: Settlement) -> list[str]:
    """The outcomes whose bets this run leaves alone: they have their stakes back."""
    if settlement.rule == Settlement.Rule.SCRATCH:
        others = Outcome.objects.filter(market=settlement.market_id).exclude(name=settlement.scratched)
        return list(others.values_list("name", flat=True))
    scratched = Outcome.objects.filter(market=settlement.market_id, scratched_at__isnull=False)
    return list(scratched.values_list("name", flat=True))


def _step(settlement: Settlement, *, at: datetime, policy: Policy, chunk: int | None) -> bool:
    """Do the next piece of work and say whether it was the last."""
    if not settlement.bets_divided:
        _divide_bets(settlement, chunk)
    elif _book_members(settlement, at=at, policy=policy, chunk=chunk):
        _finish(settlement, at, policy)
        return True
    return False


def _divide_bets(settlement: Settlement, chunk: int | None) -> None:
    """Write result and dividend of the next `chunk` bets by id (all for None), in two statements whatever the size."""
    low, high = settlement.last_bet_id, 2**62
    if chunk is not None:
        ids = Bet.objects.filter(market=settlement.market_id, pk__gt=low).order_by("pk").values_list("pk", flat=True)
        high = next(iter(ids[chunk - 1 : chunk]), high)
    span: dict[str, Any] = {"market": settlement.market_id, "low": low, "high": high, "apart": _scratched(settlement)}
    these = "b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s AND b.outcome <> ALL (%(apart)s)"
    if settlement.refund:
        _execute(f"UPDATE markets_bet b SET result = 'REFUNDED', payout = amount WHERE {these}", span)  # noqa: S608
    else:
        span |= division.fund_rows(settlement.funds) | {"closed_at": settlement.effective_close_at}
        in_time = ""
        if settlement.late_refund:
            in_time = "AND b.placed_at <= %(closed_at)s"
            _execute(
                f"""
                UPDATE markets_bet b SET result = 'REFUNDED', payout = amount
                WHERE {these} AND b.placed_at > %(closed_at)s
                """,  # noqa: S608 - our own words
                span,
            )
        _execute(
            f"""
            UPDATE markets_bet b SET result = 'WON', payout = {division.DIVIDEND}
            FROM {division.FUNDS}
            WHERE b.market_id = %(market)s AND b.id > %(low)s AND b.id <= %(high)s AND b.outcome = f.outcome {in_time}
            """,  # noqa: S608 - our own words
            span,
        )
        _execute(
            f"""
            UPDATE markets_bet b SET result = 'LOST', payout = 0
            WHERE {these} AND b.outcome <> ALL (%(outcomes)s) {in_time}
            """,  # noqa: S608 - our own words
            span,
        )
    settlement.last_bet_id = high
    settlement.bets_divided = high == 2**62
    settlement.save(update_fields=["last_bet_id", "bets_divided"])


def _book_members(settlement: Settlement, *, at: datetime, policy: Policy, chunk: int | None) -> bool:
    """Write the Transactions and transfers of the next `chunk` members by id, and say whether none is left after them.

    What goes by M-Pesa and what to the wallet is division.py's. Refunds go to the wallet they came from. A member who
    owes from an earlier settlement, and whose debt is to be set off, leaves a part of the dividend.
    """
    low, high = settlement.last_user_id, 2**62
    apart = _scratched(settlement)
    if chunk is not None:
        members = (
            Bet.objects.filter(market=settlement.market_id, payout__gt=0, user_id__gt=low).exclude(outcome__in=apart)
            .order_by("user_id").values_list("user_id", flat=True).distinct()
        )  # fmt: skip
        high = next(iter(members[chunk - 1 : chunk]), high)
    accounts = ledger.open_accounts([ledger.pool(settlement.market_id), ledger.PAYABLE])
    span = {
        "settlement": settlement.pk,
        "market": settlement.market_id,
        "low": low,
        "high": high,
        "at": at,
        "apart": apart,
        "min": policy.min_amount,
        "max": policy.max_amount,
        "pool": accounts[ledger.pool(settlement.market_id)],
        "payable": accounts[ledger.PAYABLE],
    }
    kept: list[recoveries.SetOff] = []
    if not settlement.refund:
        if recoveries.any_to_set_off():
            kept = recoveries.to_set_off(_dividends_of_debtors(span))
        _owe(span | {"type": "PAYOUT", "result": "WON", "by_mpesa": policy.destination == "mpesa"}, kept)
    if settlement.refund or settlement.late_refund:
        _owe(span | {"type": "REFUND", "result": "REFUNDED", "by_mpesa": False}, [])
    _execute(
        """
        INSERT INTO payments_ledgeraccount (code, kind, user_id)
        SELECT 'wallet:' || t.user_id, 'wallet', t.user_id FROM payments_transaction t
        WHERE t.settlement_id = %(settlement)s AND t.destination = 'wallet' AND t.user_id > %(low)s
          AND t.user_id <= %(high)s
          AND NOT EXISTS (SELECT FROM payments_ledgeraccount a WHERE a.code = 'wallet:' || t.user_id)
        ORDER BY t.user_id ON CONFLICT (code) DO NOTHING
        """,
        span,
    )
    _execute(
        """
        INSERT INTO payments_transfer (key, debit_id, credit_id, amount, code, at, transaction_id)
        SELECT CASE t.destination WHEN 'mpesa' THEN 'payout:' ELSE 'wallet:' END || t.id, %(pool)s,
            coalesce(a.id, %(payable)s), t.amount, CASE t.destination WHEN 'mpesa' THEN 'payout' ELSE 'wallet' END,
            %(at)s, t.id
        FROM payments_transaction t
        LEFT JOIN payments_ledgeraccount a ON t.destination = 'wallet' AND a.kind = 'wallet' AND a.user_id = t.user_id
        WHERE t.settlement_id = %(settlement)s AND t.user_id > %(low)s AND t.user_id <= %(high)s
        ORDER BY t.id
        """,
        span,
    )
    recoveries.set_off(settlement.pk, kept, at=at)
    settlement.last_user_id = high
    settlement.save(update_fields=["last_user_id"])
    return high == 2**62


_WON = """
    SELECT user_id, sum(payout) AS amount FROM markets_bet
    WHERE market_id = %(market)s AND payout > 0 AND result = %(result)s AND outcome <> ALL (%(apart)s)
      AND user_id > %(low)s AND user_id <= %(high)s
    GROUP BY user_id"""


def _owe(span: dict[str, Any], kept: list[recoveries.SetOff]) -> None:
    """Write the Transactions of one type for the members of a span."""
    _execute(
        f"""
        {division.due(_WON, debtors=bool(kept))}
        INSERT INTO payments_transaction (public_id, user_id, settlement_id, type, status, amount, destination, tranche,
            external_ref, phone_number, due_at, reason, receipt, created_at, completed_at)
        SELECT gen_random_uuid(), due.user_id, %(settlement)s, %(type)s,
            CASE due.destination WHEN 'mpesa' THEN 'PENDING' ELSE 'COMPLETED' END, due.amount, due.destination,
            due.tranche, 'KASOKO-' || %(market)s || '-' || due.user_id || '-' || left(gen_random_uuid()::text, 8),
            member.phone_number, %(at)s, '', '', %(at)s,
            CASE due.destination WHEN 'wallet' THEN %(at)s::timestamptz END
        FROM due JOIN users_customuser member ON member.id = due.user_id
        ORDER BY due.user_id, due.destination, due.tranche
        """,  # noqa: S608 - our own words
        span | recoveries.by_member(kept),
    )


def _dividends_of_debtors(span: dict[str, Any]) -> dict[int, Decimal]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT user_id, sum(payout) FROM markets_bet
            WHERE market_id = %(market)s AND payout > 0 AND result = 'WON' AND user_id > %(low)s
              AND user_id <= %(high)s AND outcome <> ALL (%(apart)s)
              AND user_id IN (SELECT user_id FROM payments_recovery WHERE decision = 'SET_OFF')
            GROUP BY user_id
            """,
            span,
        )
        return dict(cursor.fetchall())


def _finish(settlement: Settlement, at: datetime, policy: Policy) -> None:
    """Take the fee, check that the pool is empty to the cent, and close the market; a scratch leaves it as it is."""
    market = settlement.market
    fee = settlement.fee or ledger.ZERO
    if fee > 0:
        ledger.post(
            [ledger.Entry(f"fee:{settlement.pk}", debit=ledger.pool(market.pk), credit=ledger.FEE_INCOME, amount=fee)],
            at=at,
        )
    owed = (settlement.net or ledger.ZERO) + (settlement.late_refund or ledger.ZERO)
    paid = Transaction.objects.filter(settlement=settlement).aggregate(total=Sum("amount"))["total"] or ledger.ZERO
    settlement.state = Settlement.State.SETTLED
    settlement.settled_at, settlement.release_at = at, at + policy.hold_for(settlement.pool or ledger.ZERO)
    settlement.release_open = not policy.canary
    if settlement.rule == Settlement.Rule.SCRATCH:
        settlement.release_at, settlement.release_open = at, True
    settlement.save(update_fields=["state", "settled_at", "release_at", "release_open"])
    if settlement.rule == Settlement.Rule.SCRATCH:
        _book_bets_from_outside(market, at)  # It checks the pool against the stakes that stay, too.
        left = ledger.ZERO
    else:
        left = ledger.balance(ledger.pool(market.pk))
        void = settlement.rule == Settlement.Rule.VOID
        market.status = Market.Status.VOID if void else Market.Status.SETTLED
        market.settled_at = at
        market.save(update_fields=["status", "settled_at"])
    if left != 0 or paid != owed:
        raise BooksDisagree(
            f"Market {market.pk}: {left} would stay in its pool, and transactions of {paid} against {owed} owed."
        )
    log.info("Settled market %s: paid_out=%.2f, platform_fee=%.2f", market.pk, paid, fee)


def _execute(sql: str, numbers: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, numbers)
