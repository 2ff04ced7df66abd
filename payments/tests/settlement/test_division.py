"""Division: SQL gives each bet the same cents as the rule, and late bets are refunded first."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markets.models import Bet
from payments.ledger import journal
from payments.models import Settlement, Transaction
from testing import builders
from testing.builders import AT, member, orm_bet, policy, resolve, settle
from testing.payout_steps import after
from testing.settlement_steps import OUTCOMES, by_the_rule, dividends, due, opened
from users.models import CustomUser


@st.composite
def rules_and_weights(draw: st.DrawFn) -> tuple[str, dict[str, Decimal]]:
    rule = draw(st.sampled_from(["WINNER", "WINNER", "JOINT", "JOINT", "SPLIT", "VOID"]))
    if rule == "VOID":
        return rule, {}
    names = draw(st.permutations(OUTCOMES))[: 1 if rule == "WINNER" else draw(st.integers(1, 3))]
    cuts = sorted(draw(st.sets(st.integers(1, 9_999), min_size=len(names) - 1, max_size=len(names) - 1)))
    parts = [high - low for low, high in zip([0, *cuts], [*cuts, 10_000], strict=True)]
    return rule, {name: Decimal(part) / 100 for name, part in zip(names, parts, strict=True)}


CENTS = st.one_of(st.integers(1, 20), st.integers(1, 100_000), st.just(10_000_000_00), st.integers(1, 10_000_000_00))
FEES = st.one_of(st.sampled_from(["0", "5", "100"]).map(Decimal), st.decimals("0", "100", places=2))


def test_sql_gives_the_cents_of_the_rule_in_any_chunks(db: None) -> None:
    users = [member() for _ in range(4)]
    entries = st.lists(st.tuples(st.sampled_from(users), st.sampled_from(OUTCOMES), CENTS), max_size=7)

    @settings(max_examples=60)
    @given(
        bets=entries,
        resolution=rules_and_weights(),
        fee_pct=FEES,
        protect=st.booleans(),
        chunk=st.sampled_from([1, 2, 3, 20_000]),
    )
    def holds(
        bets: list[tuple[CustomUser, str, int]],
        resolution: tuple[str, dict[str, Decimal]],
        fee_pct: Decimal,
        protect: bool,
        chunk: int,
    ) -> None:
        # given
        rule, weights = resolution
        rules = policy(settlement_chunk=chunk, protect_stake=protect)
        market = opened([(user, name, Decimal(cents) / 100) for user, name, cents in bets], fee_pct=fee_pct)
        fee, expected = by_the_rule(market, rule, weights, protect)
        resolve(market, rule=rule, weights=weights, policy=rules)  # type: ignore[arg-type]

        # when
        settle(market, policy=rules)

        # then
        settlement = Settlement.objects.get(market=market)
        assert dividends(market) == expected
        assert settlement.fee == Decimal(fee) / 100
        assert settlement.state == "SETTLED"
        assert settlement.pool == settlement.fee + settlement.net
        assert journal.balance(journal.pool(market.pk)) == 0
        for user in users:
            won = sum(dividend for (who, _, _), dividend in zip(bets, expected, strict=True) if who == user)
            assert sum((amount for *_, amount in due(market, user)), Decimal(0)) == won

    holds()


def test_left_over_cents_go_as_the_rule_says_if_remainders_are_equal(db: None) -> None:
    # given: stakes of which many have equal remainders, with ids in another order than the stakes
    users = [member() for _ in range(10)]
    market = builders.market(OUTCOMES, "7.77")
    Bet.objects.bulk_create(
        Bet(
            market=market,
            user=users[number % 10],
            outcome=OUTCOMES[number % 2],
            amount=Decimal(1 + number * 37 % 50) / 100,
        )
        for number in range(240)
    )
    weights = {"A": Decimal("33.3"), "B": Decimal("66.7")}
    fee, expected = by_the_rule(market, "JOINT", weights, True)
    resolve(market, rule="JOINT", weights=weights)

    # when
    settle(market)

    # then
    assert dividends(market) == expected
    assert Settlement.objects.get().fee == Decimal(fee) / 100 == 0


# --- late bets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 20_000])
def test_late_bets_are_refunded_before_the_pool_is_divided(db: None, chunk: int) -> None:
    # given: one member bet in time, and again after the result was known
    market, cheat, loser, late = builders.market(fee_pct=0), member(), member(), member()
    orm_bet(market, cheat, "Yes", 100, at=AT)
    orm_bet(market, cheat, "Yes", 900, at=after(61))
    orm_bet(market, loser, "No", 50, at=after(60))
    orm_bet(market, late, "No", 30, at=after(70))

    # when
    resolve(market, "Yes", effective_close_at=after(60), at=after(100))
    settle(market, policy=policy(settlement_chunk=chunk), at=after(100))

    # then
    assert list(market.bets.order_by("pk").values_list("result", "payout")) == [
        ("WON", 150),
        ("REFUNDED", 900),
        ("LOST", 0),
        ("REFUNDED", 30),
    ]
    settlement = Settlement.objects.get()
    assert (settlement.pool, settlement.late_refund, settlement.effective_close_at) == (150, 930, after(60))
    rows = Transaction.objects.order_by("user", "type").values_list("user", "type", "destination", "amount")
    assert list(rows) == [
        (cheat.pk, "PAYOUT", "mpesa", 150),
        (cheat.pk, "REFUND", "wallet", 900),
        (late.pk, "REFUND", "wallet", 30),
    ]

    # when: the settlement is undone, and the market is resolved without a close time
    builders.undo(market, at=after(200))
    assert journal.balance(journal.pool(market.pk)) == 1080


def test_all_stakes_go_back_if_every_bet_is_late(db: None) -> None:
    market, user = builders.market(), member()
    orm_bet(market, user, "Yes", 100, at=after(61))

    resolve(market, "Yes", effective_close_at=after(60), at=after(100))
    settle(market)

    assert market.status == "SETTLED"
    assert CustomUser.objects.get(pk=user.pk).balance == 100
