"""Due payouts for the bench, from markets on which every bet won."""

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
    """Make `count` members, each with `balance` shillings, which a trigger books from the opening account."""
    return CustomUser.objects.bulk_create(
        [
            CustomUser(phone_number=str(next(_phones)), full_name="Member", password="!", balance=balance)  # noqa: S106
            for _ in range(count)
        ],
        batch_size=5_000,
    )


def market() -> Market:
    """Make an open market without a fee."""
    return Market.objects.create(
        question="Will it rain tomorrow?", end_date=datetime(2099, 12, 31, tzinfo=UTC), platform_fee_pct=Decimal(0)
    )


def market_to_resolve(count: int) -> Market:
    """Make a market without a fee on which `count` members bet 100 shillings on Yes, so each member wins 100."""
    open_market = market()
    now = timezone.now()
    Bet.objects.bulk_create(
        [Bet(user=member, market=open_market, outcome="Yes", amount=STAKE, placed_at=now) for member in members(count)],
        batch_size=5_000,
    )
    return open_market


def settlement_with_due_payouts(count: int) -> Settlement:
    """Make a settlement with `count` due payouts, as the settlement service leaves it after the canary."""
    resolved = market_to_resolve(count)
    policy = Policy.from_settings(settings)
    resolutions.resolve(
        market_id=resolved.pk, decision=Decision("WINNER", {"Yes": Decimal(100)}), by=audit.MACHINE, at=timezone.now(),
        policy=policy,
    )  # fmt: skip
    settling.settle(market_id=resolved.pk, at=timezone.now(), policy=policy, keep_going=lambda: True)
    Settlement.objects.filter(market=resolved).update(release_open=True)
    return Settlement.objects.get(market=resolved)
