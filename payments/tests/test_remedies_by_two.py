"""A remedy to the wallet takes two people by the threshold and the sums of payments to the wallet."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from payments import dispute_steps, disputes, own_affairs
from payments.models import Dispute
from payments.payouts.operations import actions
from testing.builders import AT, bearer, member, operator
from testing.dispute_steps import actor_of, decide, dispute, failed_payout, notices_of
from testing.rest import post
from testing.settlement_steps import anything
from users import audit, figures, proposals
from users.models import AuditEntry, CustomUser, Proposal

pytestmark = pytest.mark.django_db(transaction=True)
NOW = AT + timedelta(hours=1)


@pytest.fixture(autouse=True)
def _threshold(transactional_db: None) -> None:
    with transaction.atomic():
        change = figures.Change("threshold:payout.to_wallet", "300", AT, "Test")
        figures.set_value(change, by=audit.MACHINE, at=AT)


def uphold(of: Dispute, by: CustomUser) -> Any:
    return decide(of, "uphold", by, NOW, remedy="pay_to_wallet")


def approve(made: proposals.Proposed, by: CustomUser) -> Any:
    return proposals.approve(
        proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, by=actor_of(by), at=NOW,
        acts=disputes.procedures(),
    )  # fmt: skip


def test_remedies_and_payments_to_the_wallet_count_together() -> None:
    # given: one person pays 285 shillings to a wallet
    first, second, user = operator(), operator(), member()
    actions.redirect_to_wallet(transaction_id=failed_payout(member()).pk, by=actor_of(first), at=NOW)
    payout = failed_payout(user)
    opened = dispute(payout)

    # when
    made = uphold(opened, first)

    # then
    assert isinstance(made, proposals.Proposed)
    payout.refresh_from_db()
    opened.refresh_from_db()
    assert (payout.status, opened.state, Proposal.objects.get().amount) == ("FAILED", "OPEN", 285)
    for step, more in (("answer", {}), ("uphold", {"remedy": "none"}), ("uphold", {"remedy": "pay_to_wallet"})):
        with pytest.raises(proposals.ProposalWaits):
            decide(opened, step, second, NOW, **more)

    # when
    done = approve(made, second)

    # then
    payout.refresh_from_db()
    assert (payout.status, done.dispute.remedy_state, done.dispute.closed_by_id) == ("COMPLETED", "DONE", second.pk)
    assert CustomUser.objects.get(pk=user.pk).balance == 285
    assert notices_of(user)[-1].endswith("was upheld: Because. The money is in your wallet.")
    for action in ("payout.to_wallet", "dispute.uphold"):
        people = AuditEntry.objects.filter(action=action).order_by("number").values_list("actor", flat=True)
        assert list(people)[-2:] == [first.pk, second.pk]


def test_other_remedies_take_one_person() -> None:
    for remedy in ("resend", "none", "re_resolve"):
        assert isinstance(
            decide(dispute(failed_payout(member())), "uphold", operator(), NOW, remedy=remedy), disputes.Upheld
        )


def test_rejected_remedy_leaves_the_dispute_open() -> None:
    # given
    first, second = operator(), operator()
    opened = dispute(failed_payout(member()))
    actions.redirect_to_wallet(transaction_id=failed_payout(member()).pk, by=actor_of(first), at=NOW)
    made = uphold(opened, first)

    # when
    proposals.reject(
        proposal_id=made.proposal_id, reason="Resend it.", holds=anything, by=actor_of(second), at=NOW,
        acts=disputes.procedures(),
    )  # fmt: skip

    # then
    assert decide(opened, "uphold", second, NOW, remedy="resend").dispute.state == "UPHELD"
    with pytest.raises(proposals.ProposalDecided):
        approve(made, operator())


def test_remedy_is_stale_if_the_payout_was_resent_and_never_the_members_own() -> None:
    # given
    first, second, user = operator(), operator(), operator()
    payout = failed_payout(user)
    opened = dispute(payout)
    actions.redirect_to_wallet(transaction_id=failed_payout(member()).pk, by=actor_of(first), at=NOW)
    made = uphold(opened, first)

    # when, then
    with pytest.raises(own_affairs.OwnDispute):
        approve(made, user)
    actions.retry(transaction_id=payout.pk, by=actor_of(second), at=NOW)
    with pytest.raises(actions.PayoutNotRetryable):
        approve(made, second)
    opened.refresh_from_db()
    assert (opened.state, CustomUser.objects.get(pk=user.pk).balance) == ("OPEN", 0)


def test_call_above_the_threshold_answers_with_a_proposal(client: Client) -> None:
    # given
    first, second = operator(), operator()
    payout, opened = None, None
    actions.redirect_to_wallet(transaction_id=failed_payout(member()).pk, by=actor_of(first), at=NOW)
    payout = failed_payout(member())
    opened = dispute(payout)

    # when
    body = {"remedy": "pay_to_wallet", "text": "It is no M-Pesa number."}
    with transaction.atomic():
        figures.set_value(figures.Change("threshold:payout.to_wallet", "100", NOW, "Test"), by=audit.MACHINE, at=NOW)
    answer = post(client, f"/api/payments/admin/disputes/{opened.public_id}/uphold/", body, bearer(first))

    # then
    made = answer.json()
    assert (answer.status_code, made["act"]) == (202, "dispute.uphold")
    assert made["subject"] == dispute_steps.name(opened)
    approval = {"proposal_id": made["proposal_id"], "preview_hash": made["preview_hash"]}
    assert post(client, "/api/markets/admin/approve/", approval, bearer(second)).status_code == 200
    payout.refresh_from_db()
    assert payout.status == "COMPLETED"
