"""A division that finds its books wrong: its reason is recorded, and an operator can withdraw it."""

from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from markets.models import Bet, Market
from payments import own_affairs
from payments.ledger import journal
from payments.ledger.journal import Entry
from payments.models import Settlement, Transaction
from payments.settlement import failures, resolutions, settling, status, undo
from testing.builders import AT, actor, member, nothing_moved, operator, policy, resolve, settle
from testing.settlement_steps import opened, race, scratch, steps
from users.models import AuditEntry, CustomUser

pytestmark = pytest.mark.django_db

CHUNKED = policy(settlement_chunk=1)


def put_into_pool(market: Market, amount: str) -> None:
    with transaction.atomic():
        entry = Entry(f"opening:tampered:{amount}", "opening", journal.pool(market.pk), Decimal(amount))
        journal.post([entry], at=AT)


def failed_halfway() -> tuple[Market, list[CustomUser]]:
    """Return a market whose division stopped before its last step, because 0.01 too much is in the pool."""
    members = [member() for _ in range(3)]
    market = opened([(members[0], "A", "100.25"), (members[1], "A", 7), (members[2], "B", 50)])
    resolve(market, "A")
    settling.settle(market_id=market.pk, at=AT, policy=CHUNKED, keep_going=steps(2))
    put_into_pool(market, "0.01")
    with pytest.raises(failures.BooksDisagree):
        settle(market, policy=CHUNKED)
    return market, members


def withdraw(market: Market, by: CustomUser) -> resolutions.Withdrawn:
    return resolutions.withdraw(market_id=market.pk, reason="Its pool is wrong.", by=actor(by), at=AT)


def undo_all(market: Market) -> bool:
    return undo.carry_out(market_id=market.pk, at=AT, policy=CHUNKED, keep_going=lambda: True)


@pytest.mark.broken_books
@pytest.mark.parametrize("chunk", [1, 1_000])
def test_failed_settlement_keeps_its_reason(chunk: int) -> None:
    market = opened([(member(), "A", 100), (member(), "B", 50)])
    put_into_pool(market, "0.01")
    resolve(market, "A")
    with pytest.raises(failures.BooksDisagree) as error:
        settle(market, policy=policy(settlement_chunk=chunk))
    settlement = Settlement.objects.get()
    assert settlement.failure == str(error.value)
    assert settlement.state == "PENDING"


def test_reason_is_cleared_once_the_books_agree() -> None:
    market = opened([(member(), "A", 100), (member(), "B", 50)])
    put_into_pool(market, "0.01")
    resolve(market, "A")
    with pytest.raises(failures.BooksDisagree):
        settle(market)
    with transaction.atomic():
        journal.post([Entry("opening:mended", journal.pool(market.pk), "opening", Decimal("0.01"))], at=AT)
    assert settle(market).settled
    assert Settlement.objects.get().failure == ""


def test_failed_division_is_withdrawn_and_nothing_is_lost() -> None:
    # given: members have money in their wallets, and payouts wait
    market, members = failed_halfway()
    assert Settlement.objects.get().state == "DIVIDING"
    assert Transaction.objects.filter(destination="mpesa", status="PENDING").exists()
    boss = operator()

    # when
    withdrawn = withdraw(market, boss)

    # then: the payouts are cancelled, the wallets are as before, and the market is closed
    assert withdrawn.undoing
    assert undo_all(market)
    market.refresh_from_db()
    assert (market.status, market.resolved_outcome) == ("CLOSED", None)
    assert Settlement.objects.get().state == "UNDONE"
    assert set(Transaction.objects.filter(destination="mpesa").values_list("status", flat=True)) == {"CANCELLED"}
    assert [CustomUser.objects.get(pk=user.pk).balance for user in members] == [0, 0, 0]
    assert set(Bet.objects.values_list("result", "payout")) == {("PENDING", Decimal(0))}
    assert journal.balance(journal.pool(market.pk)) == Decimal("157.26")
    assert "market.withdraw" in AuditEntry.objects.values_list("action", flat=True)

    # when: an engineer mends the books
    with transaction.atomic():
        journal.post([Entry("opening:mended", journal.pool(market.pk), "opening", Decimal("0.01"))], at=AT)
    resolve(market, "B")

    # then
    assert settle(market).settled


@pytest.mark.broken_books
def test_failed_division_is_withdrawn_although_its_pool_is_wrong() -> None:
    market, _ = failed_halfway()
    withdraw(market, operator())
    assert undo_all(market)
    market.refresh_from_db()
    assert market.status == "CLOSED"
    assert journal.balance(journal.pool(market.pk)) == Decimal("157.26")
    assert "0.01 would stay" in Settlement.objects.get().failure


def test_division_without_a_fault_cannot_be_withdrawn() -> None:
    market = opened([(member(), "A", 100), (member(), "B", 50)])
    resolve(market, "A")
    settling.settle(market_id=market.pk, at=AT, policy=CHUNKED, keep_going=steps(2))
    boss = operator()
    with nothing_moved(), pytest.raises(resolutions.BeingSettled):
        withdraw(market, boss)
    settle(market, policy=CHUNKED)


@pytest.mark.broken_books
def test_no_worker_divides_a_withdrawn_division() -> None:
    market, _ = failed_halfway()
    withdraw(market, operator())
    assert not settle(market, policy=CHUNKED).found
    assert status.deciding_settlement(market.pk) is not None
    assert undo_all(market)
    assert status.deciding_settlement(market.pk) is None


# --- scratches that find the books wrong ------------------------------------------------------------------------------


@pytest.mark.broken_books
@pytest.mark.parametrize("chunk", [1, 20_000])
def test_failed_scratch_is_withdrawn_and_nothing_is_lost(chunk: int) -> None:
    # given: with small chunks a member has their stake back already
    rules = policy(settlement_chunk=chunk)
    market, users = race()
    scratch(market)
    settling.settle(market_id=market.pk, at=AT, policy=rules, keep_going=steps(7)) if chunk == 1 else None
    put_into_pool(market, "0.01")
    with pytest.raises(failures.BooksDisagree):
        settle(market, policy=rules)
    failed = Settlement.objects.get()
    assert failed.failure
    assert failed.state == ("DIVIDING" if chunk == 1 else "PENDING")
    assert (CustomUser.objects.get(pk=users[3].pk).balance == 1000) == (chunk == 1)

    # when
    withdrawn = withdraw(market, operator())
    assert (withdrawn.scratched, withdrawn.undoing) == ("C", chunk == 1)
    assert undo_all(market)

    # then: the outcome can win again, and the market goes on
    market.refresh_from_db()
    assert (market.status, market.running_outcomes) == ("OPEN", ("A", "B", "C"))
    assert [CustomUser.objects.get(pk=user.pk).balance for user in users] == [900, 950, 970, 980, 993]
    assert set(Bet.objects.values_list("result", "payout")) == {("PENDING", Decimal(0))}
    assert journal.balance(journal.pool(market.pk)) == Decimal("207.01")
    assert "market.withdraw_scratch" in AuditEntry.objects.values_list("action", flat=True)

    # when: an engineer mends the books, and the outcome is scratched again
    with transaction.atomic():
        journal.post([Entry("opening:mended", journal.pool(market.pk), "opening", Decimal("0.01"))], at=AT)
    scratch(market)
    assert settle(market, policy=rules).settled
    resolve(market, "B")
    assert settle(market, policy=rules).settled

    # then
    assert [CustomUser.objects.get(pk=user.pk).balance for user in users[3:]] == [1000, 1000]
    assert status.settlement_of(Bet.objects.get(user=users[3])) == Settlement.objects.get(
        state="SETTLED", scratched="C"
    )


@pytest.mark.broken_books
def test_resolution_behind_a_failed_scratch_is_withdrawn_first() -> None:
    market, _ = race()
    scratch(market)
    put_into_pool(market, "0.01")
    resolve(market, "A")
    with pytest.raises(failures.BooksDisagree):
        settle(market)
    boss = operator()
    assert withdraw(market, boss).scratched == ""
    assert Settlement.objects.get(rule="SCRATCH").state == "PENDING"
    assert withdraw(market, boss).scratched == "C"
    market.refresh_from_db()
    assert (market.status, market.running_outcomes) == ("CLOSED", ("A", "B", "C"))
    with nothing_moved(), pytest.raises(resolutions.NothingToWithdraw):
        withdraw(market, boss)


@pytest.mark.broken_books
def test_withdrawn_scratch_puts_back_only_its_own_outcome() -> None:
    # given: C was scratched before, and the refunds of B find the books wrong
    market, _ = race(("A", "B", "C", "D"))
    scratch(market)
    settle(market)
    scratch(market, "B")
    put_into_pool(market, "0.01")
    with pytest.raises(failures.BooksDisagree):
        settle(market)
    boss = operator()

    # when
    withdraw(market, boss)

    # then
    market.refresh_from_db()
    assert market.running_outcomes == ("A", "B", "D")
    withdrawn = Settlement.objects.get(scratched="B")
    assert (withdrawn.state, withdrawn.undone_by, withdrawn.undone_at) == ("WITHDRAWN", boss, AT)
    assert withdrawn.undone_reason == "Its pool is wrong."
    assert Settlement.objects.get(scratched="C").state == "SETTLED"


def test_member_with_a_stake_withdraws_no_failed_scratch() -> None:
    market, users = race()
    scratch(market)
    put_into_pool(market, "0.01")
    with pytest.raises(failures.BooksDisagree):
        settle(market)
    with nothing_moved(), pytest.raises(own_affairs.StakeInMarket):
        withdraw(market, users[0])
    with transaction.atomic():
        journal.post([Entry("opening:mended", journal.pool(market.pk), "opening", Decimal("0.01"))], at=AT)


def test_scratch_without_a_fault_cannot_be_withdrawn() -> None:
    market, _ = race()
    scratch(market)
    boss = operator()
    with nothing_moved(), pytest.raises(resolutions.NothingToWithdraw):
        withdraw(market, boss)
    settle(market)
    with nothing_moved(), pytest.raises(resolutions.NothingToWithdraw):
        withdraw(market, boss)


@pytest.mark.broken_books
def test_market_is_not_decided_while_a_scratch_is_taken_back() -> None:
    # given
    market, _ = race(("A", "B", "C", "D"))
    scratch(market)
    settling.settle(market_id=market.pk, at=AT, policy=CHUNKED, keep_going=steps(7))
    put_into_pool(market, "0.01")
    with pytest.raises(failures.BooksDisagree):
        settle(market, policy=CHUNKED)
    withdraw(market, operator())

    # then
    assert AuditEntry.objects.get(action="market.withdraw_scratch").after == '{"status":"OPEN"}'
    with nothing_moved(), pytest.raises(resolutions.BeingSettled):
        resolve(market, "A")
    scratch(market, "B")
    assert not settle(market, policy=CHUNKED).found
    with pytest.raises(IntegrityError, match="not put back"), transaction.atomic():
        market.outcomes.filter(name="C").update(scratched_at=None)
    assert undo_all(market)
