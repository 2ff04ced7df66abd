"""Figures of the market page: pools, curve and progress."""

from datetime import datetime, timedelta
from decimal import Decimal

from payments.models import Transaction
from payments.settlement import market_overview
from testing import builders, console_scenes
from testing.builders import market, member, resolve, settle


def test_pools_have_shares_and_dividends_per_shilling(db: None) -> None:
    made = market(["A", "B", "C"])
    for outcome, amount in (("A", 100), ("A", 200), ("B", 100)):
        builders.orm_bet(made, member(), outcome, amount)
    assert market_overview.pools(made) == [
        market_overview.Pool("A", Decimal(300), 2, Decimal("75.0"), Decimal("1.33")),
        market_overview.Pool("B", Decimal(100), 1, Decimal("25.0"), Decimal("4.00")),
        market_overview.Pool("C", Decimal(0), 0, Decimal(0), None),
    ]


def test_curve_sums_bets_in_a_bounded_number_of_steps(db: None, at: datetime) -> None:
    made = market()
    for place in range(150):
        builders.orm_bet(made, builders.member() if place < 2 else made.bets.all()[0].user, ["Yes", "No"][place % 2],
                         10, at=at + timedelta(minutes=place))  # fmt: skip
    curve = market_overview.curve(made)
    assert len(curve.moments) == market_overview.POINTS
    assert curve.shares["Yes"][-1] == curve.shares["No"][-1] == 50.0
    assert all(abs(yes + no - 100) < 0.11 for yes, no in zip(*curve.shares.values(), strict=True))
    assert curve.moments == sorted(curve.moments)
    assert market_overview.curve(market()) == market_overview.Curve([], {"Yes": [], "No": []})


def test_progress_counts_bets_and_payouts_and_estimates_the_end(db: None, at: datetime) -> None:
    made = market(fee_pct=0)
    for place in range(4):
        builders.orm_bet(made, member(), "Yes", 100 + place)
    assert market_overview.progress(made, at=at) is None
    resolve(made, "Yes", at=at)
    begun = market_overview.progress(made, at=at)
    assert begun is not None
    assert (begun.bets, begun.bets_done, begun.finished) == (4, 0, False)
    settle(made, at=at)
    one, *_ = Transaction.objects.filter(settlement__market=made).order_by("pk")
    console_scenes.pay(one, at, "SKG7ABC001", after=10)
    under_way = market_overview.progress(made, at=at + timedelta(seconds=20))
    assert under_way is not None
    assert (under_way.bets_done, under_way.count, under_way.amount) == (4, 4, Decimal(406))
    assert under_way.by_state["completed"] == (Decimal(100), 1)
    assert under_way.by_state["pending"][1] == 3
    assert (under_way.per_minute, under_way.ends_at) == (1, at + timedelta(seconds=20, minutes=3))
    for place, rest in enumerate(Transaction.objects.filter(settlement__market=made, status="PENDING")):
        console_scenes.pay(rest, at, f"SKG7ABC1{place}")
    done = market_overview.progress(made, at=at + timedelta(hours=1))
    assert done is not None
    assert done.finished
    assert done.ends_at is None
