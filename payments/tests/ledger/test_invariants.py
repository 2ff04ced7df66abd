"""Invariants: they hold at each step of an undo, find each planted error, and run in psql."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection

from markets.models import Market, Outcome
from payments import named_sql
from payments.ledger import invariants
from payments.models import Settlement, Transaction
from payments.payouts.operations import actions
from payments.settlement import resolutions, undo
from testing import builders, database
from testing.builders import AT, actor, member, orm_bet, policy
from testing.payout_steps import POLICY, READ_TIMEOUT, after, deliver_result, failed, result_body, sent

ONE_BY_ONE = policy(settlement_chunk=1)
MEMBERS = 6
SQL_FILE = Path(invariants.__file__).with_suffix(".sql")


def broken() -> set[str]:
    return {difference.invariant for difference in invariants.differences()}


def undoing() -> Market:
    """Create a market whose undo has begun.

    It has payouts in every state, a scratched outcome, a fee and a late bet.
    """
    market = builders.market(("Yes", "No", "Perhaps"))
    for _ in range(MEMBERS):
        orm_bet(market, member(), "Yes", "100.25", at=AT - timedelta(hours=1))
    orm_bet(market, member(), "No", "700.50", at=AT - timedelta(hours=1))
    orm_bet(market, member(), "Perhaps", 40, at=AT - timedelta(hours=1))
    orm_bet(market, member(), "Yes", 60, at=AT)
    resolutions.scratch(market_id=market.pk, outcome="Perhaps", reason="cancelled", by=actor(), at=AT, policy=POLICY)
    builders.settle(market)
    builders.resolve(market, "Yes", effective_close_at=AT - timedelta(minutes=30))
    builders.settle(market)
    paid, in_doubt, refused, redirected, spent, _ = Transaction.objects.filter(destination="mpesa").order_by("user_id")
    attempt = sent(paid)
    deliver_result(attempt, result_body(attempt))
    sent(in_doubt, READ_TIMEOUT)
    for payout in (refused, redirected):
        failed(payout)
    actions.redirect_to_wallet(transaction_id=redirected.pk, by=actor(), at=after(2))
    builders.bet(builders.market(), spent.user, "Yes", "0.05")
    undo.undo(market_id=market.pk, reason="Wrong.", by=actor(), at=after(60), policy=ONE_BY_ONE)
    return market


def step(of: Market) -> bool:
    return undo.carry_out(market_id=of.pk, at=after(60), policy=ONE_BY_ONE, keep_going=lambda: False)


def cursors() -> tuple[int, int]:
    settlement = Settlement.objects.get(state="UNDOING")
    return settlement.last_user_id, settlement.last_bet_id


def test_books_close_at_every_step_of_an_undo(db: None) -> None:
    # given
    market = undoing()
    seen = set()

    # when, then
    while not step(market):
        assert [str(difference) for difference in invariants.differences()] == []
        seen |= {cursors()} if market.settlements.filter(state="UNDOING").exists() else set()
    assert len(seen) > MEMBERS + 6
    assert [str(difference) for difference in invariants.differences()] == []


def _write(table: str, change: str) -> None:
    """Change rows with the table's triggers disabled, because the triggers would refuse the change."""
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"UPDATE {table} SET {change}")  # noqa: S608 - our own words
        cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def _skip_a_member(market: Market) -> None:
    ids = Transaction.objects.filter(settlement__state="UNDOING", user_id__gt=cursors()[0]).order_by("user_id")
    _write("payments_settlement", f"last_user_id = {ids[0].user_id} WHERE state = 'UNDOING'")


def _take_back_again(market: Market) -> None:
    _write("payments_settlement", "last_user_id = 0 WHERE state = 'UNDOING'")


def _take_half_back(market: Market) -> None:
    _write("payments_transfer", "amount = amount / 2 WHERE code = 'recall'")


def _finish_without_the_rest(market: Market) -> None:
    _write("payments_settlement", "state = 'UNDONE' WHERE state = 'UNDOING'")


def _forget_a_result(market: Market) -> None:
    _write("markets_bet", "result = 'PENDING' WHERE id = (SELECT min(id) FROM markets_bet WHERE result = 'WON')")


def _raise_a_dividend(market: Market) -> None:
    _write("markets_bet", "payout = 500 WHERE id = (SELECT min(id) FROM markets_bet WHERE result = 'WON')")


POOL = "A pool is empty after its settlement; during an undo it holds the money that has come back"
BACK = "An undo takes back each payout that it has reached, whole and once, and no other payout"
RESULTS = "Results of bets follow the outcome until an undo has reached them"
PAYS_OUT = "A settlement pays out its stakes less the fee"
DIVIDENDS = "Each member's transactions of a settlement sum to their dividends"


@pytest.mark.broken_books
@pytest.mark.parametrize(
    ("go_wrong", "expected"),
    [
        (_skip_a_member, {POOL, BACK}),
        (_take_back_again, {POOL, BACK}),
        (_take_half_back, {POOL, BACK, "Debts of members equal their receivables"}),
        (_finish_without_the_rest, {POOL, BACK}),
        (_forget_a_result, {RESULTS}),
        (_raise_a_dividend, {PAYS_OUT, DIVIDENDS}),
    ],
)
def test_wrong_step_of_an_undo_breaks_its_invariants(
    db: None, go_wrong: Callable[[Market], None], expected: set[str]
) -> None:
    # given
    market = undoing()
    step(market)
    step(market)
    assert broken() == set()

    # when
    go_wrong(market)

    # then
    assert broken() == expected


@pytest.mark.broken_books
def test_result_left_behind_by_an_undo_breaks_its_invariant(db: None) -> None:
    # given: all money is back, and the first bets have no result again
    market = undoing()
    while cursors()[1] == 0:
        step(market)
    assert broken() == set()

    # when
    first = market.bets.order_by("pk")[0]
    _write("markets_bet", f"result = 'WON' WHERE id = {first.pk}")

    # then
    assert broken() == {RESULTS}
    assert Outcome.objects.filter(market=market).count() == 3


@pytest.mark.broken_books
def test_attempt_of_another_settlement_breaks_its_invariant(db: None) -> None:
    # given
    payout = builders.payout(285)
    sent(payout)

    # when
    _write("payments_attempt", "settlement_id = NULL")

    # then
    assert broken() == {"A request counts to the settlement of its payout"}


def test_every_invariant_is_one_select_named_by_its_column(db: None) -> None:
    statements = named_sql.read(SQL_FILE)
    assert [statement.comment[0] for statement in statements.values()] == list(invariants.INVARIANTS)
    with connection.cursor() as cursor:
        for statement in statements.values():
            cursor.execute(statement.sql)
            assert statement.sql.startswith("SELECT ")
            assert ";" not in statement.sql
            assert len(statement.comment) >= 2
            assert [column.name for column in cursor.description] == [statement.name]


def test_file_of_invariants_runs_whole_as_in_psql(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(SQL_FILE.read_text(encoding="utf-8"))
        assert cursor.fetchall() == []
