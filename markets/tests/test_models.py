"""Tests of markets/models.py: saved markets and bets, and rows that PostgreSQL refuses."""

from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction

from markets import locks
from markets.models import NAIROBI, Bet, Market, Outcome
from payments.ledger import journal
from payments.models import Settlement, Transfer
from payments.settlement import resolutions
from testing.builders import AT, at_once, bet, market, member, nothing_moved, orm_bet, resolve, settle
from users.models import CustomUser

END_OF_17_FEBRUARY = datetime(2026, 2, 17, 20, 59, 59, 999999, tzinfo=UTC)


def change(model: type, pk: int, column: str, value: object) -> None:
    with transaction.atomic():
        model.objects.filter(pk=pk).update(**{column: value})


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_market_saved_without_outcomes_gets_yes_and_no(db: None) -> None:
    rain = Market.objects.create(question="Will it rain tomorrow?", end_date="2026-02-17")
    assert rain.outcome_names == ("Yes", "No")
    rain.question = "Will it rain the day after?"
    rain.save()
    assert list(Outcome.objects.order_by("pk").values_list("name", flat=True)) == ["Yes", "No"]


def test_named_outcomes_keep_their_order(db: None) -> None:
    rain = market(outcomes=("Gor Mahia", "AFC Leopards", "Draw"))
    assert rain.outcome_names == ("Gor Mahia", "AFC Leopards", "Draw")
    assert Market.objects.get().outcome_names == ("Gor Mahia", "AFC Leopards", "Draw")


def test_repeated_or_empty_outcome_is_refused(db: None) -> None:
    for outcomes in (("Yes", "Yes"), ("Yes", "")):
        with pytest.raises(IntegrityError), transaction.atomic():
            market(outcomes=outcomes)
    assert Market.objects.count() == 0


def test_platform_fee_defaults_to_the_setting_and_must_be_a_percentage(db: None) -> None:
    assert Market.objects.create(question="?", end_date=AT).platform_fee_pct == Decimal("5.00")
    for fee_pct in ("-0.01", "100.01"):
        with pytest.raises(IntegrityError, match="fee_is_a_percentage"), transaction.atomic():
            market(fee_pct=fee_pct)


# --- the end date ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["2026-02-17", " 2026-02-17 ", date(2026, 2, 17)])
def test_end_date_without_time_is_the_end_of_that_day_in_nairobi(db: None, typed: object) -> None:
    rain = Market.objects.create(question="?", status="OPEN", end_date=typed)
    assert rain.end_date == END_OF_17_FEBRUARY
    assert Market.objects.get(end_date=typed).end_date == END_OF_17_FEBRUARY


@pytest.mark.parametrize(
    ("typed", "moment"),
    [
        ("2026-02-17T18:00:00+03:00", datetime(2026, 2, 17, 15, tzinfo=UTC)),
        ("2026-02-17 18:00:00Z", datetime(2026, 2, 17, 18, tzinfo=UTC)),
        (datetime(2026, 2, 17, 18, tzinfo=NAIROBI), datetime(2026, 2, 17, 15, tzinfo=UTC)),
    ],
)
def test_end_date_with_a_zone_is_kept(db: None, typed: object, moment: datetime) -> None:
    Market.objects.create(question="?", end_date=typed)
    assert Market.objects.get().end_date == moment


def test_end_date_without_a_zone_is_nairobi_time_and_warns(db: None) -> None:
    with pytest.warns(RuntimeWarning, match="naive datetime"):
        Market.objects.create(question="?", end_date="2026-02-17 18:00")
    assert Market.objects.get().end_date == datetime(2026, 2, 17, 15, tzinfo=UTC)


@pytest.mark.parametrize("typed", ["2026-02-30", "tomorrow", ""])
def test_text_that_is_not_a_date_is_refused(db: None, typed: str) -> None:
    with pytest.raises(ValidationError), transaction.atomic():
        Market.objects.create(question="?", end_date=typed)


# --- bets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["CLOSED", "RESOLVED", "SETTLED", "VOID"])
def test_market_that_is_not_open_refuses_every_kind_of_bet(db: None, at: datetime, status: str) -> None:
    # given
    closed, user = market(), member(balance=100)
    if status == "CLOSED":
        change(Market, closed.pk, "status", "CLOSED")
    else:
        resolve(closed, rule="VOID" if status == "VOID" else None)
        if status != "RESOLVED":
            settle(closed)

    # when, then
    with nothing_moved():
        with pytest.raises(IntegrityError, match=f"is {status} and takes no bets"), transaction.atomic():
            orm_bet(closed, user)
        with pytest.raises(IntegrityError, match="takes no bets"), transaction.atomic():
            Bet.objects.bulk_create([Bet(market=closed, user=user, outcome="No", amount=1)])
        with pytest.raises(locks.MarketNotOpen):
            bet(closed, user, at=at)


def test_bulk_of_bets_is_refused_whole_if_one_market_is_closed(db: None) -> None:
    opened, closed, user = market(), market(), member()
    change(Market, closed.pk, "status", "CLOSED")
    with nothing_moved(), pytest.raises(IntegrityError, match="is CLOSED"), transaction.atomic():
        Bet.objects.bulk_create([Bet(market=each, user=user, outcome="Yes", amount=1) for each in (opened, closed)])


def test_open_market_past_its_end_date_takes_bets_by_the_orm(db: None) -> None:
    past = market(end_date="2020-01-01")
    assert orm_bet(past, member()).result == "PENDING"


def test_bet_on_an_outcome_of_another_market_is_refused(db: None) -> None:
    rain, match, user = market(), market(outcomes=("Home", "Away")), member()
    for outcome in ("Home", "yes", "", "Yes "):
        with nothing_moved(), pytest.raises(IntegrityError, match="bet_outcome_is_its_markets"), transaction.atomic():
            orm_bet(rain, user, outcome)
    assert orm_bet(match, user, "Home").outcome == "Home"


@pytest.mark.usefixtures("as_owner")
def test_outcome_with_bets_cannot_be_renamed_or_deleted(db: None) -> None:
    placed = orm_bet(market(), member())
    with pytest.raises(IntegrityError, match="only scratched"), transaction.atomic():
        Outcome.objects.filter(name="Yes").update(name="Perhaps")
    with pytest.raises(IntegrityError, match="bet_outcome_is_its_markets"), transaction.atomic():
        Outcome.objects.filter(name="Yes").delete()
    assert placed.market.outcome_names == ("Yes", "No")


def test_resolved_outcome_of_another_market_is_refused(db: None) -> None:
    rain = market()
    market(outcomes=("Home", "Away"))
    with pytest.raises(IntegrityError, match="resolved_outcome_is_the_markets"):
        change(Market, rain.pk, "resolved_outcome", "Home")


@pytest.mark.parametrize("amount", ["0", "-1", "-0.01"])
def test_stake_that_is_not_positive_is_refused(db: None, amount: str) -> None:
    rain, user = market(), member()
    with nothing_moved(), pytest.raises(IntegrityError, match="stake_is_positive"), transaction.atomic():
        orm_bet(rain, user, "Yes", amount)


def test_new_bet_with_a_result_or_dividend_is_refused(db: None) -> None:
    rain, user = market(), member()
    for begun in ({"result": "WON"}, {"payout": Decimal(1)}):
        with nothing_moved(), pytest.raises(IntegrityError, match="begins PENDING"), transaction.atomic():
            Bet.objects.create(market=rain, user=user, outcome="Yes", amount=1, **begun)


def test_changing_a_placed_bet_is_refused(db: None, at: datetime) -> None:
    placed = bet(market(), member(balance=100))
    other = market()
    for column, value in (
        ("amount", Decimal("99")),
        ("outcome", "No"),
        ("user", member()),
        ("market", other),
        ("placed_at", at.replace(year=2020)),
        ("public_id", "00000000-0000-0000-0000-000000000000"),
        ("client_ref", "late"),
    ):
        with pytest.raises(IntegrityError, match="A placed bet is not changed"):
            change(Bet, placed.pk, column, value)


@pytest.mark.parametrize("sql", ["DELETE FROM markets_{}", "TRUNCATE markets_{} CASCADE"])
@pytest.mark.parametrize("table", ["bet", "market"])
@pytest.mark.usefixtures("as_owner")
def test_deleting_bets_and_markets_is_refused(db: None, table: str, sql: str) -> None:
    bet(market(), member(balance=100))
    connection.check_constraints()  # PostgreSQL refuses to truncate a table with deferred checks.
    refused = pytest.raises(IntegrityError, match="not deleted")
    with nothing_moved(), connection.cursor() as cursor, refused, transaction.atomic():
        cursor.execute(sql.format(table))


def test_second_bet_of_a_member_with_same_client_ref_is_refused(db: None) -> None:
    rain, user = market(), member()
    Bet.objects.create(market=rain, user=user, outcome="Yes", amount=1, client_ref="a")
    Bet.objects.create(market=rain, user=member(), outcome="Yes", amount=1, client_ref="a")
    with pytest.raises(IntegrityError, match="bet_once_a_client_ref"), transaction.atomic():
        Bet.objects.create(market=rain, user=user, outcome="No", amount=2, client_ref="a")


# --- old copies ------------------------------------------------------------------------------------------------------


def test_old_copy_saved_after_the_settlement_leaves_the_market_settled(db: None) -> None:
    # given: a form loaded the market while it was CLOSED
    rain = market()
    orm_bet(rain, member(), "Yes", 100)
    change(Market, rain.pk, "status", "CLOSED")
    stale = Market.objects.get()
    resolve(rain)
    settle(rain)

    # when: it is saved after the settlement
    stale.question = "Will it rain in Nairobi tomorrow?"
    with suppress(IntegrityError), transaction.atomic():  # A refusal is correct, too.
        stale.save()

    # then
    rain.refresh_from_db()
    assert (rain.status, rain.resolved_outcome, rain.settled_at) == ("SETTLED", "Yes", AT)


# --- races -----------------------------------------------------------------------------------------------------------


def test_bet_that_races_a_resolve_is_in_the_pool_or_refused(transactional_db: None) -> None:
    for turn in range(8):
        # given
        rain, member_betting, member_by_orm = market(), member(balance=100), member()
        orm_bet(rain, member(), "No", 50)

        # when: a bet by the service, a bet by the ORM and a resolve run at the same moment
        by_service, by_orm, resolved = at_once(
            lambda on=rain, user=member_betting: bet(on, user, "Yes", 30),
            lambda on=rain, user=member_by_orm: orm_bet(on, user, "Yes", 20),
            lambda on=rain: resolve(on),
        )
        settle(rain)

        # then
        assert isinstance(by_service, Bet | locks.MarketNotOpen), f"turn {turn}: {by_service!r}"
        assert isinstance(by_orm, Bet | IntegrityError), f"turn {turn}: {by_orm!r}"
        assert isinstance(resolved, resolutions.Resolved), f"turn {turn}: {resolved!r}"
        pool = 50 + 30 * isinstance(by_service, Bet) + 20 * isinstance(by_orm, Bet)
        assert Settlement.objects.get(market=rain).pool == pool
        assert Bet.objects.filter(market=rain, result="PENDING").count() == 0
        assert journal.balance(journal.pool(rain.pk)) == 0
        left = Decimal(70) if isinstance(by_service, Bet) else Decimal(100)
        staked = CustomUser.objects.get(pk=member_betting.pk).balance
        assert left <= staked < left + 30


def test_concurrent_resolves_declare_one_outcome(transactional_db: None) -> None:
    rain = market()
    orm_bet(rain, member())

    answers = at_once(lambda: resolve(rain, "Yes"), lambda: resolve(rain, "No"), lambda: resolve(rain, rule="VOID"))

    assert sorted(type(answer).__name__ for answer in answers) == [
        "MarketAlreadyResolved",
        "MarketAlreadyResolved",
        "Resolved",
    ]
    assert Settlement.objects.count() == 1
    assert Transfer.objects.count() == 0
