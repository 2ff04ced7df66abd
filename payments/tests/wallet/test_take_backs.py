"""Tests of payments/wallet/take_backs.py: stakes taken back leave every sum of their market."""

import json
import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from markets import pools
from markets.models import Bet, Market
from payments import dispute_steps, disputes
from payments.ledger import invariants, journal
from payments.models import Transaction, Transfer
from payments.settlement import market_overview, preview, resolutions
from payments.settlement.certificates import document, explanations, issuing
from payments.settlement.decision import Decision
from payments.wallet import take_backs
from testing import builders
from testing.builders import actor, at_once, bet, market, member, nothing_moved, operator, orm_bet, policy
from users.models import CustomUser

NOTICE = timedelta(hours=24)
NOW = timezone.now() - timedelta(days=3)
LATER = NOW + timedelta(days=2)  # After the notice, also by PostgreSQL's clock.
WINNER = Decision("WINNER", {"Yes": Decimal(100)})


def changed(market: Market) -> None:
    """Change the fee of a market to 4 %, by two people."""
    builders.changed_terms(market, at=NOW, notice=NOTICE, platform_fee_pct=Decimal(4))


def take_back(bet: Bet, *, by: CustomUser | None = None, at: datetime = NOW) -> take_backs.TakenBack:
    return take_backs.take_back(user_id=(by or bet.user).pk, market_id=bet.market_id, bet_id=bet.public_id, at=at)


def balance(user: CustomUser) -> Decimal:
    return CustomUser.objects.get(pk=user.pk).balance


def test_stake_goes_back_whole_to_the_wallet_once(db: None) -> None:
    # given
    rain, user = market(), member(100)
    placed = bet(rain, user, amount="60.50", at=NOW)
    changed(rain)

    # when
    first, second = take_back(placed), take_back(placed)

    # then
    placed.refresh_from_db()
    assert (placed.result, placed.payout, placed.taken_back_at) == ("REFUNDED", Decimal("60.50"), NOW)
    assert first.balance == second.balance == balance(user) == Decimal(100)
    assert Transfer.objects.filter(key=f"takeback:{placed.pk}").count() == 1
    assert pools.pools([rain.pk])[rain.pk]["Yes"] == (Decimal("0.00"), 0)
    assert Transaction.objects.count() == 0


@pytest.mark.parametrize("case", ["no change", "notice over", "scratched", "resolved"])
def test_stake_stays_where_no_notice_runs_for_it(db: None, case: str) -> None:
    # given
    rain, user, at = market(("Yes", "No", "Perhaps")), member(100), NOW
    placed = bet(rain, user, at=NOW)
    if case != "no change":
        changed(rain)
    if case == "notice over":
        at = NOW + NOTICE
    elif case == "scratched":
        resolutions.scratch(
            market_id=rain.pk, outcome="Yes", reason="Gone.", by=actor(operator()), at=NOW, policy=policy()
        )
    elif case == "resolved":
        builders.resolve(rain, rule="VOID", at=NOW)

    # when, then
    with nothing_moved(), pytest.raises(take_backs.TakeBackClosed):
        take_back(placed, at=at)
    if case == "scratched":
        builders.settle(rain, at=NOW)
        assert balance(user) == Decimal(100)


def test_bet_of_another_member_is_not_found(db: None) -> None:
    rain, other = market(), member()
    placed = bet(rain, member(100), at=NOW)
    changed(rain)
    with nothing_moved():
        with pytest.raises(take_backs.BetNotFound):
            take_back(placed, by=other)
        with pytest.raises(take_backs.BetNotFound):
            take_backs.take_back(user_id=placed.user_id, market_id=rain.pk, bet_id=uuid.uuid4(), at=NOW)


def test_bet_made_by_the_orm_is_booked_before_it_is_taken_back(db: None) -> None:
    rain, user = market(), member()
    placed = orm_bet(rain, user, amount=40, at=NOW)
    changed(rain)
    take_back(placed)
    assert balance(user) == Decimal(40)
    assert journal.balance(journal.pool(rain.pk)) == 0


def test_many_requests_at_once_take_a_stake_back_once(transactional_db: None) -> None:
    rain, user = market(), member(100)
    placed = bet(rain, user, at=NOW)
    changed(rain)
    results = at_once(*[lambda: take_back(placed)] * 8)
    assert all(isinstance(result, take_backs.TakenBack) for result in results)
    assert balance(user) == Decimal(100)


# --- the settlement --------------------------------------------------------------------------------------------------


def staked_market() -> tuple[Market, list[Bet]]:
    """Create a market with six bets whose terms changed, and take the second and the fifth stake back."""
    rain = market(("Yes", "No", "Perhaps"))
    bets = [
        bet(rain, member(1000), outcome, amount, at=NOW)
        for outcome, amount in (("Yes", 100), ("Yes", 50), ("No", 200), ("Perhaps", 30), ("No", "70.55"), ("Yes", 10))
    ]
    pools.advance(keep_going=lambda: True)
    changed(rain)
    for placed in (bets[1], bets[4]):
        take_back(placed)
    return rain, bets


@pytest.mark.parametrize("chunk", [1, 20_000])
@pytest.mark.parametrize("kind", ["winner", "late", "void", "nobody", "scratch"])
def test_settlement_leaves_out_stakes_taken_back(db: None, chunk: int, kind: str) -> None:
    # given
    rain, bets = staked_market()
    chunked = policy(settlement_chunk=chunk)
    staked = sum(each.amount for each in bets) - bets[1].amount - bets[4].amount

    # when
    if kind == "scratch":
        resolutions.scratch(
            market_id=rain.pk, outcome="No", reason="Gone.", by=actor(operator()), at=LATER, policy=chunked
        )
        builders.settle(rain, at=LATER, policy=chunked)
    decided: dict[str, Any] = {
        "void": {"rule": "VOID"},
        "nobody": {"weights": {"Yes": 50, "No": 50}, "rule": "JOINT"},
        "late": {"effective_close_at": NOW - timedelta(hours=1)},
    }.get(kind, {})
    builders.resolve(rain, at=LATER, policy=chunked, **decided)
    builders.settle(rain, at=LATER, policy=chunked)

    # then
    paid = sum(row.amount for row in Transaction.objects.all())
    settlement = rain.settlements.order_by("-number")[0]
    assert paid + (settlement.fee or 0) == staked
    assert journal.balance(journal.pool(rain.pk)) == 0
    assert [balance(each.user) for each in (bets[1], bets[4])] == [Decimal(1000)] * 2
    assert [str(difference) for difference in invariants.differences()] == []


def test_undo_leaves_stakes_taken_back_in_the_wallets(db: None) -> None:
    rain, bets = staked_market()
    builders.resolve(rain, at=LATER)
    builders.settle(rain, at=LATER)
    builders.undo(rain, at=LATER)
    assert journal.balance(journal.pool(rain.pk)) == Decimal(340)
    assert set(Bet.objects.filter(taken_back_at=None).values_list("result", flat=True)) == {"PENDING"}
    builders.resolve(rain, "No", at=LATER)
    builders.settle(rain, at=LATER)
    assert balance(bets[1].user) == Decimal(1000)


def test_preview_and_pages_leave_out_stakes_taken_back(db: None) -> None:
    rain, bets = staked_market()
    shown = preview.preview(rain, WINNER, at=LATER, policy=policy())
    assert shown.figures.division.pool == 34_000
    assert [pool.stakes for pool in market_overview.pools(rain)] == [Decimal(110), Decimal(200), Decimal(30)]
    assert market_overview.member_totals(bets[1].user_id)["stakes"] is None
    assert preview.figures(rain, WINNER, at=LATER, policy=policy()).members["winners"] == 2
    curve = market_overview.curve(rain)
    assert curve.shares["Yes"][-1] == round(100 * 110 / 340, 1)


def test_certificate_leaves_out_stakes_taken_back(db: None) -> None:
    # given
    rain, bets = staked_market()
    builders.resolve(rain, at=LATER)
    builders.settle(rain, at=LATER)

    # when
    issued = issuing.current(rain.pk, at=LATER, keep_going=lambda: True)

    # then
    assert issued.bet_count == 4
    document.check(json.loads(issuing.document(issued)))
    for place, placed in enumerate(bets):
        placed.refresh_from_db()
        explained = explanations.explain(placed, at=LATER)
        assert (explained.proof is None) == (place in (1, 4))
    assert "you took it back" in explanations.explain(bets[1], at=LATER).sentence
    with pytest.raises(dispute_steps.NotDisputable, match="took this stake back"):
        disputes.open_about_bet(
            user_id=bets[1].user_id,
            market_id=rain.pk,
            bet_id=bets[1].public_id,
            text="Why?",
            by=actor(bets[1].user),
            at=LATER,
            policy=policy(),
        )


# --- rows that PostgreSQL refuses ------------------------------------------------------------------------------------


def test_database_refuses_to_take_a_stake_back_without_a_notice(db: None) -> None:
    rain = market()
    placed = orm_bet(rain, member())
    values = {"result": "REFUNDED", "payout": placed.amount, "taken_back_at": NOW}
    with pytest.raises(IntegrityError, match="cannot be taken back"), transaction.atomic():
        Bet.objects.filter(pk=placed.pk).update(**values)


@pytest.mark.broken_books
def test_database_refuses_a_result_for_a_stake_taken_back(db: None) -> None:
    _, bets = staked_market()
    for values in ({"result": "PENDING", "payout": 0}, {"taken_back_at": None}, {"taken_back_at": LATER}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Bet.objects.filter(pk=bets[1].pk).update(**values)


@pytest.mark.broken_books
def test_stake_taken_back_without_its_transfer_breaks_an_invariant(db: None) -> None:
    rain = market()
    placed = orm_bet(rain, member(), at=NOW)
    changed(rain)
    Bet.objects.filter(pk=placed.pk).update(result="REFUNDED", payout=placed.amount, taken_back_at=NOW)
    assert {difference.invariant for difference in invariants.differences()} == {
        "A stake that was taken back went from the pool to the member's wallet, whole and once"
    }


def test_stated_close_before_a_change_settles_under_the_terms_of_then(db: None) -> None:
    """The event was over before the change, so a higher fee must not bind the bets that it decides."""
    # given: the fee rises from 5 % to 50 % after the event
    over = NOW - timedelta(hours=1)
    rain, user = market(), member(1000)
    bet(rain, user, at=over)
    bet(rain, user, "No", at=over)
    builders.changed_terms(rain, at=NOW, notice=NOTICE, platform_fee_pct=Decimal(50))
    decision = Decision("WINNER", {"Yes": Decimal(100)}, effective_close_at=over)
    shown = preview.preview(rain, decision, at=LATER, policy=policy())

    # when
    builders.resolve(rain, at=LATER, effective_close_at=over, preview_hash=shown.figures.preview_hash)
    builders.settle(rain, at=LATER)

    # then
    settlement = rain.settlements.get()
    assert (settlement.fee_pct, settlement.fee) == (Decimal(5), Decimal(10))
    assert shown.figures.division.fee == 1000
    assert "(5.00 %)" in shown.equation
