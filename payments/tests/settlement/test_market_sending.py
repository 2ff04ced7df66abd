"""Tests of payments/settlement/market_sending.py: the payouts of one market wait while a person suspends them."""

import pytest
from django.db import transaction

from markets import stakeholders
from payments import own_affairs
from payments.models import Settlement, Transaction
from payments.payouts import eligibility, waiting
from payments.payouts.operations import actions
from payments.payouts.sending import claims
from payments.settlement import market_sending
from testing import builders
from testing.builders import AT, actor, member, nothing_moved, operator, policy
from testing.payout_steps import POLICY, after, failed
from testing.settlement_steps import anything
from users import audit, figures, proposals
from users.models import AuditEntry, CustomUser


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


# --- two people ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _threshold(db: None) -> None:
    with transaction.atomic():
        figures.set_value(figures.Change("threshold:sending.on", "300", AT, "Test"), by=audit.MACHINE, at=AT)


def approve(made: object, by: CustomUser) -> object:
    assert isinstance(made, proposals.Proposed)
    return proposals.approve(
        proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, by=actor(by), at=AT,
        acts=market_sending.procedures(),
    )  # fmt: skip


def resume(payout: Transaction, by: CustomUser) -> object:
    assert payout.settlement is not None
    return market_sending.resume(market_id=payout.settlement.market_id, reason="Good.", by=actor(by), at=AT)


@pytest.mark.usefixtures("_threshold")
def test_resumption_above_the_threshold_takes_a_second_person() -> None:
    # given
    payout, first, second = builders.payout(301), operator(), operator()
    suspended(payout)

    # when
    made = resume(payout, first)

    # then
    assert not leaving(payout)
    with pytest.raises(proposals.ProposerCannotApprove):
        approve(made, first)
    with pytest.raises(proposals.ProposalWaits):
        resume(payout, second)

    # when, then
    approve(made, second)
    assert leaving(payout)


@pytest.mark.usefixtures("_threshold")
def test_approved_resumption_does_not_end_a_later_suspension() -> None:
    # given
    payout, first, second = builders.payout(301), operator(), operator()
    suspended(payout)
    made = resume(payout, first)
    Settlement.objects.update(sending_suspended_at=after(5))

    # when, then
    with pytest.raises(proposals.PreviewMoved):
        approve(made, second)
    assert not leaving(payout)


@pytest.mark.usefixtures("_threshold")
def test_small_resumptions_of_one_person_count_together() -> None:
    payouts, person = [builders.payout(200), builders.payout(200)], operator()
    for payout in payouts:
        suspended(payout)
    first, second = [resume(payout, person) for payout in payouts]
    assert not isinstance(first, proposals.Proposed)
    assert isinstance(second, proposals.Proposed)


@pytest.mark.usefixtures("_threshold")
def test_stopped_release_above_the_threshold_takes_a_second_person() -> None:
    # given
    payout, first, second = builders.payout(301), operator(), operator()
    Settlement.objects.update(release_open=False, canary_stopped_at=AT, canary_stop_reason="One failed.")
    assert payout.settlement_id is not None
    pk = payout.settlement_id

    # when
    made = market_sending.let_go(settlement_id=pk, by=actor(first), reason="Looked at.", at=AT)

    # then
    with pytest.raises(proposals.ProposerCannotApprove):
        approve(made, first)
    assert not Settlement.objects.get(pk=pk).release_open
    approve(made, second)
    assert Settlement.objects.get(pk=pk).release_open


@pytest.mark.usefixtures("_threshold")
def test_winner_approves_neither_a_resumption_nor_a_release() -> None:
    # given
    payout, first = builders.payout(301), operator()
    payout.user.is_staff = True
    payout.user.save(update_fields=["is_staff"])
    suspended(payout)
    resumed = resume(payout, first)
    Settlement.objects.update(release_open=False, canary_stopped_at=AT)
    assert payout.settlement_id is not None
    released = market_sending.let_go(
        settlement_id=payout.settlement_id, by=actor(first), reason="Looked at.", at=AT
    )  # fmt: skip

    # when, then
    for made, refusal in ((resumed, stakeholders.StakeInMarket), (released, own_affairs.OwnPayout)):
        with nothing_moved(), pytest.raises(refusal):
            approve(made, payout.user)
