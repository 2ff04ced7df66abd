"""Payouts that are due: markets whose every bet won, settled by the project's own service."""

import itertools
import os
from datetime import UTC, datetime
from decimal import Decimal

from django.conf import settings
from django.utils import timezone

from markets.models import Bet, Market
from payments.models import Settlement
from payments.policy import Policy
from payments.settlement import resolutions, settling
from payments.settlement.decision import Decision
from users import audit
from users.models import CustomUser

STAKE = Decimal(100)
_phones = itertools.count(254_700_000_000 + os.getpid() % 1000 * 50_000)


def members(count: int, balance: Decimal = Decimal(0)) -> list[CustomUser]:
    """So many new members, each with so many shillings from `opening`."""
    return CustomUser.objects.bulk_create(
        [
            CustomUser(phone_number=str(next(_phones)), full_name="Member", password="!", balance=balance)  # noqa: S106
            for _ in range(count)
        ],
        batch_size=5_000,
    )


def market() -> Market:
    return Market.objects.create(
        question="Will it rain tomorrow?", end_date=datetime(2099, 12, 31, tzinfo=UTC), platform_fee_pct=Decimal(0)
    )


def market_to_resolve(count: int) -> Market:
    """A market with so many members' bets on Yes, of 100 shillings each and without a fee: so much for each of them."""
    made = market()
    now = timezone.now()
    Bet.objects.bulk_create(
        [Bet(user=member, market=made, outcome="Yes", amount=STAKE, placed_at=now) for member in members(count)],
        batch_size=5_000,
    )
    return made


def due(count: int) -> Settlement:
    """A settlement of so many payouts, all released: what is left to do is to send them."""
    made = market_to_resolve(count)
    policy = Policy.from_settings(settings)
    resolutions.resolve(
        market_id=made.pk, decision=Decision("WINNER", {"Yes": Decimal(100)}), by=audit.MACHINE, at=timezone.now(),
        policy=policy,
    )  # fmt: skip
    settling.settle(market_id=made.pk, at=timezone.now(), policy=policy, keep_going=lambda: True)
    Settlement.objects.filter(market=made).update(release_open=True)
    return Settlement.objects.get(market=made)
