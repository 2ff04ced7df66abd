"""Settling: each market is divided and booked once, and any interruption can be resumed."""

import tracemalloc
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count

import pytest
from django.db import IntegrityError, connection, transaction

from markets.models import Bet, Market
from payments import settlement_tasks
from payments.ledger import journal
from payments.ledger.journal import Entry
from payments.models import Settlement, Transaction, Transfer
from payments.payouts.sending import claims
from payments.settlement import failures, outside_bets, settling, status
from testing import builders, crashes, database
from testing.builders import (
    AT,
    bet,
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
from testing.settlement_steps import dividends, due, due_tomorrow, opened, settled_at_once, seven_bets, steps
from users.models import AuditEntry, CustomUser


def test_unresolved_market_is_not_settled(db: None, at: datetime) -> None:
    market = opened([(member(), "A", 100)])
    with nothing_moved():
        assert settle(market) == settling.Progress(found=False, settled=False)


def test_resolved_markets_wait_oldest_first(db: None) -> None:
    markets = [builders.market() for _ in range(4)]
    for one in (markets[2], markets[0], markets[3]):
        resolve(one)
    assert settling.to_settle(limit=10) == [markets[2].pk, markets[0].pk, markets[3].pk]
    assert settling.to_settle(limit=2) == [markets[2].pk, markets[0].pk]
    settle(markets[2])
    assert settling.to_settle(limit=10) == [markets[0].pk, markets[3].pk]


# --- the guide's example and its books -------------------------------------------------------------------------------


def test_guides_example_is_booked_to_the_cent(db: None, at: datetime) -> None:
    # given: part 4.1 of the guide, with bets made straight through the ORM
    user1, user2 = member(balance=1_000), member(balance=2_000)
    market = builders.market()
    bet1, bet2 = orm_bet(market, user1, "Yes", 100), orm_bet(market, user2, "No", 200)
    resolve(market, "Yes")
    earlier = Transfer.objects.count()

    # when
    progress = settle(market, at=at)

    # then
    settlement, paid = Settlement.objects.get(), Transaction.objects.get()
    assert transfers()[earlier:] == [
        (f"stake:{bet1.pk}", "opening", f"pool:{market.pk}", Decimal("100.00")),
        (f"stake:{bet2.pk}", "opening", f"pool:{market.pk}", Decimal("200.00")),
        (f"payout:{paid.pk}", f"pool:{market.pk}", "payable", Decimal("285.00")),
        (f"fee:{settlement.pk}", f"pool:{market.pk}", "fee_income", Decimal("15.00")),
    ]
    assert progress == settling.Progress(found=True, settled=True, to_send=(paid.pk,), more_to_send=False)
    assert (
        settlement.pool,
        settlement.winning_pool,
        settlement.fee,
        settlement.net,
        settlement.refund,
        settlement.bet_count,
    ) == (300, 100, 15, 285, False, 2)
    assert (settlement.state, settlement.settled_at, settlement.release_at, settlement.number) == ("SETTLED", at, at, 1)
    assert (market.status, market.settled_at, market.resolved_outcome) == ("SETTLED", at, "Yes")
    assert list(Bet.objects.order_by("pk").values_list("result", "payout")) == [("WON", 285), ("LOST", 0)]
    assert (paid.user, paid.type, paid.status, paid.destination, paid.amount) == (
        user1,
        "PAYOUT",
        "PENDING",
        "mpesa",
        285,
    )
    assert (paid.phone_number, paid.due_at, paid.tranche) == (user1.phone_number, at, 1)
    assert paid.external_ref.startswith(f"KASOKO-{market.pk}-{user1.pk}-")
    assert len(paid.external_ref.split("-")[3]) == 8
    assert journal.balance(journal.pool(market.pk)) == 0
    assert set(CustomUser.objects.values_list("balance", flat=True)) == {1_000, 2_000}


def test_log_has_the_guides_line(db: None, caplog: pytest.LogCaptureFixture) -> None:
    market = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    totals = "total_pool=300.00, winning_pool=100.00, platform_fee=15.00, net_pool=285.00, bets=2"
    assert f"Settling market {market.pk}: {totals}" in caplog.messages


def test_winning_bets_of_one_member_are_one_payout(db: None) -> None:
    user, loser = member(), member()
    market = settled_market([(user, "Yes", 100), (loser, "No", 200), (user, "Yes", 50), (user, "No", 30)], fee_pct=0)
    assert dividends(market) == [Decimal("253.33"), 0, Decimal("126.67"), 0]
    assert due(market) == [("mpesa", 1, "PENDING", Decimal(380))]


def test_wallet_stakes_and_outside_stakes_are_one_pool(db: None) -> None:
    # given
    market, by_service, by_orm = builders.market(fee_pct=10), member(balance=100), member()
    stake = bet(market, by_service, "Yes", "40.50")
    outside = orm_bet(market, by_orm, "No", "60.50")
    resolve(market, "Yes")

    # when
    settle(market)

    # then: each stake is booked once, from the wallet or from `opening`
    assert [(key, debit) for key, debit, _, _ in transfers(code="stake")] == [
        (f"stake:{stake.pk}", f"wallet:{by_service.pk}"),
        (f"stake:{outside.pk}", "opening"),
    ]
    assert due(market) == [("mpesa", 1, "PENDING", Decimal(90)), ("wallet", 1, "COMPLETED", Decimal("0.90"))]
    by_service.refresh_from_db()
    assert by_service.balance == Decimal("60.40")


def test_settling_again_moves_nothing(db: None) -> None:
    market = settled_market([(member(), "Yes", 100), (member(), "No", 200)])
    with nothing_moved():
        assert settle(market) == settling.Progress(found=False, settled=False)
        settlement_tasks.settle_market(market.pk)
        settlement_tasks.settle_resolved_markets()


def test_market_without_bets_settles_empty(db: None, at: datetime) -> None:
    market = settled_market([])
    settlement = Settlement.objects.get()
    assert (
        market.status,
        settlement.pool,
        settlement.fee,
        settlement.net,
        settlement.refund,
        settlement.bet_count,
    ) == ("SETTLED", 0, 0, 0, True, 0)
    assert (Transaction.objects.count(), Transfer.objects.count()) == (0, 0)


# --- chunks and crashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_settlement_interrupted_after_each_chunk_gives_the_same_cents(db: None, chunk: int) -> None:
    # given
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    market = opened(seven_bets(users))
    resolve(market, rule="JOINT", weights={"A": "70", "B": "30"})
    rules = policy(settlement_chunk=chunk)

    # when: each call is allowed one step
    calls = 0
    while True:
        progress = settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=steps(1))
        calls += 1
        if progress.settled:
            break
        # then: no payout may leave before the last step
        assert progress == settling.Progress(found=True, settled=False)
        assert not claims.any_due(at=AT + timedelta(days=1), policy=policy()) or due_tomorrow(market) == []
        assert settling.to_settle(limit=10) == [market.pk]
        market.refresh_from_db()
        assert market.status == "RESOLVED"

    assert (dividends(market), due(market), Settlement.objects.get(market=market).fee) == expected
    # Seven bets and a step that finds none left; then their members, who have three, two and two of them.
    assert calls == 7 // chunk + 1 + {1: 4, 2: 4, 3: 3, 6: 2}[chunk]
    assert due_tomorrow(market) != []


def test_settled_at_is_the_end_of_the_last_step(db: None) -> None:
    # given: every reading of the clock is a second later
    market = opened([(member(), "A", 5), (member(), "B", 7)])
    resolve(market, "A")
    seconds = count()

    # when
    progress = settling.settle(
        market_id=market.pk,
        at=AT,
        clock=lambda: AT + timedelta(seconds=next(seconds)),
        policy=policy(),
        keep_going=lambda: True,
    )

    # then: 0 s totals, 1 s members, 2 s end, 3 s payouts that may leave
    settlement = Settlement.objects.get()
    end = AT + timedelta(seconds=2)
    market.refresh_from_db()
    assert (settlement.settled_at, settlement.release_at, market.settled_at) == (end, end, end)
    assert Transaction.objects.values_list("created_at", flat=True).first() == AT + timedelta(seconds=1)
    assert len(progress.to_send) == Transaction.objects.filter(destination="mpesa").count()


def test_call_without_time_freezes_the_totals_and_stops(db: None) -> None:
    market = opened([(member(), "A", 5), (member(), "B", 7)])
    resolve(market, "A")
    progress = settling.settle(market_id=market.pk, at=AT, policy=policy(settlement_chunk=1), keep_going=lambda: False)
    settlement = Settlement.objects.get()
    assert progress == settling.Progress(found=True, settled=False)
    assert (settlement.state, settlement.pool, settlement.last_bet_id) == ("DIVIDING", 12, 0)
    assert set(Bet.objects.values_list("result", flat=True)) == {"PENDING"}
    assert settle(market).settled


def test_worker_goes_on_after_another_one_has_finished_the_settlement(db: None) -> None:
    market = opened([(member(), "A", 5), (member(), "B", 7)])
    resolve(market, "A")
    rules = policy(settlement_chunk=1)

    # when: between two steps of this worker, another one does all the rest
    progress = settling.settle(
        market_id=market.pk, at=AT, policy=rules, keep_going=lambda: settle(market, policy=rules).settled
    )

    # then
    assert progress.settled
    assert len(progress.to_send) == 1


@pytest.mark.parametrize("chunk", [1, 20_000])
def test_settlement_is_an_entry_of_the_machine(db: None, chunk: int) -> None:
    market = opened([(member(), "A", 100), (member(), "B", 1)])
    resolve(market, "A")
    settle(market, policy=policy(settlement_chunk=chunk))
    entry = AuditEntry.objects.get(action="market.settle")
    assert (entry.actor_id, entry.source, entry.subject) == (None, "machine", f"market:{market.pk}")
    assert '"paid":"100.00"' in entry.after
    assert '"fee":"1.00"' in entry.after


def test_frozen_totals_keep_the_fee_and_rule_of_the_resolve(db: None) -> None:
    # given: totals frozen with protected stakes and a fee of 5 %
    market = opened([(member(), "A", 100), (member(), "B", 1)])
    resolve(market, "A")
    one = policy(settlement_chunk=1)
    settling.settle(market_id=market.pk, at=AT, policy=one, keep_going=steps(1))

    # when: the operator changes a setting before the settlement goes on. PostgreSQL refuses a change of the fee
    with pytest.raises(IntegrityError, match="are not changed"), transaction.atomic():
        Market.objects.filter(pk=market.pk).update(platform_fee_pct=50)
    settle(market, policy=policy(settlement_chunk=1, protect_stake=False))

    # then
    settlement = Settlement.objects.get()
    assert (settlement.fee, settlement.net, dividends(market)) == (1, 100, [100, 0])


@pytest.mark.parametrize("chunk", [20_000, pytest.param(2, marks=pytest.mark.long)])
def test_next_worker_completes_after_a_crash_at_any_statement(db: None, chunk: int) -> None:
    # given
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    rules = policy(settlement_chunk=chunk)

    for number in count(1):
        market = opened(seven_bets(users))
        resolve(market, rule="JOINT", weights={"A": "70", "B": "30"})

        # when: the worker is killed at that statement, and another worker settles
        with crashes.crash_at_statement(number) as sent:
            try:
                settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=lambda: True)
            except crashes.Crash:
                died = True
            else:
                died = False
        if died and Settlement.objects.get(market=market).state != "SETTLED":
            assert due_tomorrow(market) == []
        settle(market, policy=rules)

        # then
        assert (dividends(market), due(market), Settlement.objects.get(market=market).fee) == expected
        assert journal.balance(journal.pool(market.pk)) == 0
        if not died:
            assert len(sent) == number - 1
            break


def test_keep_going_that_raises_loses_nothing(db: None) -> None:
    users = [member() for _ in range(3)]
    expected = settled_at_once(users)
    market = opened(seven_bets(users))
    resolve(market, rule="JOINT", weights={"A": "70", "B": "30"})
    rules = policy(settlement_chunk=1)

    for allowed in (0, 1, 2, 3):
        left = iter([True] * allowed)
        with pytest.raises(StopIteration):
            settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=lambda left=left: next(left))
    settle(market, policy=rules)

    assert (dividends(market), due(market), Settlement.objects.get(market=market).fee) == expected


def test_progress_names_the_first_twenty_payouts_to_send(db: None) -> None:
    for winners, named, more in ((20, 20, False), (21, 20, True)):
        # The cents went to wallets. These transactions are already completed and are not sent.
        market = opened([(member(), "A", "10.25") for _ in range(winners)])
        resolve(market, "A")
        progress = settle(market)
        by_mpesa = Transaction.objects.filter(settlement__market=market, destination="mpesa")
        ids = list(by_mpesa.order_by("pk").values_list("pk", flat=True))
        assert (progress.to_send, progress.more_to_send) == (tuple(ids[:named]), more)


# --- books that disagree ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [20_000, 1])
@pytest.mark.parametrize(("debit", "credit"), [("opening", "pool"), ("pool", "opening")])
def test_wrong_pool_balance_settles_nothing(db: None, debit: str, credit: str, chunk: int) -> None:
    # given: a shilling too much, or too little, in the pool
    market, user = builders.market(), member(balance=100)
    bet(market, user, "Yes", 100)
    orm_bet(market, member(), "No", 50)
    codes = {"opening": "opening", "pool": journal.pool(market.pk)}
    with transaction.atomic():
        journal.post([Entry("opening:tampered", codes[debit], codes[credit], Decimal(1))], at=AT)
    resolve(market, "Yes")

    # when, then
    with nothing_moved():
        for _ in range(2):
            with pytest.raises(failures.BooksDisagree, match=f"Market {market.pk}"):
                settle(market, policy=policy(settlement_chunk=chunk))
    assert settling.to_settle(limit=10) == [market.pk]


def test_pool_changed_halfway_is_not_closed(db: None) -> None:
    # given
    market = opened([(member(), "A", 100), (member(), "B", 50)])
    resolve(market, "A")
    rules = policy(settlement_chunk=1)
    settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=steps(2))
    with transaction.atomic():
        journal.post([Entry("opening:tampered", "opening", journal.pool(market.pk), Decimal("0.01"))], at=AT)

    # when, then: every step except the last is booked, and no payout can be sent
    with pytest.raises(failures.BooksDisagree, match=r"0\.01 would stay in its pool"):
        settle(market, policy=rules)
    before = money_snapshot()
    with pytest.raises(failures.BooksDisagree):
        settle(market, policy=rules)
    assert money_snapshot() == before
    assert due_tomorrow(market) == []
    market.refresh_from_db()
    assert (market.status, Settlement.objects.get().state) == ("RESOLVED", "DIVIDING")


@pytest.mark.broken_books
def test_payouts_that_differ_from_the_debt_are_not_booked(db: None) -> None:
    # given: after the first member is booked, a transaction of one shilling that the division did not make
    first = member()
    market = opened([(first, "A", 100), (member(), "A", 50)])
    resolve(market, "A")
    rules = policy(settlement_chunk=1)
    while not Settlement.objects.filter(last_user_id=first.pk).exists():
        settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=steps(1))
    Transaction.objects.create(
        user=first, settlement=Settlement.objects.get(), type="PAYOUT", status="COMPLETED", amount=1, tranche=9,
        destination="wallet", external_ref="KASOKO-1-1-00000000", phone_number=first.phone_number, due_at=AT,
    )  # fmt: skip

    # when
    with pytest.raises(failures.BooksDisagree, match=r"0\.00 would stay .* sum to 151\.00, but 150\.00 is owed"):
        settle(market, policy=rules)

    # then
    assert Settlement.objects.get().state == "DIVIDING"
    assert due_tomorrow(market) == []


def test_outside_bets_are_booked_once_over_several_chunks(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setattr(outside_bets, "BETS_PER_STATEMENT", 2)
    users = [member() for _ in range(5)]
    market = opened([(user, "A" if number % 2 else "B", 10 + number) for number, user in enumerate(users)])
    resolve(market, "A")

    # when
    settle(market)

    # then
    stakes = {key: amount for key, _, _, amount in transfers(code="stake")}
    assert stakes == {f"stake:{one.pk}": one.amount for one in Bet.objects.filter(market=market)}
    assert len(stakes) == 5
    assert journal.balance(journal.pool(market.pk)) == 0


def test_market_that_cannot_settle_does_not_stop_others(db: None) -> None:
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


def test_bet_from_outside_is_an_error_in_production(db: None) -> None:
    # given: a bet whose stake is not in the books
    market = opened([(member(), "A", 100)])
    resolve(market, "A")

    # when, then
    with (
        database.in_production(),
        nothing_moved(),
        pytest.raises(failures.BooksDisagree, match=r"its bets sum to 100\.00, its pool account holds 0\.00"),
    ):
        settle(market)


# --- cost ------------------------------------------------------------------------------------------------------------


def test_results_and_balances_are_written_without_index_updates(transactional_db: None) -> None:
    # given: 600 bets that fill their pages, and wallets that exist
    users = [member(balance=1) for _ in range(60)]
    market = builders.market(fee_pct="7.50")
    Bet.objects.bulk_create(
        Bet(user=users[number % 60], market=market, outcome="Yes" if number % 3 else "No", amount=Decimal("33.33"))
        for number in range(600)
    )
    resolve(market, "Yes")

    # when
    before = updates()
    settle(market, policy=policy(settlement_chunk=100))
    after = updates()

    # then: every update is heap-only. An index on result or payout, or full pages, would prevent this
    moved = {table: tuple(a - b for a, b in zip(after[table], before[table], strict=True)) for table in after}
    assert moved["markets_bet"] == (600, 600)
    assert moved["users_customuser"][0] > 0
    assert moved["users_customuser"][0] == moved["users_customuser"][1]


def updates() -> dict[str, tuple[int, int]]:
    """Return the number of updated rows and of heap-only updates (without index changes) so far, by table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables")
        return {table: (updated, hot) for table, updated, hot in cursor.fetchall()}


def test_memory_does_not_grow_with_the_bets(db: None) -> None:
    # given: two markets, of which one has fifty times as many bets
    small, large = builders.market(), builders.market()
    users = [member() for _ in range(10)]
    for market, bets in ((small, 20), (large, 1_000)):
        Bet.objects.bulk_create(
            Bet(user=users[number % 10], market=market, outcome="Yes", amount=Decimal(100)) for number in range(bets)
        )
        resolve(market, "Yes")

    # when: Python's peak memory is measured while each market settles in chunks
    peaks = []
    for market in (small, large):
        tracemalloc.start()
        settle(market, policy=policy(settlement_chunk=10 if market is small else 500))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # then: the peak does not grow in proportion to the bets
    assert peaks[1] < 1.5 * peaks[0] + 200_000


def test_one_commit_books_the_members_of_a_bounded_number_of_bets(db: None) -> None:
    market = builders.market()
    users = [member() for _ in range(3)]
    Bet.objects.bulk_create(
        Bet(user=users[number % 3], market=market, outcome="Yes", amount=Decimal(10)) for number in range(9)
    )
    resolve(market, "Yes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "BETS_PER_WALLET_LOCK", 3)
        rules = policy(settlement_chunk=8)
        seen = []
        while not settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=steps(1)).settled:
            seen.append(status.settlement_progress(market.pk).members_done)
    assert seen == [0, 0, 1, 2, 3]
