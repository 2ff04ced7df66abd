"""Figures of the market pages: pools, curve, markets to resolve, settlements so far."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from payments.models import Transaction
from payments.settlement import approvals, market_overview, resolutions, undo
from testing import builders, console_scenes
from testing.builders import actor, bet, market, member, policy, resolve, settle
from testing.settlement_steps import anything
from users import proposals


def test_pools_have_shares_and_dividends_per_shilling(db: None) -> None:
    made = market(["A", "B", "C"])
    for outcome, amount in (("A", 100), ("A", 200), ("B", 100)):
        builders.orm_bet(made, member(), outcome, amount)
    assert market_overview.pools(made) == [
        market_overview.Pool("A", Decimal(300), 2, Decimal("75.0"), Decimal("1.33")),
        market_overview.Pool("B", Decimal(100), 1, Decimal("25.0"), Decimal("4.00")),
        market_overview.Pool("C", Decimal(0), 0, Decimal(0), None),
    ]


def test_scratched_outcome_is_marked_and_counts_in_no_share(db: None, at: datetime) -> None:
    # given
    made = market(["A", "B", "C"])
    for outcome, amount in (("A", 300), ("B", 100), ("C", 600)):
        bet(made, member(balance=amount), outcome, amount, at=at)

    # when
    resolutions.scratch(market_id=made.pk, outcome="C", reason="Withdrew.", by=actor(), at=at, policy=policy())

    # then
    running = [
        market_overview.Pool("A", Decimal(300), 1, Decimal("75.0"), Decimal("1.33")),
        market_overview.Pool("B", Decimal(100), 1, Decimal("25.0"), Decimal("4.00")),
    ]
    scratched = market_overview.Pool("C", Decimal(600), 1, Decimal(0), None, scratched_at=at)
    assert market_overview.pools(made) == [*running, scratched]
    settle(made, at=at)
    assert market_overview.pools(made) == [*running, replace(scratched, returned=True)]
    assert {name: shares[-1] for name, shares in market_overview.curve(made).shares.items()} == {"A": 75.0, "B": 25.0}
    (listed,) = market_overview.listed([made], at=at)
    assert (listed.pool, listed.bets) == (Decimal(400), 2)


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


def test_market_waits_for_a_decision_after_an_undo_before_its_end(db: None, at: datetime) -> None:
    # given: both markets end in 2099
    running, undone = market(), market(fee_pct=0)
    ended = market(end_date=at - timedelta(minutes=1))
    bet(undone, member(balance=100), "Yes", 100, at=at)
    first, second = builders.operator(full_name="Grace First"), builders.operator(full_name="Peter Second")
    resolve(undone, "Yes", at=at, by=first)
    settle(undone, at=at)
    (payout,) = Transaction.objects.filter(settlement__market=undone)
    console_scenes.pay(payout, at, "SKG7ABC001")
    assert set(market_overview.to_resolve(at=at)) == {ended}

    # when: two people undo it
    rules = policy(approval_above=Decimal(0))
    proposed = undo.undo(market_id=undone.pk, reason="The wrong outcome.", by=actor(first), at=at, policy=rules)
    assert isinstance(proposed, proposals.Proposed)
    proposals.approve(
        proposal_id=proposed.proposal_id,
        preview_hash=proposed.preview_hash,
        by=actor(second),
        at=at,
        holds=anything,
        acts=approvals.procedures(policy()),
    )
    undo.carry_out(market_id=undone.pk, at=at, policy=policy(), keep_going=lambda: True)

    # then
    assert set(market_overview.to_resolve(at=at)) == {ended, undone}
    rows = {row.market.pk: (row.to_resolve, row.to_approve) for row in market_overview.listed([running, undone], at=at)}
    assert rows == {running.pk: (False, False), undone.pk: (True, False)}
    (past,) = market_overview.settlements(undone)
    assert (past.undo_proposed_by, past.settlement.undone_by, past.is_taken_back) == (first, second, True)
    assert (past.debts, past.owed) == (1, Decimal(100))
    resolve(undone, "No", by=first, at=at, policy=rules)
    assert set(market_overview.to_resolve(at=at)) == {ended}
