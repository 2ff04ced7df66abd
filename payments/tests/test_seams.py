"""Where one part's work meets another's: late payments and releases, withdrawals and close times, debts and proofs."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection

from payments.ledger import journal, receivables
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
    ask_and_hear,
    claims,
    failed,
    hear,
    result_body,
    sent,
    status_body,
)
from users.audit import MACHINE


def retried() -> tuple[Transaction, Attempt]:
    """A payout of 285 whose first request was refused, put back to be sent."""
    payout = builders.payout(285)
    first = failed(payout)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(20))
    return payout, first


def test_what_an_earlier_request_paid_is_not_released_to_be_paid_again(db: None) -> None:
    # given: the second request waits, throttled, when the first turns out to be paid
    payout, first = retried()
    sent(payout, THROTTLED, after(30))
    hear(first, result_body(first), after(35))
    payout.refresh_from_db()
    assert payout.status == "HELD"

    # when
    with pytest.raises(actions.NotToBeReleased, match="An earlier request"):
        actions.release(transaction_id=payout.pk, by=MACHINE, at=after(300))

    # then: not even a payout that is pending all the same is claimed
    assert claims(after(400)) == []
    Transaction.objects.filter(pk=payout.pk).update(status="PENDING", due_at=AT)
    assert claims(after(400)) == []
    assert claims(after(400), transaction_id=payout.pk) == []
    Transaction.objects.filter(pk=payout.pk).update(status="HELD")


def test_a_proof_of_failure_is_booked_after_the_late_payments_debt_was_written_off(db: None) -> None:
    # given
    payout, first = retried()
    second = sent(payout, READ_TIMEOUT, after(30))
    hear(first, result_body(first), after(35))
    receivables.write_off(recovery_id=Recovery.objects.get().pk, reason="Gone.", by=actor(), at=after(40))

    # when
    ask_and_hear(second, status_body(second, "Failed"), after(60))
    ask_and_hear(second, status_body(second, "Failed"), after(600))

    # then: the debt we had pays for what was borne, and nobody owes anybody
    payout.refresh_from_db()
    recovery = Recovery.objects.get()
    assert payout.status == "COMPLETED"
    assert (recovery.amount, recovery.recovered, recovery.written_off) == (285, 285, 0)
    for account in (journal.wallet(payout.user_id), journal.receivable(payout.user_id), "bad_debt", "in_flight"):
        assert journal.balance(account) == 0, account


def test_a_withdrawn_close_time_governs_no_later_resolution(db: None) -> None:
    # given: resolved with a close time that was wrong, and withdrawn
    made = builders.market()
    winner = builders.member()
    builders.orm_bet(made, winner, "Yes", 100, at=AT - timedelta(hours=1))
    builders.orm_bet(made, builders.member(), "No", 200, at=AT - timedelta(hours=5))
    builders.resolve(made, "Yes", at=AT, effective_close_at=AT - timedelta(hours=3))
    resolutions.withdraw(market_id=made.pk, reason="Wrong end.", by=actor(), at=after(5))

    # when
    builders.resolve(made, "Yes", at=after(10))
    builders.settle(made, at=after(11))

    # then
    won = made.bets.get(user=winner)
    assert (won.result, won.payout) == ("WON", Decimal("285.00"))


def test_a_dividend_of_billions_goes_in_as_many_tranches_as_can_be_numbered_and_the_rest_to_the_wallet(
    db: None,
) -> None:
    # given: a session that has booked, and keeps its plans from, a single payout in young tables
    builders.payout()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE payments_ledgeraccount, payments_transaction")
    builders.payout()

    # given: 8,200 million, of which 32,767 tranches of 250,000 carry 8,191.75 million
    made = builders.market(fee_pct=0)
    winner = builders.member()
    builders.orm_bet(made, winner, "Yes", "8200000000.50")

    # when
    builders.resolve(made, "Yes")
    builders.settle(made)

    # then
    tranches = Transaction.objects.filter(settlement__market=made, destination="mpesa")
    assert (tranches.count(), {one.amount for one in tranches}) == (32_767, {Decimal(250_000)})
    winner.refresh_from_db()
    assert winner.balance == Decimal("8250000.50")


def test_a_claim_that_an_undo_overtakes_sends_nothing(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # given: a claim that begins while the undo waits for the audit trail, its own row locked
    canary = replace(POLICY, canary=(1, 3))
    made = builders.settled_market([(builders.member(), "Yes", 100), (builders.member(), "No", 200)], policy=canary)
    record, begun = undo.audit.record, []

    def late_record(**entry: Any) -> None:
        if entry["action"] == "market.undo":
            begun.append(builders.begin(lambda: claims(after(60), canary)))
            builders.wait_until_one_waits()
        record(**entry)

    monkeypatch.setattr(undo.audit, "record", late_record)

    # when
    undo.undo(market_id=made.pk, reason="Wrong.", by=actor(), at=after(60), policy=canary)

    # then
    assert begun[0].result(30) == []
    assert Settlement.objects.get().state == "UNDOING"
    assert Attempt.objects.count() == 0
