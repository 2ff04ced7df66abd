"""The plan of a large win over several days."""

from datetime import date, timedelta
from decimal import Decimal

import pytest

from payments.models import Settlement, Transaction
from payments.payouts.operations import timeline, tranches
from testing import builders
from testing.builders import AT
from testing.payout_steps import POLICY, claims

pytestmark = pytest.mark.django_db


def large_win() -> Transaction:
    """Return the first tranche of a win of 1,250,000 shillings."""
    market = builders.settled_market([(builders.member(), "Yes", 1_250_000)], fee_pct=0)
    return Transaction.objects.filter(settlement__market=market, destination="mpesa").order_by("tranche")[0]


def days(plan: tranches.Plan | None) -> list[tuple[int, int, Decimal]]:
    assert plan is not None
    return [(day.day.day, day.count, day.amount) for day in plan.days]


def test_plan_names_the_days_and_the_end_of_a_large_win() -> None:
    shown = timeline.of_payout(large_win().pk, at=AT, policy=POLICY)
    assert shown is not None
    assert days(shown.plan) == [(16, 2, 500_000), (17, 2, 500_000), (18, 1, 250_000)]
    assert shown.plan is not None
    assert (shown.plan.tranches, shown.plan.ends_on) == (5, date(2026, 2, 18))


def test_plan_counts_what_left_today() -> None:
    first = large_win()
    claims(transaction_id=first.pk)
    plan = tranches.of_payout(first, at=AT, policy=POLICY)
    assert days(plan) == [(16, 1, 250_000), (17, 2, 500_000), (18, 1, 250_000)]


def test_plan_is_what_the_claims_do() -> None:
    first = large_win()
    plan = tranches.of_payout(first, at=AT, policy=POLICY)
    left = [len(claims(AT + timedelta(days=day))) for day in range(4)]
    assert left == [count for _, count, _ in days(plan)] + [0]


def test_plan_begins_at_the_end_of_the_hold() -> None:
    first = large_win()
    Settlement.objects.update(release_at=AT + timedelta(days=2))
    first.refresh_from_db()
    plan = tranches.of_payout(first, at=AT, policy=POLICY)
    assert [day for day, _, _ in days(plan)] == [18, 19, 20]


def test_win_of_one_tranche_has_no_plan() -> None:
    assert tranches.of_payout(builders.payout(285), at=AT, policy=POLICY) is None
