"""Guards of the undo: each test fails if its guard is taken away."""

import json
from decimal import Decimal

import pytest
from django.db import transaction

from markets.models import Market
from payments.ledger import journal
from payments.models import Attempt, Recovery, Settlement, Transaction
from payments.payouts.operations import actions
from payments.settlement import failures, undo
from testing import builders, settlement_steps
from testing.builders import actor, begin, member, nothing_moved, operator, orm_bet, policy, resolve, settle, transfers
from testing.payout_steps import (
    NO_CONNECTION,
    POLICY,
    READ_TIMEOUT,
    after,
    ask_and_answer,
    deliver_result,
    failed,
    resends,
    result_body,
    sent,
    states,
    status_body,
)
from users import proposals
from users.models import AuditEntry, CustomUser


def settled(winners: int = 2) -> tuple[Market, list[CustomUser]]:
    """Settle a market in which each winner gets 285 by M-Pesa and 0.24 in the wallet."""
    made = builders.market()
    users = [member() for _ in range(winners)]
    for user in users:
        orm_bet(made, user, "Yes", "100.25")
    for _ in users:
        orm_bet(made, member(), "No", 200)
    resolve(made, "Yes")
    settle(made)
    return made, users


def payout_of(user: CustomUser, of: Market) -> Transaction:
    return Transaction.objects.get(user=user, settlement__market=of, destination="mpesa")


def owed_back(user: CustomUser) -> Decimal:
    return journal.balance(journal.receivable(user.pk))


def balance(user: CustomUser) -> Decimal:
    return CustomUser.objects.get(pk=user.pk).balance


@pytest.mark.broken_books
def test_undo_stops_if_the_pool_does_not_hold_the_stakes(db: None) -> None:
    # given: a cent leaves the pool while the undo is under way
    made, _ = settled()
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=POLICY)
    lost = journal.Entry("opening:test", journal.pool(made.pk), journal.OPENING, Decimal("0.01"))
    with transaction.atomic():
        journal.post([lost], at=after(60))

    # when
    with pytest.raises(failures.BooksDisagree, match=r"would hold 600\.49, but the stakes are 600\.50"):
        undo.carry_out(market_id=made.pk, at=after(61), policy=POLICY, keep_going=lambda: True)

    # then
    made.refresh_from_db()
    settlement = Settlement.objects.get()
    assert (made.status, settlement.state) == ("SETTLED", "UNDOING")
    assert "would hold 600.49" in settlement.failure


def test_step_of_an_undo_is_refused_inside_a_transaction(db: None) -> None:
    """The next step begins only after a commit. Otherwise one transaction would hold the locks of all steps."""
    made, _ = settled()
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=POLICY)

    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        undo.carry_out(market_id=made.pk, at=after(61), policy=POLICY, keep_going=lambda: True)


@pytest.mark.parametrize(("chunk", "steps"), [(1, 9), (1_000, 3)])
def test_undo_counts_and_changes_only_its_own_market(db: None, chunk: int, steps: int) -> None:
    # given: another settled market with earlier members and bets, and one with later members and bets
    others = [settled(winners=3)[0]]
    made, _ = settled(winners=2)
    others.append(settled(winners=3)[0])
    assert undo.to_carry_out(10) == []
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=POLICY)
    assert undo.to_carry_out(10) == [made.pk]

    # when
    asked: list[int] = []
    rules = policy(settlement_chunk=chunk)
    undo.carry_out(market_id=made.pk, at=after(61), policy=rules, keep_going=lambda: asked.append(1) or len(asked) < 50)

    # then: a step for each chunk of members and of bets, one more to find the end of both, and the last step
    assert len(asked) == steps
    assert set(made.bets.values_list("result", flat=True)) == {"PENDING"}
    assert all(set(other.bets.values_list("result", flat=True)) == {"WON", "LOST"} for other in others)
    assert undo.to_carry_out(10) == []


def test_market_without_a_fee_is_undone_and_audited_as_closed(db: None) -> None:
    made, winner, loser = builders.market(fee_pct=0), member(), member()
    orm_bet(made, winner, "Yes", 100)
    orm_bet(made, loser, "No", 200)
    resolve(made, "Yes")
    settle(made)

    builders.undo(made, at=after(60))

    assert made.status == "CLOSED"
    entry = AuditEntry.objects.get(action="market.undo")
    before = json.loads(entry.before)
    assert (before["status"], before["outcome"], json.loads(entry.after)) == ("SETTLED", "Yes", {"status": "CLOSED"})


@pytest.mark.parametrize(("limit", "is_proposed"), [("600.49", True), ("600.50", False)])
def test_undo_of_a_pool_above_the_limit_is_proposed(db: None, limit: str, is_proposed: bool) -> None:
    made, _ = settled()
    rules = policy(approval_above=Decimal(limit))
    answer = undo.undo(market_id=made.pk, reason="Wrong.", by=actor(operator()), at=after(60), policy=rules)
    assert isinstance(answer, undo.Undoing) != is_proposed
    assert (Settlement.objects.get().stopped_at == after(60)) == is_proposed


def test_approval_of_an_undo_holds_for_these_figures_only(db: None) -> None:
    settled(), settled()
    first, second = Settlement.objects.order_by("pk")
    was = undo.hash_of(first)
    assert was not in (None, undo.hash_of(second))
    first.pool = Decimal("600.49")
    assert undo.hash_of(first) != was


@pytest.mark.parametrize(("limit", "is_proposed"), [("1079.99", True), ("1080", False)])
def test_late_stakes_count_for_the_limit_of_an_undo(db: None, limit: str, is_proposed: bool) -> None:
    # given: 150 shillings in the pool, and 930 that go back because the bets came late
    made = builders.market(fee_pct=0)
    for outcome, amount, at in (("Yes", 100, after(0)), ("No", 50, after(60)), ("Yes", 930, after(61))):
        orm_bet(made, member(), outcome, amount, at=at)
    resolve(made, effective_close_at=after(60), at=after(100))
    settle(made, at=after(100))

    # when
    rules = policy(approval_above=Decimal(limit))
    answer = undo.undo(market_id=made.pk, reason="Wrong.", by=actor(operator()), at=after(200), policy=rules)

    # then
    assert isinstance(answer, undo.Undoing) != is_proposed


@pytest.mark.parametrize("chunk", [1, 2])
def test_last_member_of_a_chunk_owes_nothing_for_an_unsent_request(db: None, chunk: int) -> None:
    # given: no request of any winner left us
    made, users = settled(winners=2)
    for second, user in enumerate(users):
        sent(payout_of(user, made), NO_CONNECTION, after(5 * second))

    # when
    builders.undo(made, at=after(60), policy=policy(settlement_chunk=chunk))

    # then
    assert [owed_back(user) for user in users] == [0, 0]
    assert [payout_of(user, made).status for user in users] == ["CANCELLED", "CANCELLED"]
    assert [balance(user) for user in users] == [0, 0]


def test_set_off_payout_takes_nothing_from_the_wallet(db: None) -> None:
    # given: the first request was paid after all and the second failed, so the payout was set off
    made, (winner, _) = settled()
    payout = payout_of(winner, made)
    first = failed(payout)
    actions.retry(transaction_id=payout.pk, by=actor(), at=after(30))
    second = sent(payout, READ_TIMEOUT, after(31))
    deliver_result(first, result_body(first), after(40))
    for at in (after(200), after(300)):
        ask_and_answer(second, status_body(second, "Failed"), at)
    assert states(payout, second) == ("COMPLETED", "FAILED")
    assert owed_back(winner) == 0
    builders.settled_market([(winner, "Yes", 500)], rule="VOID", at=after(50))
    assert balance(winner) == Decimal("500.24")

    # when
    builders.undo(made, at=after(60))

    # then: the wallet gives back its cents only. The member has the 285 on the phone and owes them
    assert balance(winner) == 500
    assert owed_back(winner) == 285


def test_two_wallet_parts_partly_spent_come_back_in_order(db: None) -> None:
    # given: 285 redirected to the wallet and 0.24 credited there, of which 200 are spent
    made, (winner, _) = settled()
    payout = payout_of(winner, made)
    failed(payout)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=actor(), at=after(2))
    builders.bet(builders.market(), winner, "Yes", 200)
    assert balance(winner) == Decimal("85.24")

    # when
    builders.undo(made, at=after(60))

    # then
    back = [amount for _, debit, _, amount in transfers(code="reverse") if debit == f"wallet:{winner.pk}"]
    assert sorted(back) in ([Decimal("85.24")], [Decimal("0.24"), Decimal("85.00")])
    assert balance(winner) == 0
    assert owed_back(winner) == 200
    assert Recovery.objects.get(user=winner).amount == 200


def test_undo_waits_for_a_debt_before_it_locks_wallets(transactional_db: None) -> None:
    # given: the first request was paid late, so the member has a debt from this settlement
    made, (winner, _) = settled()
    payout = payout_of(winner, made)
    first = failed(payout)
    actions.redirect_to_wallet(transaction_id=payout.pk, by=actor(), at=after(2))
    deliver_result(first, result_body(first), after(3))
    debt = Recovery.objects.get(user=winner)
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=POLICY)

    with transaction.atomic():
        # when: another worker holds the debt
        Recovery.objects.select_for_update(no_key=True).get(pk=debt.pk)
        carrying = begin(
            lambda: undo.carry_out(market_id=made.pk, at=after(61), policy=POLICY, keep_going=lambda: True)
        )
        builders.wait_until_one_waits()

        # then: no wallet is locked while the undo waits
        CustomUser.objects.select_for_update(no_key=True, nowait=True).get(pk=winner.pk)
    assert carrying.result(timeout=60)


def test_waiting_proposal_refuses_an_undo(db: None) -> None:
    # given: a proposal to undo waits for a second person
    made, _ = settled()
    proposed = undo.undo(
        market_id=made.pk, reason="Wrong.", by=actor(builders.operator()), at=after(60),
        policy=settlement_steps.TWO_PERSON_POLICY,
    )  # fmt: skip
    assert isinstance(proposed, proposals.Proposed)

    # when
    with nothing_moved(), pytest.raises(proposals.ProposalWaits):
        undo.undo(market_id=made.pk, reason="Again.", by=actor(), at=after(61), policy=POLICY)

    # then
    assert Settlement.objects.get().state == "SETTLED"


def test_stop_that_begins_during_a_resend_stops_the_resend(transactional_db: None) -> None:
    # given: M-Pesa does not know the request, so it is due to be sent again
    made, (winner, _) = settled()
    sent(payout_of(winner, made), READ_TIMEOUT)
    Attempt.objects.filter(transaction__user=winner).update(resend_at=after(30))

    with transaction.atomic():
        # when: a proposed undo stops the settlement after the sender has selected the request
        Settlement.objects.filter(market=made).update(stopped_at=after(35))
        resending = begin(lambda: resends(after(40)))
        builders.wait_until_one_waits()

    # then
    assert resending.result(timeout=60) == []
