"""Dividing a pool in SQL: to the cent what the rule says, whatever interrupts it, and booked once."""

import io
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from markets import locks, parimutuel
from markets.models import Bet, Market
from payments import settlement_tasks
from payments.ledger import journal
from payments.ledger.journal import Entry
from payments.models import Settlement, Transaction, Transfer
from payments.payouts import eligibility
from payments.payouts.sending import canary, claims
from payments.settlement import resolutions, settling, status
from payments.settlement.decision import Decision, UnknownReason
from testing import crashes
from testing.builders import (
    AT,
    Amount,
    actor,
    at_once,
    bet,
    market,
    member,
    money_snapshot,
    nothing_moved,
    orm_bet,
    policy,
    resolve,
    settle,
    settled_market,
    transfers,
)
from users.models import CustomUser

OUTCOMES = ("A", "B", "C")
Staked = tuple[CustomUser, str, Amount]
Queued = Callable[[], list[tuple[str, str, list[Any]]]]


def steps(number: int) -> Callable[[], bool]:
    """A `keep_going` that allows so many steps."""
    left = iter([True] * number)
    return lambda: next(left, False)


def opened(bets: Sequence[Staked], *, fee_pct: Amount = "5.00", outcomes: Sequence[str] = OUTCOMES) -> Market:
    made = market(outcomes, fee_pct)
    for user, outcome, amount in bets:
        orm_bet(made, user, outcome, amount)
    return made


def dividends(of: Market) -> list[Decimal]:
    return list(Bet.objects.filter(market=of).order_by("pk").values_list("payout", flat=True))


def due(of: Market, user: CustomUser | None = None) -> list[tuple[str, int, str, Decimal]]:
    rows = Transaction.objects.filter(settlement__market=of).order_by("user", "destination", "tranche")
    if user is not None:
        rows = rows.filter(user=user)
    return list(rows.values_list("destination", "tranche", "status", "amount"))


def by_the_rule(
    of: Market, rule: Any, weights: Mapping[str, Decimal], protect_stake: bool
) -> tuple[int, list[Decimal]]:
    """The fee in cents and the dividends in shillings that divide_pool finds for this market's bets."""
    stakes = [
        parimutuel.Stake(pk, outcome, int(amount * 100))
        for pk, outcome, amount in Bet.objects.filter(market=of).values_list("pk", "outcome", "amount")
    ]
    divided, found = parimutuel.divide_pool(
        stakes,
        rule=rule,
        outcomes=of.outcome_names,
        weights=weights,
        fee_pct=of.platform_fee_pct,
        protect_stake=protect_stake,
    )
    return divided.fee, [Decimal(found[pk]) / 100 for pk in sorted(found)]


# --- resolving -------------------------------------------------------------------------------------------------------


def test_resolving_closes_an_open_market_and_opens_a_settlement(db: None, at: datetime) -> None:
    made, staff = market(), member(is_staff=True)

    resolved = resolve(made, "No", by=staff, at=at)

    run = Settlement.objects.get()
    made.refresh_from_db()
    assert resolved == resolutions.Resolved(made.pk, run.pk, str(run.public_id), "WINNER", "No")
    assert (made.status, made.resolved_outcome, made.resolved_at, made.settled_at) == ("RESOLVED", "No", at, None)
    assert (run.number, run.rule, run.weights, run.state, run.resolved_by) == (
        1,
        "WINNER",
        {"No": "100"},
        "PENDING",
        staff,
    )
    assert (run.fee_pct, run.protect_stake, run.pool) == (5, True, None)
    assert settling.to_settle(limit=10) == [made.pk]


def test_only_one_winner_is_named_as_the_resolved_outcome(db: None) -> None:
    for rule, weights in (("JOINT", {"A": 50, "B": 50}), ("SPLIT", {"A": 60, "C": 40}), ("VOID", None)):
        made = market(OUTCOMES)
        resolve(made, rule=rule, weights=weights)  # type: ignore[arg-type]
        made.refresh_from_db()
        assert (made.status, made.resolved_outcome) == ("RESOLVED", None)


def test_what_cannot_be_resolved_moves_nothing(db: None) -> None:
    made, resolved = market(), market()
    resolve(resolved)
    with nothing_moved():
        with pytest.raises(parimutuel.UnknownOutcome):
            resolve(made, "Maybe")
        with pytest.raises(parimutuel.BadWeights):
            resolve(made, rule="JOINT", weights={"Yes": 50, "No": 49})
        for rule, weights, reason in (
            ("VOID", {}, "because"),
            ("VOID", {}, ""),
            ("WINNER", {"Yes": Decimal(100)}, "error"),
        ):
            with pytest.raises(UnknownReason):
                resolutions.resolve(
                    market_id=made.pk,
                    decision=Decision(rule, weights, reason),  # type: ignore[arg-type]
                    by=actor(),
                    at=AT,
                    policy=policy(),
                )
        with pytest.raises(resolutions.MarketAlreadyResolved):
            resolve(resolved, "No")
        with pytest.raises(locks.MarketNotFound):
            resolve(Market(pk=999_999))
        with pytest.raises(locks.MarketNotFound):
            settle(Market(pk=999_999))


def test_a_market_that_is_not_resolved_is_not_settled(db: None, at: datetime) -> None:
    made = opened([(member(), "A", 100)])
    with nothing_moved():
        assert settle(made) == settling.Progress(found=False, settled=False)


def test_markets_wait_for_settlement_oldest_first(db: None) -> None:
    made = [market() for _ in range(4)]
    for one in (made[2], made[0], made[3]):
        resolve(one)
    assert settling.to_settle(limit=10) == [made[2].pk, made[0].pk, made[3].pk]
    assert settling.to_settle(limit=2) == [made[2].pk, made[0].pk]
    settle(made[2])
    assert settling.to_settle(limit=10) == [made[0].pk, made[3].pk]


# --- the guide's example and the books it makes ----------------------------------------------------------------------


def test_the_guides_example_is_booked_to_the_cent(db: None, at: datetime) -> None:
    # given: part 4.1 of the guide, bets made straight through the ORM
    user1, user2 = member(balance=1_000), member(balance=2_000)
    made = market()
    bet1, bet2 = orm_bet(made, user1, "Yes", 100), orm_bet(made, user2, "No", 200)
    resolve(made, "Yes")
    earlier = Transfer.objects.count()

    # when
    progress = settle(made, at=at)

    # then
    run, paid = Settlement.objects.get(), Transaction.objects.get()
    assert transfers()[earlier:] == [
        (f"stake:{bet1.pk}", "opening", f"pool:{made.pk}", Decimal("100.00")),
        (f"stake:{bet2.pk}", "opening", f"pool:{made.pk}", Decimal("200.00")),
        (f"payout:{paid.pk}", f"pool:{made.pk}", "payable", Decimal("285.00")),
        (f"fee:{run.pk}", f"pool:{made.pk}", "fee_income", Decimal("15.00")),
    ]
    assert progress == settling.Progress(found=True, settled=True, to_send=(paid.pk,), more_to_send=False)
    assert (run.pool, run.winning_pool, run.fee, run.net, run.refund, run.bet_count) == (300, 100, 15, 285, False, 2)
    assert (run.state, run.settled_at, run.release_at, run.number) == ("SETTLED", at, at, 1)
    assert (made.status, made.settled_at, made.resolved_outcome) == ("SETTLED", at, "Yes")
    assert list(Bet.objects.order_by("pk").values_list("result", "payout")) == [("WON", 285), ("LOST", 0)]
    assert (paid.user, paid.type, paid.status, paid.destination, paid.amount) == (
        user1,
        "PAYOUT",
        "PENDING",
        "mpesa",
        285,
    )
    assert (paid.phone_number, paid.due_at, paid.tranche) == (user1.phone_number, at, 1)
    assert paid.external_ref.startswith(f"KASOKO-{made.pk}-{user1.pk}-") and len(paid.external_ref.split("-")[3]) == 8
    assert journal.balance(journal.pool(made.pk)) == 0
    assert set(CustomUser.objects.values_list("balance", flat=True)) == {1_000, 2_000}


def test_the_workers_log_has_the_guides_line(db: None, caplog: pytest.LogCaptureFixture) -> None:
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    totals = "total_pool=300.00, winning_pool=100.00, platform_fee=15.00, net_pool=285.00, bets=2"
    assert f"Settling market {made.pk}: {totals}" in caplog.messages


def test_a_members_winning_bets_are_one_payout(db: None) -> None:
    user, loser = member(), member()
    made = settled_market([(user, "Yes", 100), (loser, "No", 200), (user, "Yes", 50), (user, "No", 30)], fee_pct=0)
    assert dividends(made) == [Decimal("253.33"), 0, Decimal("126.67"), 0]
    assert due(made) == [("mpesa", 1, "PENDING", Decimal(380))]


def test_stakes_from_wallets_and_from_outside_are_one_pool(db: None) -> None:
    # given
    made, by_service, by_orm = market(fee_pct=10), member(balance=100), member()
    stake = bet(made, by_service, "Yes", "40.50")
    outside = orm_bet(made, by_orm, "No", "60.50")
    resolve(made, "Yes")

    # when
    settle(made)

    # then: each stake is booked once, from where it came
    assert [(key, debit) for key, debit, _, _ in transfers(code="stake")] == [
        (f"stake:{stake.pk}", f"wallet:{by_service.pk}"),
        (f"stake:{outside.pk}", "opening"),
    ]
    assert due(made) == [("mpesa", 1, "PENDING", Decimal(90)), ("wallet", 1, "COMPLETED", Decimal("0.90"))]
    by_service.refresh_from_db()
    assert by_service.balance == Decimal("60.40")


def test_settling_again_is_a_no_op(db: None) -> None:
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    with nothing_moved():
        assert settle(made) == settling.Progress(found=False, settled=False)
        settlement_tasks.settle_market(made.pk)
        settlement_tasks.settle_resolved_markets()


def test_a_market_without_bets_settles_empty(db: None, at: datetime) -> None:
    made = settled_market([])
    run = Settlement.objects.get()
    assert (made.status, run.pool, run.fee, run.net, run.refund, run.bet_count) == ("SETTLED", 0, 0, 0, True, 0)
    assert (Transaction.objects.count(), Transfer.objects.count()) == (0, 0)


# --- destinations, tranches, minimums --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dividend", "by_mpesa", "to_wallet"),
    [
        ("0.01", [], "0.01"),
        ("9.99", [], "9.99"),
        ("10", [10], None),
        ("10.01", [10], "0.01"),
        ("285.37", [285], "0.37"),
        ("249999.99", [249_999], "0.99"),
        ("250000", [250_000], None),
        ("250005", [250_000], "5"),
        ("250009.99", [250_000], "9.99"),
        ("250010", [250_000, 10], None),
        ("500000.50", [250_000, 250_000], "0.50"),
        ("1200003.20", [250_000, 250_000, 250_000, 250_000, 200_003], "0.20"),
        ("10000000", [250_000] * 40, None),
    ],
)
def test_a_dividend_leaves_in_whole_shillings_and_tranches_and_the_rest_goes_to_the_wallet(
    db: None, dividend: str, by_mpesa: list[int], to_wallet: str | None
) -> None:
    user = member()

    made = settled_market([(user, "Yes", dividend)], fee_pct=0)

    expected = [("mpesa", tranche, "PENDING", Decimal(amount)) for tranche, amount in enumerate(by_mpesa, start=1)]
    if to_wallet:
        expected.append(("wallet", 1, "COMPLETED", Decimal(to_wallet)))
    assert due(made) == expected
    user.refresh_from_db()
    assert user.balance == Decimal(to_wallet or 0)
    assert journal.balance("payable") == sum(by_mpesa)


def test_the_limits_of_mpesa_are_the_policys(db: None) -> None:
    user = member()
    rules = policy(min_amount=100, max_amount=1_000)
    made = settled_market([(user, "Yes", "3099.99")], fee_pct=0, policy=rules)
    assert due(made) == [("mpesa", tranche, "PENDING", Decimal(1_000)) for tranche in (1, 2, 3)] + [
        ("wallet", 1, "COMPLETED", Decimal("99.99"))
    ]
    made = settled_market([(user, "Yes", 2_100)], fee_pct=0, policy=rules)
    assert [amount for _, _, _, amount in due(made)] == [1_000, 1_000, 100]


def test_where_the_operator_pays_to_wallets_nothing_goes_by_mpesa(db: None) -> None:
    user, loser = member(balance=7), member()
    made = settled_market([(user, "Yes", 100), (loser, "No", 200)], policy=policy(destination="wallet"))
    paid = Transaction.objects.get()
    assert due(made) == [("wallet", 1, "COMPLETED", Decimal(285))]
    assert (paid.completed_at, paid.type) == (AT, "PAYOUT")
    assert transfers(code="wallet") == [(f"wallet:{paid.pk}", f"pool:{made.pk}", f"wallet:{user.pk}", Decimal(285))]
    user.refresh_from_db()
    assert user.balance == 292
    assert journal.balance("payable") == 0


@pytest.mark.parametrize("how", ["void", "nobody won"])
def test_refunds_go_whole_to_the_wallets_they_came_from(db: None, how: str) -> None:
    # given
    first, second, outside = member(balance=100), member(balance=400), member()
    made = market()
    bet(made, first, "No", "99.99")
    bet(made, second, "No", "300")
    bet(made, second, "No", "0.01")
    orm_bet(made, outside, "No", "250000.37")

    # when
    resolve(made, rule="VOID") if how == "void" else resolve(made, "Yes")
    settle(made)

    # then
    run = Settlement.objects.get()
    assert (run.refund, run.fee, run.winning_pool) == (True, 0, 0)
    assert made.status == ("VOID" if how == "void" else "SETTLED")
    assert set(Bet.objects.values_list("result", flat=True)) == {"REFUNDED"}
    assert due(made) == [("wallet", 1, "COMPLETED", Decimal(amount)) for amount in ("99.99", "300.01", "250000.37")]
    assert set(Transaction.objects.values_list("type", flat=True)) == {"REFUND"}
    assert list(CustomUser.objects.order_by("pk").values_list("balance", flat=True)) == [
        100,
        400,
        Decimal("250000.37"),
    ]
    assert transfers(code="fee") == []


def test_the_phone_is_the_one_at_settlement(db: None) -> None:
    user = member(phone_number="254712345678")
    made = opened([(user, "A", 100)])
    user.phone_number = "254700000001"
    user.save()
    resolve(made, "A")
    user.phone_number = "254700000002"
    user.save()
    settle(made)

    user.phone_number = "254700000003"
    user.save()

    assert Transaction.objects.get().phone_number == "254700000002"


def test_a_losers_wallet_is_not_opened_and_not_locked(db: None) -> None:
    made = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    assert sorted(code for code in _accounts()) == sorted(["fee_income", "opening", "payable", f"pool:{made.pk}"])


def _accounts() -> set[str]:
    return {code for _, debit, credit, _ in transfers() for code in (debit, credit)}


# --- the SQL is the rule ---------------------------------------------------------------------------------------------


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


def test_settlement_agrees_with_the_rule_to_the_cent_in_chunks_of_any_size(db: None) -> None:
    users = [member() for _ in range(4)]
    entries = st.lists(st.tuples(st.sampled_from(users), st.sampled_from(OUTCOMES), CENTS), max_size=7)

    @settings(max_examples=60, deadline=None)
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
        made = opened([(user, name, Decimal(cents) / 100) for user, name, cents in bets], fee_pct=fee_pct)
        fee, expected = by_the_rule(made, rule, weights, protect)
        resolve(made, rule=rule, weights=weights, policy=rules)  # type: ignore[arg-type]

        # when
        settle(made, policy=rules)

        # then
        run = Settlement.objects.get(market=made)
        assert dividends(made) == expected
        assert run.fee == Decimal(fee) / 100
        assert run.state == "SETTLED" and run.pool == run.fee + run.net
        assert journal.balance(journal.pool(made.pk)) == 0
        for user in users:
            won = sum(dividend for (who, _, _), dividend in zip(bets, expected, strict=True) if who == user)
            assert sum((amount for *_, amount in due(made, user)), Decimal(0)) == won

    holds()


def test_two_hundred_odd_stakes_share_the_left_over_cents_as_the_rule_does(db: None) -> None:
    # given: stakes whose remainders tie in many places, with ids in an order of their own
    users = [member() for _ in range(10)]
    made = market(OUTCOMES, "7.77")
    Bet.objects.bulk_create(
        Bet(
            market=made,
            user=users[number % 10],
            outcome=OUTCOMES[number % 2],
            amount=Decimal(1 + number * 37 % 50) / 100,
        )
        for number in range(240)
    )
    weights = {"A": Decimal("33.3"), "B": Decimal("66.7")}
    fee, expected = by_the_rule(made, "JOINT", weights, True)
    resolve(made, rule="JOINT", weights=weights)

    # when
    settle(made)

    # then
    assert dividends(made) == expected
    assert Settlement.objects.get().fee == Decimal(fee) / 100 == 0


# --- chunks and crashes ----------------------------------------------------------------------------------------------


def seven_bets(users: Sequence[CustomUser]) -> list[Staked]:
    first, second, third = users
    return [
        (first, "A", "0.01"),
        (second, "A", "1000000.07"),
        (third, "B", "33.33"),
        (first, "B", "66.67"),
        (third, "A", "0.01"),
        (second, "C", "5000.01"),
        (first, "A", "250.50"),
    ]


def settled_at_once(users: Sequence[CustomUser]) -> tuple[list[Decimal], list[Any], Decimal]:
    made = opened(seven_bets(users))
    resolve(made, rule="JOINT", weights={"A": "70", "B": "30"})
    settle(made)
    return dividends(made), due(made), Settlement.objects.get(market=made).fee


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_a_settlement_in_chunks_interrupted_after_each_gives_the_same_cents(db: None, chunk: int) -> None:
    # given
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    made = opened(seven_bets(users))
    resolve(made, rule="JOINT", weights={"A": "70", "B": "30"})
    rules = policy(settlement_chunk=chunk)

    # when: each call is allowed one step
    calls = 0
    while True:
        progress = settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=steps(1))
        calls += 1
        if progress.settled:
            break
        # then: nothing of it may leave before the last step
        assert progress == settling.Progress(found=True, settled=False)
        assert not claims.any_due(at=AT + timedelta(days=1), policy=policy()) or _due_of(made) == []
        assert settling.to_settle(limit=10) == [made.pk]
        made.refresh_from_db()
        assert made.status == "RESOLVED"

    assert (dividends(made), due(made), Settlement.objects.get(market=made).fee) == expected
    # Seven bets and a step that finds none left; then their members, who have three, two and two of them.
    assert calls == 7 // chunk + 1 + {1: 4, 2: 4, 3: 3, 6: 2}[chunk]
    assert _due_of(made) != []


def _due_of(of: Market) -> list[int]:
    tomorrow = AT + timedelta(days=1)
    payouts = list(Transaction.objects.filter(settlement__market=of).values_list("pk", flat=True))
    in_canary = canary.in_canary(at=tomorrow, policy=policy())
    return sorted(eligibility.may_leave(payouts, in_canary=in_canary, at=tomorrow))


def test_a_call_without_time_freezes_the_totals_and_stops(db: None) -> None:
    made = opened([(member(), "A", 5), (member(), "B", 7)])
    resolve(made, "A")
    progress = settling.settle(market_id=made.pk, at=AT, policy=policy(settlement_chunk=1), keep_going=lambda: False)
    run = Settlement.objects.get()
    assert progress == settling.Progress(found=True, settled=False)
    assert (run.state, run.pool, run.last_bet_id) == ("DIVIDING", 12, 0)
    assert set(Bet.objects.values_list("result", flat=True)) == {"PENDING"}
    assert settle(made).settled


def test_totals_are_frozen_under_the_rule_the_market_was_resolved_with(db: None) -> None:
    # given: frozen with the stakes protected and a fee of 5 %
    made = opened([(member(), "A", 100), (member(), "B", 1)])
    resolve(made, "A")
    one = policy(settlement_chunk=1)
    settling.settle(market_id=made.pk, at=AT, policy=one, keep_going=steps(1))

    # when: the operator changes both before it goes on
    Market.objects.filter(pk=made.pk).update(platform_fee_pct=50)
    settle(made, policy=policy(settlement_chunk=1, protect_stake=False))

    # then
    run = Settlement.objects.get()
    assert (run.fee, run.net, dividends(made)) == (1, 100, [100, 0])


@pytest.mark.parametrize("chunk", [20_000, 2])
def test_a_worker_that_dies_at_any_statement_leaves_books_that_the_next_one_completes(db: None, chunk: int) -> None:
    # given
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    rules = policy(settlement_chunk=chunk)

    for number in count(1):
        made = opened(seven_bets(users))
        resolve(made, rule="JOINT", weights={"A": "70", "B": "30"})

        # when: the worker dies at that statement, and another one settles
        with crashes.crash_at_statement(number) as sent:
            try:
                settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=lambda: True)
            except crashes.Crash:
                died = True
            else:
                died = False
        if died and Settlement.objects.get(market=made).state != "SETTLED":
            assert _due_of(made) == []
        settle(made, policy=rules)

        # then
        assert (dividends(made), due(made), Settlement.objects.get(market=made).fee) == expected
        assert journal.balance(journal.pool(made.pk)) == 0
        if not died:
            assert len(sent) == number - 1
            break


def test_a_keep_going_that_raises_loses_nothing(db: None) -> None:
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    made = opened(seven_bets(users))
    resolve(made, rule="JOINT", weights={"A": "70", "B": "30"})
    rules = policy(settlement_chunk=1)

    for allowed in (0, 1, 2, 3):
        left = iter([True] * allowed)
        with pytest.raises(StopIteration):
            settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=lambda left=left: next(left))
    settle(made, policy=rules)

    assert (dividends(made), due(made), Settlement.objects.get(market=made).fee) == expected


def test_the_first_payouts_to_send_are_named_and_whether_there_are_more(db: None) -> None:
    for winners, named, more in ((20, 20, False), (21, 20, True)):
        # The cents went to the wallets already: those transactions are not to be sent.
        made = opened([(member(), "A", "10.25") for _ in range(winners)])
        resolve(made, "A")
        progress = settle(made)
        by_mpesa = Transaction.objects.filter(settlement__market=made, destination="mpesa")
        ids = list(by_mpesa.order_by("pk").values_list("pk", flat=True))
        assert (progress.to_send, progress.more_to_send) == (tuple(ids[:named]), more)


# --- books that disagree ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [20_000, 1])
@pytest.mark.parametrize(("debit", "credit"), [("opening", "pool"), ("pool", "opening")])
def test_a_pool_that_was_tampered_with_settles_nothing(db: None, debit: str, credit: str, chunk: int) -> None:
    # given: a shilling too much, or too little, in the pool
    made, user = market(), member(balance=100)
    bet(made, user, "Yes", 100)
    orm_bet(made, member(), "No", 50)
    codes = {"opening": "opening", "pool": journal.pool(made.pk)}
    with transaction.atomic():
        journal.post([Entry("opening:tampered", codes[debit], codes[credit], Decimal(1))], at=AT)
    resolve(made, "Yes")

    # when, then
    with nothing_moved():
        for _ in range(2):
            with pytest.raises(settling.BooksDisagree, match=f"Market {made.pk}"):
                settle(made, policy=policy(settlement_chunk=chunk))
    assert settling.to_settle(limit=10) == [made.pk]


def test_a_pool_that_is_tampered_with_halfway_is_not_closed(db: None) -> None:
    # given
    made = opened([(member(), "A", 100), (member(), "B", 50)])
    resolve(made, "A")
    rules = policy(settlement_chunk=1)
    settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=steps(2))
    with transaction.atomic():
        journal.post([Entry("opening:tampered", "opening", journal.pool(made.pk), Decimal("0.01"))], at=AT)

    # when, then: all but the last step is booked, and nothing of it can be sent
    with pytest.raises(settling.BooksDisagree, match="0.01 would stay in its pool"):
        settle(made, policy=rules)
    before = money_snapshot()
    with pytest.raises(settling.BooksDisagree):
        settle(made, policy=rules)
    assert money_snapshot() == before
    assert _due_of(made) == []
    made.refresh_from_db()
    assert (made.status, Settlement.objects.get().state) == ("RESOLVED", "DIVIDING")


def test_one_market_that_cannot_be_settled_does_not_stop_the_others(db: None) -> None:
    # given: the oldest market's pool was tampered with
    bad, good = opened([(member(), "A", 100)]), opened([(member(), "A", 100)])
    with transaction.atomic():
        journal.post([Entry("opening:tampered", "opening", journal.pool(bad.pk), Decimal(1))], at=AT)
    resolve(bad, "A")
    resolve(good, "A")

    # when
    settlement_tasks.settle_resolved_markets()

    # then
    assert set(Market.objects.values_list("pk", "status")) == {(bad.pk, "RESOLVED"), (good.pk, "SETTLED")}


def test_in_production_a_bet_from_outside_is_an_error(db: None) -> None:
    # given: a bet whose stake is not in the books
    made = opened([(member(), "A", 100)])
    resolve(made, "A")
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL kasoko.production TO 'on'")

    # when, then
    with (
        nothing_moved(),
        pytest.raises(settling.BooksDisagree, match="its bets sum to 100.00, its pool account holds 0.00"),
    ):
        settle(made)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL kasoko.production TO 'off'")


# --- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [20_000, 1])
def test_workers_that_settle_one_market_at_once_settle_it_once(transactional_db: None, chunk: int) -> None:
    # given
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    made = opened(seven_bets(users))
    resolve(made, rule="JOINT", weights={"A": "70", "B": "30"})

    # when
    rules = policy(settlement_chunk=chunk)
    answers = at_once(*[lambda: settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=lambda: True)] * 3)

    # then: none was refused, and the money moved once
    assert {type(answer) for answer in answers} == {settling.Progress}
    assert any(answer.settled for answer in answers)
    assert (dividends(made), due(made), Settlement.objects.get(market=made).fee) == expected


def test_markets_with_the_same_winners_settle_at_once_without_a_deadlock(transactional_db: None) -> None:
    # given: the same members won on each market, their bets placed in different orders
    users = [member() for _ in range(8)]
    made = []
    for turn in range(4):
        order = users[turn:] + users[:turn]
        made.append(opened([(user, "A", "5.25") for user in (order if turn % 2 else order[::-1])]))
        resolve(made[-1], "A")

    # when
    answers = at_once(*[lambda one=one: settle(one).settled for one in made])

    # then
    assert answers == [True] * 4
    assert set(CustomUser.objects.values_list("balance", flat=True)) == {Decimal("21.00")}


def test_a_bet_cannot_slip_in_after_the_totals_are_frozen(transactional_db: None) -> None:
    made = opened([(member(), "A", 100), (member(), "B", 50)])
    resolve(made, "A")
    settling.settle(market_id=made.pk, at=AT, policy=policy(settlement_chunk=1), keep_going=lambda: False)
    late = member()
    (refused,) = at_once(lambda: orm_bet(made, late, "A", 1_000))
    assert isinstance(refused, IntegrityError)
    settle(made)
    assert dividends(made) == [Decimal("142.50"), 0]


# --- progress and cost -----------------------------------------------------------------------------------------------


def test_each_step_shows_in_the_progress(db: None) -> None:
    # given: seven bets of three members, of whom each wins something
    users = [member() for _ in range(3)]
    made = opened(seven_bets(users))
    assert status.settlement_progress(made.pk) == status.SettlementProgress(0, 0, 0)
    resolve(made, rule="JOINT", weights={"A": "70", "B": "30"})
    rules = policy(settlement_chunk=3)

    # when
    seen = []
    while not settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=steps(1)).settled:
        seen.append(status.settlement_progress(made.pk))
    seen.append(status.settlement_progress(made.pk))

    # then
    assert [(one.bets_done, one.members_done) for one in seen] == [(3, 0), (6, 0), (7, 0), (7, 1), (7, 3), (7, 3)]
    assert {one.bets_total for one in seen} == {7}
    found = status.settlement_status(made.pk)
    assert found is not None and found.progress == seen[-1]


def test_a_market_can_be_settled_from_the_command_line(db: None, queued: Queued) -> None:
    made = opened([(member(), "A", 100), (member(), "A", 200), (member(), "B", 50)])
    said = io.StringIO()
    with pytest.raises(CommandError, match="nothing to settle"):
        call_command("settle_market", made.pk)
    with pytest.raises(CommandError, match="no market 999999"):
        call_command("settle_market", 999_999)
    resolve(made, "A")

    call_command("settle_market", made.pk, stdout=said)

    made.refresh_from_db()
    assert made.status == "SETTLED"
    assert said.getvalue() == f"Market {made.pk}: 3 of 3 bets divided, 2 members booked.\n"
    assert [name for name, _, _ in queued()] == ["payments.settlement_tasks.send_due_payouts"]
    with pytest.raises(CommandError, match="nothing to settle"):
        call_command("settle_market", made.pk)


def test_writing_verdicts_and_balances_touches_no_index(transactional_db: None) -> None:
    # given: 600 bets that fill their pages, and wallets that exist
    users = [member(balance=1) for _ in range(60)]
    made = market(fee_pct="7.50")
    Bet.objects.bulk_create(
        Bet(user=users[number % 60], market=made, outcome="Yes" if number % 3 else "No", amount=Decimal("33.33"))
        for number in range(600)
    )
    resolve(made, "Yes")

    # when
    before = updates()
    settle(made, policy=policy(settlement_chunk=100))
    after = updates()

    # then: heap-only updates, each and every one; an index on result or payout, or full pages, would end that
    moved = {table: tuple(a - b for a, b in zip(after[table], before[table], strict=True)) for table in after}
    assert moved["markets_bet"] == (600, 600)
    assert moved["users_customuser"][0] > 0
    assert moved["users_customuser"][0] == moved["users_customuser"][1]


def updates() -> dict[str, tuple[int, int]]:
    """By table: rows updated so far, and those of them that no index heard of."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables")
        return {table: (updated, hot) for table, updated, hot in cursor.fetchall()}


def test_a_settlement_keeps_no_rows_in_python(db: None) -> None:
    # given: two markets, one with fifty times the bets
    small, large = market(), market()
    users = [member() for _ in range(10)]
    for made, bets in ((small, 20), (large, 1_000)):
        Bet.objects.bulk_create(
            Bet(user=users[number % 10], market=made, outcome="Yes", amount=Decimal(100)) for number in range(bets)
        )
        resolve(made, "Yes")

    # when: what Python allocates at most while each settles, in chunks
    peaks = []
    for made in (small, large):
        tracemalloc.start()
        settle(made, policy=policy(settlement_chunk=10 if made is small else 500))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # then: not by the bet
    assert peaks[1] < 1.5 * peaks[0] + 200_000


def test_the_members_of_five_thousand_bets_are_the_most_that_wait_for_one_commit(db: None) -> None:
    made = market()
    users = [member() for _ in range(3)]
    Bet.objects.bulk_create(
        Bet(user=users[number % 3], market=made, outcome="Yes", amount=Decimal(10)) for number in range(9)
    )
    resolve(made, "Yes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "BETS_WHOSE_WALLETS_WAIT", 3)
        rules = policy(settlement_chunk=8)
        seen = []
        while not settling.settle(market_id=made.pk, at=AT, policy=rules, keep_going=steps(1)).settled:
            seen.append(status.settlement_progress(made.pk).members_done)
    assert seen == [0, 0, 1, 2, 3]
