"""Tests of payments/settlement/market_sending.py: the payouts of one market wait while a person suspends them."""

import pytest

from payments.models import Settlement, Transaction
from payments.payouts import eligibility, waiting
from payments.payouts.operations import actions
from payments.payouts.sending import claims
from payments.settlement import market_sending
from testing import builders
from testing.builders import AT, actor, member, nothing_moved, operator, policy
from testing.payout_steps import POLICY, after, failed
from users.models import AuditEntry


def suspended(payout: Transaction) -> None:
    assert payout.settlement is not None
    market_id = payout.settlement.market_id
    market_sending.suspend(market_id=market_id, reason="Check.", by=actor(operator()), at=AT)


def leaving(payout: Transaction) -> bool:
    may = eligibility.may_leave([payout.pk], in_canary=[], at=after(1)) == {payout.pk}
    assert claims.any_due(at=after(1), policy=policy()) == may
    return may


def test_payouts_of_a_suspended_market_do_not_leave_until_resumed(db: None) -> None:
    # given
    payout = builders.payout(285)
    assert leaving(payout)

    # when, then
    suspended(payout)
    suspended(payout)
    payout = Transaction.objects.get(pk=payout.pk)
    assert not leaving(payout)
    assert "a person, who suspended the sending of its market" in [
        wait.words for wait in waiting.of_payout(payout, at=after(1), policy=policy())
    ]
    other = builders.payout(100)
    assert eligibility.may_leave([payout.pk, other.pk], in_canary=[], at=after(1)) == {other.pk}
    settlement = Settlement.objects.get(pk=payout.settlement_id)
    market_sending.resume(market_id=settlement.market_id, reason="Good.", by=actor(operator()), at=AT)
    assert leaving(payout)
    assert list(AuditEntry.objects.filter(action__contains="_sending").values_list("action", flat=True)) == [
        "market.suspend_sending",
        "market.resume_sending",
    ]


def test_payouts_of_a_suspended_market_are_not_retried_or_paid_to_the_wallet(db: None) -> None:
    payout, staff = builders.payout(285), actor(operator())
    failed(payout)
    suspended(payout)
    with nothing_moved():
        with pytest.raises(actions.PayoutStopped, match="suspended"):
            actions.retry(transaction_id=payout.pk, by=staff, at=after(60))
        with pytest.raises(actions.PayoutStopped, match="suspended"):
            actions.redirect_to_wallet(transaction_id=payout.pk, by=staff, at=after(60))


def test_market_without_payouts_has_nothing_to_suspend_or_resume(db: None) -> None:
    rain, staff = builders.market(), actor(operator())
    with pytest.raises(market_sending.NothingToSend):
        market_sending.suspend(market_id=rain.pk, reason="Check.", by=staff, at=AT)
    builders.orm_bet(rain, member())
    builders.resolve(rain)
    with pytest.raises(market_sending.SendingNotSuspended):
        market_sending.resume(market_id=rain.pk, reason="Check.", by=staff, at=AT)
    market_sending.suspend(market_id=rain.pk, reason="Check.", by=staff, at=AT)
    builders.settle(rain, policy=POLICY)
    assert not claims.any_due(at=after(1), policy=policy())
