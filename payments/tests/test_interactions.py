"""Interactions of payouts, settlement and ledger, for example of late payments with write-offs."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection

from payments.ledger import debt_decisions, journal
from payments.models import Attempt, Recovery, Settlement, Transaction
from payments.payouts.operations import actions
from payments.settlement import resolutions, undo
from testing import builders
from testing.builders import AT, actor
from testing.payout_steps import (
    POLICY,
    READ_TIMEOUT,
    THROTTLED,
    after,
    ask_and_answer,
    claims,
    deliver_result,
    failed,
    result_body,
    sent,
    status_body,
)
from users.audit import MACHINE


def retried() -> tuple[Transaction, Attempt]:
    """Create a payout of 285 that is pending again after M-Pesa refused its first request. Return both."""
    payout = builders.payout(285)
    first = failed(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(20))
    return payout, first


def test_payout_paid_by_an_earlier_request_is_not_released(db: None) -> None:
    # given: the second request is throttled and waits when a callback reports that the first one paid
    payout, first = retried()
    sent(payout, THROTTLED, after(30))
    deliver_result(first, result_body(first), after(35))
    payout.refresh_from_db()
    assert payout.status == "HELD"

    # when
    with pytest.raises(actions.NotToBeReleased, match="An earlier request"):
        actions.release(transaction_id=payout.pk, by=MACHINE, at=after(300))

    # then: the payout is not claimed, even if its row says PENDING
    assert claims(after(400)) == []
    Transaction.objects.filter(pk=payout.pk).update(status="PENDING", due_at=AT)
    assert claims(after(400)) == []
    assert claims(after(400), transaction_id=payout.pk) == []
    Transaction.objects.filter(pk=payout.pk).update(status="HELD")


def test_failed_second_request_settles_a_written_off_late_payment(db: None) -> None:
    # given
    payout, first = retried()
    second = sent(payout, READ_TIMEOUT, after(30))
    deliver_result(first, result_body(first), after(35))
    debt_decisions.write_off(recovery_id=Recovery.objects.get().pk, reason="Gone.", by=actor(), at=after(40))

    # when
    ask_and_answer(second, status_body(second, "Failed"), after(60))
    ask_and_answer(second, status_body(second, "Failed"), after(600))

    # then: the amount that we owe the member covers the write-off, and nobody owes anything
    payout.refresh_from_db()
    recovery = Recovery.objects.get()
    assert payout.status == "COMPLETED"
    assert (recovery.amount, recovery.recovered, recovery.written_off) == (285, 285, 0)
    for account in (journal.wallet(payout.user_id), journal.receivable(payout.user_id), "bad_debt", "in_flight"):
        assert journal.balance(account) == 0, account


def test_withdrawn_close_time_does_not_apply_to_a_later_resolution(db: None) -> None:
    # given: a resolution with a wrong close time, withdrawn
    market = builders.market()
    winner = builders.member()
    builders.orm_bet(market, winner, "Yes", 100, at=AT - timedelta(hours=1))
    builders.orm_bet(market, builders.member(), "No", 200, at=AT - timedelta(hours=5))
    builders.resolve(market, "Yes", at=AT, effective_close_at=AT - timedelta(hours=3))
    resolutions.withdraw(market_id=market.pk, reason="Wrong end.", by=actor(), at=after(5))

    # when
    builders.resolve(market, "Yes", at=after(10))
    builders.settle(market, at=after(11))

    # then
    won = market.bets.get(user=winner)
    assert (won.result, won.payout) == ("WON", Decimal("285.00"))


def test_dividend_of_billions_fills_all_tranches_and_the_wallet(
    db: None,
) -> None:
    # given: a session whose cached query plans were made for small tables with one payout
    builders.payout()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE payments_ledgeraccount, payments_transaction")
    builders.payout()

    # given: 8,200 million, of which 32,767 tranches of 250,000 take 8,191.75 million
    market = builders.market(fee_pct=0)
    winner = builders.member()
    builders.orm_bet(market, winner, "Yes", "8200000000.50")

    # when
    builders.resolve(market, "Yes")
    builders.settle(market)

    # then
    tranches = Transaction.objects.filter(settlement__market=market, destination="mpesa")
    assert (tranches.count(), {tranche.amount for tranche in tranches}) == (32_767, {Decimal(250_000)})
    winner.refresh_from_db()
    assert winner.balance == Decimal("8250000.50")


def test_claim_during_an_undo_sends_nothing(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # given: a claim that begins while the undo holds its lock and is about to write the audit trail
    canary = replace(POLICY, canary=(1, 3))
    market = builders.settled_market([(builders.member(), "Yes", 100), (builders.member(), "No", 200)], policy=canary)
    record, begun = undo.audit.record, []

    def late_record(**entry: Any) -> None:
        if entry["action"] == "market.undo":
            begun.append(builders.begin(lambda: claims(after(60), canary)))
            builders.wait_until_one_waits()
        record(**entry)

    monkeypatch.setattr(undo.audit, "record", late_record)

    # when
    undo.undo(market_id=market.pk, reason="Wrong.", by=actor(), at=after(60), policy=canary)

    # then
    assert begun[0].result(30) == []
    assert Settlement.objects.get().state == "UNDOING"
    assert Attempt.objects.count() == 0
