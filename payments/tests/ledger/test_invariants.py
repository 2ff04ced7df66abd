"""The books amid an undo: what they say at each of its steps, and that a step gone wrong is seen at once."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection

from markets.models import Market, Outcome
from payments.ledger import invariants
from payments.models import Settlement, Transaction
from payments.payouts.operations import actions
from payments.settlement import resolutions, undo
from testing import builders
from testing.builders import AT, actor, member, orm_bet, policy
from testing.payout_steps import POLICY, READ_TIMEOUT, after, failed, hear, result_body, sent

ONE_BY_ONE = policy(settlement_chunk=1)
MEMBERS = 6


def broken() -> set[str]:
    return {difference.invariant for difference in invariants.differences()}


def undoing() -> Market:
    """A market whose undo has begun, with payouts of every fate, one scratched outcome, a fee and a bet too late."""
    made = builders.market(("Yes", "No", "Perhaps"))
    for _ in range(MEMBERS):
        orm_bet(made, member(), "Yes", "100.25", at=AT - timedelta(hours=1))
    orm_bet(made, member(), "No", "700.50", at=AT - timedelta(hours=1))
    orm_bet(made, member(), "Perhaps", 40, at=AT - timedelta(hours=1))
    orm_bet(made, member(), "Yes", 60, at=AT)
    resolutions.scratch(market_id=made.pk, outcome="Perhaps", reason="cancelled", by=actor(), at=AT, policy=POLICY)
    builders.settle(made)
    builders.resolve(made, "Yes", effective_close_at=AT - timedelta(minutes=30))
    builders.settle(made)
    paid, doubtful, lost, turned, spent, _ = Transaction.objects.filter(destination="mpesa").order_by("user_id")
    attempt = sent(paid)
    hear(attempt, result_body(attempt))
    sent(doubtful, READ_TIMEOUT)
    for one in (lost, turned):
        failed(one)
    actions.redirect_to_wallet(transaction_id=turned.pk, by=actor(), at=after(2))
    builders.bet(builders.market(), spent.user, "Yes", "0.05")
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=ONE_BY_ONE)
    return made


def step(of: Market) -> bool:
    return undo.carry_out(market_id=of.pk, at=after(60), policy=ONE_BY_ONE, keep_going=lambda: False)


def cursors() -> tuple[int, int]:
    run = Settlement.objects.get(state="UNDOING")
    return run.last_user_id, run.last_bet_id


def test_the_books_close_at_every_step_of_an_undo(db: None) -> None:
    # given
    made = undoing()
    seen = set()

    # when, then
    while not step(made):
        assert [str(difference) for difference in invariants.differences()] == []
        seen |= {cursors()} if made.settlements.filter(state="UNDOING").exists() else set()
    assert len(seen) > MEMBERS + 6
    assert [str(difference) for difference in invariants.differences()] == []


def _write(table: str, change: str) -> None:
    """Change rows although the table's triggers refuse it."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"UPDATE {table} SET {change}")  # noqa: S608 - our own words
        cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def _skip_a_member(made: Market) -> None:
    ids = Transaction.objects.filter(settlement__state="UNDOING", user_id__gt=cursors()[0]).order_by("user_id")
    _write("payments_settlement", f"last_user_id = {ids[0].user_id} WHERE state = 'UNDOING'")


def _take_back_again(made: Market) -> None:
    _write("payments_settlement", "last_user_id = 0 WHERE state = 'UNDOING'")


def _take_half_back(made: Market) -> None:
    _write("payments_transfer", "amount = amount / 2 WHERE code = 'recall'")


def _finish_without_the_rest(made: Market) -> None:
    _write("payments_settlement", "state = 'UNDONE' WHERE state = 'UNDOING'")


def _forget_a_verdict(made: Market) -> None:
    _write("markets_bet", "result = 'PENDING' WHERE id = (SELECT min(id) FROM markets_bet WHERE result = 'WON')")


def _raise_a_dividend(made: Market) -> None:
    _write("markets_bet", "payout = 500 WHERE id = (SELECT min(id) FROM markets_bet WHERE result = 'WON')")


POOL = "After its settlement a pool is exactly empty, and amid an undo it holds what has come back so far"
BACK = "An undo takes back each payout that it has reached, whole and once, and no other"
VERDICTS = "Verdicts follow the outcome, until an undo has reached them"
PAYS_OUT = "A settlement pays out what its stakes brought in, less the fee"
DIVIDENDS = "Each member's transactions of a settlement sum to their dividends"


@pytest.mark.broken_books
@pytest.mark.parametrize(
    ("goes_wrong", "seen"),
    [
        (_skip_a_member, {POOL, BACK}),
        (_take_back_again, {POOL, BACK}),
        (_take_half_back, {POOL, BACK, "What members owe back is in their recoveries"}),
        (_finish_without_the_rest, {POOL, BACK}),
        (_forget_a_verdict, {VERDICTS}),
        (_raise_a_dividend, {PAYS_OUT, DIVIDENDS}),
    ],
)
def test_a_step_of_an_undo_gone_wrong_shows(db: None, goes_wrong: Callable[[Market], None], seen: set[str]) -> None:
    # given
    made = undoing()
    step(made)
    step(made)
    assert broken() == set()

    # when
    goes_wrong(made)

    # then
    assert broken() == seen


@pytest.mark.broken_books
def test_a_verdict_that_an_undo_left_behind_shows(db: None) -> None:
    # given: all money is back, and the first verdicts
    made = undoing()
    while cursors()[1] == 0:
        step(made)
    assert broken() == set()

    # when
    first = made.bets.order_by("pk")[0]
    _write("markets_bet", f"result = 'WON' WHERE id = {first.pk}")

    # then
    assert broken() == {VERDICTS}
    assert Outcome.objects.filter(market=made).count() == 3


@pytest.mark.broken_books
def test_a_request_that_counts_to_another_settlement_shows(db: None) -> None:
    # given
    payout = builders.payout(285)
    sent(payout)

    # when
    _write("payments_attempt", "settlement_id = NULL")

    # then
    assert broken() == {"A request counts to the settlement of its payout"}
