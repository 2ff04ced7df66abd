"""Stakes taken back by members after a change of a market's terms."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction

from markets import locks, terms
from markets.models import Bet
from payments.ledger import journal
from users.models import CustomUser
from users.refusal import Refusal


class BetNotFound(Refusal):
    """The member has no such bet on the market."""


class TakeBackClosed(Refusal):
    """The stake of this bet cannot be taken back now."""


@dataclass(frozen=True)
class TakenBack:
    """A bet whose stake went back to the wallet, and the wallet's balance after it in shillings."""

    bet: Bet
    balance: Decimal


def take_back(*, user_id: int, market_id: int, bet_id: uuid.UUID, at: datetime) -> TakenBack:
    """Give a member's stake back, whole, during the notice of a change of terms.

    The bet is REFUNDED and leaves every sum of the market.
    Idempotent: a stake that was taken back already is returned as it is.
    Locks: Market, Bet, then the member's wallet.
    Raises: locks.MarketNotFound; BetNotFound; TakeBackClosed.
    """
    with transaction.atomic(durable=True):
        market = locks.locked_market(market_id)
        bets = Bet.objects.select_for_update(no_key=True, of=("self",))
        bet = bets.filter(public_id=bet_id, market=market, user_id=user_id).first()
        if bet is None:
            raise BetNotFound(f"You have no bet {bet_id} in market {market_id}.")
        if bet.taken_back_at is None:
            if not terms.may_take_back(market, bet, at=at):
                raise TakeBackClosed(
                    "This stake cannot be taken back: no notice of a change of terms is running for it."
                    " The bet stays as it is, and no money was moved."
                )
            _give_back(bet, at)
        balance = CustomUser.objects.values_list("balance", flat=True).get(pk=user_id)
    return TakenBack(bet=bet, balance=balance)


def _give_back(bet: Bet, at: datetime) -> None:
    pool, wallet = journal.pool(bet.market_id), journal.wallet(bet.user_id)
    bet.result, bet.payout, bet.taken_back_at = Bet.Result.REFUNDED, bet.amount, at
    bet.save(update_fields=["result", "payout", "taken_back_at"])
    entries = [journal.Entry(f"takeback:{bet.pk}", debit=pool, credit=wallet, amount=bet.amount)]
    if not journal.is_booked(f"stake:{bet.pk}"):
        # The bet was made straight through the ORM. Its stake comes from `opening`, as at a settlement.
        entries.insert(0, journal.Entry(f"stake:{bet.pk}", debit=journal.OPENING, credit=pool, amount=bet.amount))
    journal.post(entries, at=at)
