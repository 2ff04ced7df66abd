"""Undo: money that has not left comes back, and the rest becomes member debts, to the cent."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import count

import pytest
from django.db import transaction

from markets.models import Market
from payments import own_affairs
from payments.ledger import debt_decisions, journal, receivables, trial_balance
from payments.models import Attempt, Recovery, Settlement, Transaction
from payments.payouts.evidence import status_queries
from payments.payouts.operations import actions
from payments.payouts.sending import claims, responses
from payments.settlement import resolutions, settling, undo
from testing import builders
from testing.builders import AT, actor, member, nothing_moved, operator, orm_bet, policy, resolve, settle, transfers
from testing.crashes import Crash, crash_at_statement
from testing.payout_steps import (
    ADDRESSES,
    NO_CONNECTION,
    POLICY,
    READ_TIMEOUT,
    THROTTLED,
    after,
    answer,
    ask_and_answer,
    deliver_result,
    failed,
    not_found_body,
    result_body,
    sent,
    states,
    status_body,
)
from users.models import AuditEntry, CustomUser


def two_sides(
    winners: int = 2, losers: int = 2, *, fee_pct: int = 5
) -> tuple[Market, list[CustomUser], list[CustomUser]]:
    """Open a market with some stakes of 100.25 on Yes and some of 200 on No."""
    made = builders.market(fee_pct=fee_pct)
    yes, no = [member() for _ in range(winners)], [member() for _ in range(losers)]
    for user in yes:
        orm_bet(made, user, "Yes", "100.25")
    for user in no:
        orm_bet(made, user, "No", 200)
    return made, yes, no


def settled(
    winners: int = 2, losers: int = 2, *, fee_pct: int = 5
) -> tuple[Market, list[CustomUser], list[CustomUser]]:
    made, yes, no = two_sides(winners, losers, fee_pct=fee_pct)
    resolve(made, "Yes")
    settle(made)
    return made, yes, no


def payout_of(user: CustomUser, of: Market) -> Transaction:
    return Transaction.objects.filter(user=user, settlement__market=of, destination="mpesa").latest("pk")


def paid(payout: Transaction, at_second: int = 1, receipt: str = "") -> Attempt:
    attempt = sent(payout, at=after(at_second))
    deliver_result(attempt, result_body(attempt, receipt=receipt or f"R{payout.pk}"), after(at_second + 1))
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    return attempt


def owed_back(users: Sequence[CustomUser]) -> list[Decimal]:
    return [journal.balance(journal.receivable(user.pk)) for user in users]


def trial_difference() -> Decimal:
    return sum((line.debits - line.credits for line in trial_balance.trial_balance()), Decimal(0))


def staked(of: Market) -> Decimal:
    return sum(of.bets.values_list("amount", flat=True), Decimal(0))


# --- nothing has left ------------------------------------------------------------------------------------------------


def test_undo_before_anything_left_returns_everything_and_allows_a_resolve(db: None) -> None:
    # given
    made, yes, _ = settled()
    fees = journal.balance(journal.FEE_INCOME)

    # when
    builders.undo(made, by=operator())

    # then
    assert (made.status, made.resolved_outcome, made.resolved_at, made.settled_at) == ("CLOSED", None, None, None)
    assert Settlement.objects.get().state == "UNDONE"
    assert journal.balance(journal.pool(made.pk)) == staked(made) == Decimal("600.50")
    assert journal.balance(journal.PAYABLE) == 0
    assert journal.balance(journal.FEE_INCOME) == fees - Decimal("30.02")
    assert set(Transaction.objects.filter(destination="mpesa").values_list("status", flat=True)) == {"CANCELLED"}
    assert set(made.bets.values_list("result", "payout")) == {("PENDING", Decimal(0))}
    assert owed_back(yes) == [0, 0]
    assert not Recovery.objects.exists()
    assert [user.balance for user in CustomUser.objects.filter(pk__in=[one.pk for one in yes])] == [0, 0]
    assert AuditEntry.objects.filter(action="market.undo", subject=f"market:{made.pk}").count() == 1

    # when: the rightful winners
    resolve(made, "No")
    settle(made)

    # then
    assert journal.balance(journal.pool(made.pk)) == 0
    assert Settlement.objects.order_by("number").values_list("number", "state")[1] == (2, "SETTLED")


def test_only_a_settled_market_can_be_undone(db: None) -> None:
    # given
    is_open, resolved, void = (
        builders.market(),
        builders.market(),
        builders.settled_market([(member(), "Yes", 5)], rule="VOID"),
    )
    resolve(resolved)

    # then
    for made in (is_open, resolved, void):
        with nothing_moved(), pytest.raises(undo.NotUndoable):
            builders.undo(made)


@pytest.mark.parametrize("chunk", [1, 2, 20_000])
def test_undo_resumes_where_it_stopped_in_any_chunks(db: None, chunk: int) -> None:
    # given
    made, yes, _ = settled(winners=5)
    paid(payout_of(yes[1], made))
    small = policy(settlement_chunk=chunk)

    # when: the undo begins, and is carried out a step at a time
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=small)
    steps = 1
    while not undo.carry_out(market_id=made.pk, at=after(60), policy=small, keep_going=lambda: False):
        steps += 1
        assert steps < 50

    # then
    made.refresh_from_db()
    assert made.status == "CLOSED"
    assert steps >= (13 if chunk == 1 else 3)
    assert journal.balance(journal.pool(made.pk)) == staked(made)
    assert undo.carry_out(market_id=made.pk, at=after(60), policy=small, keep_going=lambda: False)


@pytest.mark.parametrize("chunk", [2, 20_000])
def test_next_worker_completes_an_undo_after_a_crash_at_any_statement(db: None, chunk: int) -> None:
    # given: three winners with cents in their wallets. One payout is paid, one in doubt, one not sent
    rules = policy(settlement_chunk=chunk)
    made, users, _ = settled(winners=3)
    paid(payout_of(users[0], made))
    sent(payout_of(users[1], made), READ_TIMEOUT)
    carried = [payout_of(user, made).amount for user in users[:2]]
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=rules)
    carry_out = partial(undo.carry_out, market_id=made.pk, policy=rules, keep_going=lambda: True)

    for number in count(1):
        block = transaction.atomic()
        block._from_testcase = True  # Services whose transactions are durable may run inside this one.
        with block:
            # when: the worker is killed at that statement, and another worker goes on
            died = False
            with crash_at_statement(number), suppress(Crash):
                died = True
                carry_out(at=after(61))
                died = False
            assert carry_out(at=after(62))

            # then
            made.refresh_from_db()
            assert made.status == "CLOSED"
            assert journal.balance(journal.pool(made.pk)) == staked(made)
            assert owed_back(users) == [*carried, 0]
            if not died:
                break
            transaction.set_rollback(True)


def test_nothing_is_sent_after_an_undo_began(db: None) -> None:
    # given
    made, _, _ = settled()
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=AT, policy=POLICY)

    # then
    assert not claims.any_due(at=after(60), policy=POLICY)
    assert claims.claim(at=after(60), policy=POLICY, addresses=ADDRESSES, limit=10) == []
    undo.carry_out(market_id=made.pk, at=after(60), policy=POLICY, keep_going=lambda: True)


# --- it has left, or may have ----------------------------------------------------------------------------------------


def test_paid_payouts_and_spent_wallet_parts_become_member_debts(db: None) -> None:
    # given: each winner got 285 by M-Pesa and the cents in the wallet. One winner has spent the cents
    made, (rich, poor), _ = settled()
    cents = payout_of(rich, made)
    for user in (rich, poor):
        paid(payout_of(user, made))
    before = {user.pk: CustomUser.objects.get(pk=user.pk).balance for user in (rich, poor)}
    assert cents.amount == 285
    assert set(before.values()) == {Decimal("0.24")}
    builders.bet(builders.market(), poor, "Yes", "0.20")

    # when
    builders.undo(made, at=after(60))

    # then
    assert owed_back([rich, poor]) == [Decimal("285.00"), Decimal("285.20")]
    assert list(Recovery.objects.order_by("pk").values_list("amount", "recovered", "written_off", "decision")) == [
        (Decimal("285.00"), 0, 0, "OPEN"),
        (Decimal("285.20"), 0, 0, "OPEN"),
    ]
    assert [CustomUser.objects.get(pk=user.pk).balance for user in (rich, poor)] == [0, 0]
    assert [amount for *_, amount in transfers(code="reverse")][:2] == [Decimal("0.24"), Decimal("0.04")]
    assert trial_difference() == 0


def test_request_in_doubt_becomes_a_debt_and_completes_if_paid(db: None) -> None:
    # given
    made, (winner, _), _ = settled()
    payout = payout_of(winner, made)
    attempt = sent(payout, READ_TIMEOUT)

    # when
    builders.undo(made, at=after(60))

    # then
    assert states(payout, attempt) == ("PROCESSING", "IN_DOUBT")
    assert owed_back([winner]) == [285]

    # when
    deliver_result(attempt, result_body(attempt), after(120))

    # then
    assert states(payout, attempt) == ("COMPLETED", "PAID")
    assert owed_back([winner]) == [285]


def failing(*attempts: Attempt) -> None:
    """Answer two status queries with Failed, at two different times."""
    for at in (after(200), after(300)):
        asked = status_queries.ask(at=at, policy=POLICY, addresses=ADDRESSES, limit=100)
        for question, attempt in zip(asked, attempts, strict=True):
            answer(question, status_body(attempt, "Failed"), at + timedelta(seconds=1))


def test_request_proven_not_paid_cancels_its_debt(db: None) -> None:
    # given
    made, (winner, _), _ = settled()
    payout = payout_of(winner, made)
    attempt = sent(payout, READ_TIMEOUT)
    builders.undo(made, at=after(60))

    # when
    failing(attempt)

    # then
    assert states(payout, attempt) == ("CANCELLED", "FAILED")
    assert owed_back([winner]) == [0]
    assert list(Recovery.objects.values_list("amount", "recovered", "written_off")) == [(0, 0, 0)]
    assert journal.balance(journal.PAYABLE) == journal.balance(journal.IN_FLIGHT) == 0

    # when: a message reports that the request was paid after all
    deliver_result(attempt, result_body(attempt), after(400))

    # then
    attempt.refresh_from_db()
    assert attempt.state == "PAID"
    assert owed_back([winner]) == [285]
    assert Recovery.objects.get().outstanding == 285


def test_cancelled_debt_reverses_its_write_off_and_its_repayment(db: None) -> None:
    # given: two requests in doubt. One debt is written off, and a later dividend pays a part of the other debt
    made, (first, second), _ = settled()
    attempts = [sent(payout_of(user, made), READ_TIMEOUT) for user in (first, second)]
    builders.undo(made, at=after(60))
    one, other = Recovery.objects.order_by("user_id")
    debt_decisions.write_off(recovery_id=one.pk, reason="Gone abroad.", by=actor(), at=after(61))
    debt_decisions.decide_set_off(recovery_id=other.pk, pct=50, by=actor(), at=after(61))
    builders.settled_market([(second, "Yes", 100)], fee_pct=0, at=after(70))
    assert owed_back([first, second]) == [0, 235]
    assert journal.balance(journal.BAD_DEBT) == 285

    # when
    failing(*attempts)

    # then: nobody owes anything, and the amount that the second member had paid back is in the wallet
    assert owed_back([first, second]) == [0, 0]
    assert journal.balance(journal.BAD_DEBT) == 0
    assert CustomUser.objects.get(pk=second.pk).balance == 50
    assert set(Recovery.objects.values_list("amount", "recovered", "written_off")) == {(0, 0, 0)}


def test_request_that_never_left_is_not_sent_after_an_undo(db: None) -> None:
    # given: a request that did not reach M-Pesa, and a throttled request that may have reached M-Pesa
    made, (never, perhaps), _ = settled()
    waiting, throttled = payout_of(never, made), payout_of(perhaps, made)
    attempts = [sent(waiting, NO_CONNECTION), sent(throttled, THROTTLED, after(2))]

    # when
    builders.undo(made, at=after(60))

    # then
    assert states(waiting, attempts[0]) == ("CANCELLED", "FAILED")
    assert states(throttled, attempts[1]) == ("PROCESSING", "IN_DOUBT")
    assert owed_back([never, perhaps]) == [0, 285]
    assert not claims.any_due(at=after(10_000), policy=POLICY)


def test_claim_not_sent_before_the_undo_is_cancelled_by_its_answer(db: None) -> None:
    # given: a claimed payout whose POST is in progress
    made, (winner, _), _ = settled()
    payout = payout_of(winner, made)
    (claim,) = claims.claim(at=AT, policy=POLICY, addresses=ADDRESSES, limit=1, transaction_id=payout.pk)
    builders.undo(made, at=after(1))
    assert owed_back([winner]) == [285]

    # when
    responses.record(claim, NO_CONNECTION, at=after(2), policy=POLICY)

    # then
    assert states(payout, Attempt.objects.get()) == ("CANCELLED", "FAILED")
    assert owed_back([winner]) == [0]


def test_request_in_doubt_is_not_sent_again_after_an_undo(db: None) -> None:
    # given: M-Pesa does not know the request, so it would be sent again with the same id
    made, (winner, _), _ = settled()
    attempt = sent(payout_of(winner, made), READ_TIMEOUT)
    Attempt.objects.update(resend_at=after(30))
    assert claims.any_due(at=after(40), policy=POLICY)

    # when
    builders.undo(made, at=after(40))

    # then
    assert not claims.any_due(at=after(41), policy=POLICY)
    assert claims.claim_resends(at=after(41), policy=POLICY, addresses=ADDRESSES, limit=10) == []
    attempt.refresh_from_db()
    assert (attempt.state, attempt.resend_at) == ("IN_DOUBT", None)


def test_not_found_after_an_undo_promises_no_resend(db: None) -> None:
    made, (winner, _), _ = settled()
    attempt = sent(payout_of(winner, made), READ_TIMEOUT)
    builders.undo(made, at=after(10))
    outcome = ask_and_answer(attempt, not_found_body(), after(20))
    attempt.refresh_from_db()
    assert (outcome, attempt.resend_at) == ("not found, and not sent again: its settlement is undone", None)


def test_failed_held_and_redirected_payouts_come_back(db: None) -> None:
    # given
    made, users, _ = settled(winners=3)
    lost, turned, _ = [payout_of(user, made) for user in users]
    failed(lost)
    failed(turned, after(1))
    actions.redirect_to_wallet(transaction_id=turned.pk, by=actor(), at=after(2))

    # when
    builders.undo(made, at=after(60))

    # then
    assert owed_back(users) == [0, 0, 0]
    assert set(CustomUser.objects.filter(pk__in=[user.pk for user in users]).values_list("balance", flat=True)) == {0}
    lost.refresh_from_db()
    assert lost.status == "CANCELLED"
    with nothing_moved(), pytest.raises(actions.PayoutNotRetryable):
        actions.retry(transaction_id=lost.pk, by=actor(), at=after(61))


# --- twice in a row --------------------------------------------------------------------------------------------------


def test_two_undos_with_half_paid_each_time_keep_the_books_in_balance(db: None) -> None:
    # given: four members on each side. Half of the payouts on Yes are paid before the error is noticed
    made, yes, no = settled(winners=4, losers=4, fee_pct=0)
    for user in yes[:2]:
        paid(payout_of(user, made))
    builders.undo(made, at=after(60))
    assert owed_back(yes) == [300, 300, 0, 0]

    # when: No is declared, half of its payouts are paid, and No was wrong too
    resolve(made, "No", at=after(70))
    settle(made, at=after(70))
    for user in no[:2]:
        paid(payout_of(user, made), 71)
    builders.undo(made, at=after(100))

    # and when: Yes was right after all, and all its payouts are paid
    resolve(made, "Yes", at=after(110))
    settle(made, at=after(110))
    for user in yes:
        paid(payout_of(user, made), 120, receipt=f"L{user.pk}")

    # then: the pool is empty, members owe exactly the wrongly paid amounts, and the rightful winners are paid once
    assert journal.balance(journal.pool(made.pk)) == 0
    assert owed_back(yes) == [300, 300, 0, 0]
    assert owed_back(no) == [300, 300, 0, 0]
    last = Settlement.objects.get(market=made, state="SETTLED")
    assert [Transaction.objects.get(settlement=last, user=user, destination="mpesa").status for user in yes] == [
        "COMPLETED"
    ] * 4
    assert journal.balance(journal.PAYABLE) == journal.balance(journal.IN_FLIGHT) == 0
    assert trial_difference() == 0
    ((cost,), _) = receivables.undo_costs()
    assert (cost.market_id, cost.undone, cost.wrongly_paid, cost.charges) == (made.pk, 2, 1200, 20)


# --- member debts ----------------------------------------------------------------------------------------------------


def indebted() -> CustomUser:
    """Return a member who owes 285 after an undo."""
    made, (winner, _), _ = settled()
    paid(payout_of(winner, made))
    builders.undo(made, at=after(60))
    assert owed_back([winner]) == [285]
    return winner


def test_set_off_keeps_its_percentage_of_dividends_until_the_debt_is_paid(db: None) -> None:
    # given
    debtor, other = indebted(), member()
    recovery = Recovery.objects.get()
    debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=30, by=actor(operator()), at=after(61))

    # when: a dividend of 500.55, of which 30 % is 150.165
    made = builders.settled_market([(debtor, "Yes", "500.55"), (other, "Yes", 100)], fee_pct=0, at=after(70))

    # then: 350 goes by M-Pesa and 150.55 to the wallet, of which 150.16 pays the debt
    due = Transaction.objects.filter(settlement__market=made, user=debtor).order_by("destination")
    assert list(due.values_list("destination", "amount")) == [("mpesa", 350), ("wallet", Decimal("150.55"))]
    assert owed_back([debtor]) == [Decimal("134.84")]
    assert CustomUser.objects.get(pk=debtor.pk).balance == Decimal("0.39")
    recovery.refresh_from_db()
    assert (recovery.recovered, recovery.outstanding) == (Decimal("150.16"), Decimal("134.84"))

    # when
    builders.settled_market([(debtor, "Yes", 1000)], fee_pct=0, at=after(80))

    # then: no more than the amount owed is set off
    assert owed_back([debtor]) == [0]
    recovery.refresh_from_db()
    assert (recovery.recovered, recovery.outstanding) == (285, 0)

    # when
    made = builders.settled_market([(debtor, "Yes", 1000)], fee_pct=0, at=after(90))

    # then
    assert list(Transaction.objects.filter(settlement__market=made).values_list("amount", flat=True)) == [1000]


def test_refunds_are_not_set_off(db: None) -> None:
    debtor = indebted()
    debt_decisions.decide_set_off(recovery_id=Recovery.objects.get().pk, pct=100, by=actor(), at=after(61))

    builders.settled_market([(debtor, "Yes", 100)], rule="VOID", at=after(70))

    assert owed_back([debtor]) == [285]
    assert CustomUser.objects.get(pk=debtor.pk).balance == 100


def test_write_off_is_a_loss_of_the_operator(db: None) -> None:
    debtor = indebted()
    recovery = Recovery.objects.get()

    debt_decisions.write_off(
        market_id=recovery.settlement.market_id, reason="Too small.", by=actor(operator()), at=after(61)
    )

    assert owed_back([debtor]) == [0]
    assert journal.balance(journal.BAD_DEBT) == 285
    with nothing_moved(), pytest.raises(debt_decisions.NothingOwed):
        debt_decisions.write_off(recovery_id=recovery.pk, reason="Again.", by=actor(), at=after(62))
    with nothing_moved(), pytest.raises(debt_decisions.RecoveryNotFound):
        debt_decisions.write_off(recovery_id=recovery.pk + 1, reason="None.", by=actor(), at=after(62))


def test_member_may_not_decide_about_own_debt(db: None) -> None:
    debtor = indebted()
    recovery = Recovery.objects.get()

    with nothing_moved(), pytest.raises(own_affairs.OwnDebt):
        debt_decisions.write_off(recovery_id=recovery.pk, reason="Mine.", by=actor(debtor), at=after(61))
    with nothing_moved(), pytest.raises(own_affairs.OwnDebt):
        debt_decisions.decide_set_off(recovery_id=recovery.pk, pct=1, by=actor(debtor), at=after(61))


# --- held ------------------------------------------------------------------------------------------------------------

HOLD = policy(holds=((Decimal(0), timedelta(minutes=30)),))


def test_held_payouts_leave_after_the_hold_ends(db: None) -> None:
    made, _, _ = two_sides()
    resolve(made, policy=HOLD)

    progress = settle(made, policy=HOLD)

    assert progress == settling.Progress(found=True, settled=True)
    assert not claims.any_due(at=after(1799), policy=HOLD)
    assert claims.any_due(at=after(1800), policy=HOLD)


def test_hold_may_depend_on_the_pool(db: None) -> None:
    rules = policy(holds=((Decimal(0), timedelta(0)), (Decimal(600), timedelta(minutes=5))))
    assert [rules.hold_for(Decimal(pool)) for pool in ("599.99", "600", "6000")] == [
        timedelta(0),
        timedelta(minutes=5),
        timedelta(minutes=5),
    ]


def test_resolution_can_be_withdrawn_until_its_hold_ends(db: None) -> None:
    # given
    made, _, _ = two_sides()
    resolve(made, "Yes")

    # when: the pool is not divided yet
    withdrawn = resolutions.withdraw(market_id=made.pk, reason="Typed wrong.", by=actor(), at=AT)

    # then
    made.refresh_from_db()
    assert not withdrawn.undoing
    assert (made.status, made.resolved_outcome) == ("CLOSED", None)
    assert Settlement.objects.get().state == "WITHDRAWN"
    with nothing_moved(), pytest.raises(resolutions.NothingToWithdraw):
        resolutions.withdraw(market_id=made.pk, reason="Again.", by=actor(), at=AT)

    # when: the market is settled and its payouts are held
    resolve(made, "Yes", policy=HOLD)
    settle(made, policy=HOLD)
    withdrawn = resolutions.withdraw(market_id=made.pk, reason="Wrong.", by=actor(), at=after(1799))
    assert withdrawn.undoing
    undo.carry_out(market_id=made.pk, at=after(1799), policy=HOLD, keep_going=lambda: True)

    # then
    made.refresh_from_db()
    assert made.status == "CLOSED"
    assert journal.balance(journal.pool(made.pk)) == staked(made)

    # when: the payouts are released
    resolve(made, "No", policy=HOLD)
    settle(made, policy=HOLD)

    # then
    with nothing_moved(), pytest.raises(resolutions.AlreadyReleased):
        resolutions.withdraw(market_id=made.pk, reason="Late.", by=actor(), at=after(1800))


def test_withdrawal_during_a_division_is_refused(db: None) -> None:
    made, _, _ = two_sides()
    resolve(made)
    Settlement.objects.update(state="DIVIDING", pool=0, fee=0, net=0, bet_count=0, refund=True)

    with nothing_moved(), pytest.raises(resolutions.BeingSettled):
        resolutions.withdraw(market_id=made.pk, reason="Wrong.", by=actor(), at=AT)
