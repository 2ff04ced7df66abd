"""Journal: each transfer is booked once and never changed, and wallets equal their transfers."""

from datetime import datetime
from decimal import Decimal
from functools import partial

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django import DjangoAssertNumQueries

from payments.ledger import journal, trial_balance
from payments.ledger.journal import Entry
from payments.models import LedgerAccount, Transfer
from testing.builders import AT, at_once, bet, market, member, nothing_moved, payout, transfers
from testing.interleaving import before_statement
from users.models import CustomUser


def post(*entries: Entry) -> None:
    with transaction.atomic():
        journal.post(entries, at=AT)


def deposit(key: str, user: CustomUser, amount: str) -> Entry:
    return Entry(f"deposit:{key}", "mpesa_paybill", journal.wallet(user.pk), Decimal(amount))


def balances(*users: CustomUser) -> list[Decimal]:
    balance_of = dict(CustomUser.objects.values_list("pk", "balance"))
    return [balance_of[user.pk] for user in users]


# --- booking ---------------------------------------------------------------------------------------------------------


def test_transfer_moves_the_wallet_and_both_accounts(db: None, at: datetime) -> None:
    user = member()
    post(deposit("1", user, "250.75"))
    assert Transfer.objects.values_list("key", "debit__code", "credit__code", "amount", "code", "at").get() == (
        "deposit:1",
        "mpesa_paybill",
        f"wallet:{user.pk}",
        Decimal("250.75"),
        "deposit",
        at,
    )
    assert balances(user) == [Decimal("250.75")]
    assert journal.balance(journal.wallet(user.pk)) == Decimal("250.75")
    assert journal.balance("mpesa_paybill") == Decimal("250.75")


def test_trial_balance_has_equal_columns(db: None) -> None:
    open_market, user = market(), member(balance=100)
    bet(open_market, user, "Yes", "30.50")
    post(deposit("1", user, "20"), Entry("fee:1", journal.pool(open_market.pk), "fee_income", Decimal("0.50")))

    lines = {
        line.kind: (line.accounts, line.debits, line.credits, line.balance) for line in trial_balance.trial_balance()
    }

    assert lines == {
        "wallet": (1, Decimal("30.50"), Decimal("120.00"), Decimal("89.50")),
        "pool": (1, Decimal("0.50"), Decimal("30.50"), Decimal("30.00")),
        "fee_income": (1, Decimal("0.00"), Decimal("0.50"), Decimal("0.50")),
        "opening": (1, Decimal("100.00"), Decimal("0.00"), Decimal("-100.00")),
        "mpesa_paybill": (1, Decimal("20.00"), Decimal("0.00"), Decimal("20.00")),
    }
    assert [line.kind for line in trial_balance.trial_balance()] == list(lines)
    assert sum(line.debits for line in trial_balance.trial_balance()) == sum(
        line.credits for line in trial_balance.trial_balance()
    )


def test_books_without_transfers_have_an_empty_trial_balance(db: None) -> None:
    assert trial_balance.trial_balance() == []
    assert journal.balance("payable") == 0


def test_posting_of_nothing_asks_the_database_nothing(
    db: None, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(0):
        journal.post([], at=AT)


def test_repeated_opening_of_accounts_opens_each_once(db: None) -> None:
    open_market, user = market(), member()
    codes = [journal.wallet(user.pk), journal.pool(open_market.pk), journal.receivable(user.pk), "payable", "payable"]

    first = journal.open_accounts(codes)

    assert journal.open_accounts(reversed(codes)) == first
    assert set(first) == set(codes)
    assert set(LedgerAccount.objects.values_list("code", "kind", "user", "market")) == {
        (f"wallet:{user.pk}", "wallet", user.pk, None),
        (f"receivable:{user.pk}", "receivable", user.pk, None),
        (f"pool:{open_market.pk}", "pool", None, open_market.pk),
        ("payable", "payable", None, None),
    }


def test_posting_to_open_accounts_takes_one_statement(
    db: None, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    user = member()
    post(deposit("1", user, "5"))
    with django_assert_num_queries(1):
        journal.post([deposit("2", user, "5"), deposit("3", user, "5")], at=AT)
    assert balances(user) == [15]


def test_opening_of_existing_accounts_reads_only_those(
    db: None, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    journal.open_accounts(["payable", "in_flight", "opening"])
    with django_assert_num_queries(1):
        assert set(journal.open_accounts(["payable", "opening"])) == {"payable", "opening"}


def test_account_opened_by_another_worker_meanwhile_is_used(transactional_db: None) -> None:
    user = member()
    others = partial(journal.open_accounts, [journal.wallet(user.pk), "mpesa_paybill"])
    with before_statement('INSERT INTO "payments_ledgeraccount"', others):
        post(deposit("1", user, "5"))
    assert balances(user) == [5]


def test_account_without_its_owner_is_refused(db: None) -> None:
    for row in (
        {"code": "wallet:1", "kind": "wallet"},
        {"code": "payable", "kind": "payable", "user": member()},
        {"code": "pool:1", "kind": "pool"},
    ):
        with pytest.raises(IntegrityError, match="account_belongs_to_whom_its_kind_says"), transaction.atomic():
            LedgerAccount.objects.create(**row)


def test_repeated_key_books_nothing(db: None) -> None:
    user = member()
    post(deposit("1", user, "5"))
    with nothing_moved(), pytest.raises(IntegrityError, match="transfer_key_once"):
        post(deposit("2", user, "7"), deposit("1", user, "5"))
    with nothing_moved(), pytest.raises(IntegrityError, match="transfer_key_once"):
        post(deposit("3", user, "7"), deposit("3", user, "7"))


@pytest.mark.parametrize(
    ("entry", "broken"),
    [
        (Entry("x:1", "payable", "in_flight", Decimal("0.00")), "transfer_amount_is_positive"),
        (Entry("x:1", "payable", "in_flight", Decimal("-5")), "transfer_amount_is_positive"),
        (Entry("x:1", "payable", "payable", Decimal("5")), "transfer_between_two_accounts"),
    ],
)
def test_transfer_that_moves_no_money_is_refused(db: None, entry: Entry, broken: str) -> None:
    with nothing_moved(), pytest.raises(IntegrityError, match=broken):
        post(entry)


def test_transfer_below_zero_of_a_wallet_is_refused(db: None) -> None:
    user = member(balance="10.00")
    wallet = journal.wallet(user.pk)
    with nothing_moved(), pytest.raises(IntegrityError, match="wallet_is_never_negative"):
        post(Entry("withdrawal:1", wallet, "payable", Decimal("10.01")))
    post(Entry("withdrawal:1", wallet, "in_flight", Decimal("10.00")))
    post(Entry("undo:1", "in_flight", wallet, Decimal("10.00")))
    assert balances(user) == [10]


def test_wallet_may_pass_below_zero_within_one_posting(db: None) -> None:
    # given: one posting takes an amount out of an empty wallet and credits the wallet with the same amount
    user = member()
    wallet = journal.wallet(user.pk)
    post(
        Entry("paid:1", wallet, "mpesa_utility", Decimal(285)),
        Entry("won:1", "in_flight", wallet, Decimal(285)),
        Entry("send:1", "payable", "in_flight", Decimal(285)),
        Entry("payout:1", "opening", "payable", Decimal(285)),
    )
    assert balances(user) == [0]
    assert (journal.balance("in_flight"), journal.balance("mpesa_utility")) == (0, -285)


def test_posting_outside_a_transaction_is_refused(transactional_db: None) -> None:
    user = member()
    with nothing_moved(), pytest.raises(transaction.TransactionManagementError):
        journal.post([deposit("1", user, "5")], at=AT)


def test_rolled_back_posting_leaves_nothing(db: None) -> None:
    user = member()
    with nothing_moved(), pytest.raises(RuntimeError), transaction.atomic():  # noqa: PT012 - the block rolls back
        journal.post([deposit("1", user, "5")], at=AT)
        raise RuntimeError("the rest of the step failed")


def test_many_transfers_in_one_statement_move_each_wallet_once(db: None) -> None:
    # given
    users = [member(balance=10) for _ in range(20)]
    entries = [deposit(f"{user.pk}-{turn}", user, f"{turn}.25") for user in users for turn in range(1, 4)]
    entries += [Entry(f"x:{user.pk}", journal.wallet(user.pk), "opening", Decimal("0.75")) for user in users]
    with transaction.atomic():
        journal.open_accounts(code for entry in entries for code in (entry.debit, entry.credit))

    # when
    post(*entries)

    # then: 10 + 1.25 + 2.25 + 3.25 - 0.75
    assert balances(*users) == [Decimal("16.00")] * 20


def test_transfer_between_two_wallets_moves_both(db: None) -> None:
    first, second = member(balance=10), member()
    post(Entry("gift:1", journal.wallet(first.pk), journal.wallet(second.pk), Decimal("3.50")))
    assert balances(first, second) == [Decimal("6.50"), Decimal("3.50")]


def test_amount_owed_on_a_payout_follows_its_transfers(db: None) -> None:
    pending = payout(285)
    assert journal.owed(pending.pk) == 285
    post(Entry("send:1", "payable", "in_flight", Decimal(285), pending.pk))
    assert journal.owed(pending.pk) == 0
    post(Entry("return:1", "in_flight", "payable", Decimal(285), pending.pk))
    assert journal.owed(pending.pk) == 285
    assert journal.owed(999_999) == 0


def test_any_series_of_transfers_keeps_wallets_equal_to_their_sums(db: None) -> None:
    users = [member(balance=1_000) for _ in range(3)]
    codes = [*(journal.wallet(user.pk) for user in users), "opening", "mpesa_paybill"]
    moves = st.tuples(st.sampled_from(codes), st.sampled_from(codes), st.integers(-1, 60_000))
    numbers = iter(range(10**9))

    @settings(max_examples=40)
    @given(postings=st.lists(st.lists(moves, max_size=6), max_size=5))
    def holds(postings: list[list[tuple[str, str, int]]]) -> None:
        for posting in postings:
            before = {code: journal.balance(code) for code in codes}
            after = dict(before)
            for debit, credit, cents in posting:
                for code, sign in ((debit, -1), (credit, 1)):
                    grows_by_debit = code == "mpesa_paybill"
                    after[code] += (-sign if grows_by_debit else sign) * Decimal(cents) / 100
            legal = all(debit != credit and cents > 0 for debit, credit, cents in posting)
            legal = legal and all(after[journal.wallet(user.pk)] >= 0 for user in users)
            try:
                post(*(Entry(f"x:{next(numbers)}", d, c, Decimal(cents) / 100) for d, c, cents in posting))
            except IntegrityError:
                assert not legal
                after = before
            else:
                assert legal
            assert {code: journal.balance(code) for code in codes} == after
            assert balances(*users) == [after[journal.wallet(user.pk)] for user in users]

    holds()


# --- append-only -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE payments_transfer SET amount = amount + 1",
        "UPDATE payments_transfer SET key = 'x' WHERE false",
        "DELETE FROM payments_transfer",
        "DELETE FROM payments_transfer WHERE false",
        "TRUNCATE payments_transfer CASCADE",
        "UPDATE payments_ledgeraccount SET kind = 'opening'",
        "DELETE FROM payments_ledgeraccount",
        "TRUNCATE payments_ledgeraccount CASCADE",
    ],
)
@pytest.mark.usefixtures("as_owner")
def test_change_or_removal_of_booked_rows_is_refused(db: None, sql: str) -> None:
    member(balance=5)
    connection.check_constraints()  # PostgreSQL refuses TRUNCATE while deferred checks are pending.
    refused = pytest.raises(IntegrityError, match="not changed")
    with nothing_moved(), refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)


# --- many at once ----------------------------------------------------------------------------------------------------


def test_postings_in_opposite_orders_do_not_deadlock(transactional_db: None) -> None:
    # given: transfers to the same ten wallets in opposite orders
    users = [member(balance=100) for _ in range(10)]
    wallets = [journal.wallet(user.pk) for user in users]
    with transaction.atomic():
        journal.open_accounts([*wallets, "opening"])

    def move(name: str, order: list[str]) -> None:
        for turn in range(5):
            post(*(Entry(f"x:{name}-{turn}-{code}", code, "opening", Decimal(1)) for code in order))

    # when
    answers = at_once(
        lambda: move("a", wallets),
        lambda: move("b", wallets[::-1]),
        lambda: move("c", wallets[5:] + wallets[:5]),
        lambda: move("d", wallets[::2] + wallets[1::2]),
    )

    # then: each of the four threads took five shillings from every wallet
    assert answers == [None] * 4
    assert balances(*users) == [80] * 10


def test_key_posted_at_once_is_booked_once(transactional_db: None) -> None:
    user = member()
    answers = at_once(*[lambda: post(deposit("1", user, "5"))] * 4)
    assert sorted(type(answer).__name__ for answer in answers) == ["IntegrityError"] * 3 + ["NoneType"]
    assert balances(user) == [5]
    assert len(transfers()) == 1


def test_spending_at_once_never_exceeds_the_wallet(transactional_db: None) -> None:
    user = member(balance=10)
    wallet = journal.wallet(user.pk)
    spend = [lambda key=key: post(Entry(f"x:{key}", wallet, "opening", Decimal(4))) for key in range(4)]
    answers = at_once(*spend)
    assert sorted(type(answer).__name__ for answer in answers) == ["IntegrityError"] * 2 + ["NoneType"] * 2
    assert balances(user) == [2]
