"""Bets: one transaction writes a bet and books its stake."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import connection, transaction

from markets import locks, terms
from markets.models import Bet, Market
from payments import failpoints
from payments.ledger import journal
from payments.policy import Policy
from users import figures
from users.models import CustomUser
from users.refusal import Refusal

_MARKET_AND_MINIMUM = f"""
    SELECT m.*, ({figures.MINIMUM_STAKE_SQL}) AS minimum_stake
    FROM markets_market m WHERE m.id = %(market)s FOR SHARE OF m
"""  # noqa: S608 - fragments of our own


class InsufficientFunds(Refusal):
    """The wallet's balance is less than the stake."""


class StakeTooSmall(Refusal):
    """The stake is less than the minimum stake of the law."""


class ClientRefReused(Refusal):
    """The Idempotency-Key was used before for another bet."""


@dataclass(frozen=True)
class Placed:
    """A bet, and the wallet's balance after it in shillings. `new` is true if this call placed the bet."""

    bet: Bet
    balance: Decimal
    new: bool


def place(
    *,
    user_id: int,
    market_id: int,
    outcome: str,
    amount: Decimal,
    client_ref: str | None,
    at: datetime,
    policy: Policy | None = None,
) -> Placed:
    """Place a bet: stake `amount` shillings of a member's wallet on an outcome of an open market.

    The minimum stake of the law binds in production. Outside it, and without a `policy`, any stake is accepted.
    Idempotent: by `client_ref`. A repeated call returns the bet that the first call placed.
    Locks: the market FOR SHARE, so that bets do not wait for each other, then the member's wallet.
    Raises: MarketNotFound; MarketNotOpen; OutcomeNotInMarket; StakeTooSmall; InsufficientFunds; ClientRefReused.
    """
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [locks.market_lock(market_id)])
        # The market's lock keeps bets and resolutions from overlapping. The market comes before the wallet in the lock
        # order. Otherwise a settlement that credits this member could deadlock with the bet.
        # The minimum stake is read in the same statement, so it costs a bet no statement of its own.
        rows = Market.objects.raw(_MARKET_AND_MINIMUM, {"market": market_id, "at": at})
        market = next(iter(rows), None)
        if market is None:
            raise locks.MarketNotFound(f"There is no market {market_id}.")
        # The wallet's lock also makes two requests with the same client_ref run one after the other.
        member = CustomUser.objects.select_for_update(no_key=True).get(pk=user_id)
        if client_ref:
            placed = Bet.objects.filter(user=member, client_ref=client_ref).first()
            if placed is not None:
                if (placed.market_id, placed.outcome, placed.amount) != (market_id, outcome, amount):
                    raise ClientRefReused("This Idempotency-Key was used for another bet.")
                return Placed(bet=placed, balance=member.balance, new=False)
        if market.status != Market.Status.OPEN or market.end_date <= at:
            raise locks.MarketNotOpen(f"Market {market_id} no longer takes bets.")
        if market.betting_suspended_at is not None or terms.notice_runs(market, at=at):
            raise locks.MarketNotOpen(f"Betting on market {market_id} is suspended. Your money was not moved.")
        if outcome not in market.running_outcomes:
            raise locks.OutcomeNotInMarket(f"outcome must be one of {', '.join(market.running_outcomes)}.")
        minimum = getattr(market, "minimum_stake", None) if policy is not None and policy.legal_limits else None
        if minimum is not None and amount < (least := figures.decimal_of(minimum)):
            raise StakeTooSmall(f"The smallest stake is {least} shillings. No bet was placed and no money moved.")
        if member.balance < amount:
            raise InsufficientFunds(f"The wallet holds {member.balance}, which is less than the stake of {amount}.")
        bet = Bet.objects.create(
            user=member,
            market=market,
            outcome=outcome,
            amount=amount,
            client_ref=client_ref or None,
            placed_at=at,
            terms_version=market.terms_version,
        )
        stake = journal.Entry(f"stake:{bet.pk}", journal.wallet(user_id), journal.pool(market_id), amount)
        journal.post([stake], at=at)
        failpoints.hit("bet before commit")
    failpoints.hit("bet after commit")
    return Placed(bet=bet, balance=member.balance - amount, new=True)
