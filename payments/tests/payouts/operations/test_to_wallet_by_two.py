"""A payment to the wallet above the threshold takes two people, alone or with the person's others of a day."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import transaction

from payments.models import Transaction
from payments.payouts.operations import actions
from testing.builders import AT, actor, operator
from testing.builders import payout as pending_payout
from testing.settlement_steps import anything
from users import audit, figures, proposals
from users.models import AuditEntry, Proposal

pytestmark = pytest.mark.django_db(transaction=True)
NOW = AT + timedelta(hours=1)


@pytest.fixture
def _threshold() -> None:
    with transaction.atomic():
        change = figures.Change("threshold:payout.to_wallet", "300", AT, "Test")
        figures.set_value(change, by=audit.MACHINE, at=AT)


def failed_payout(amount: int) -> Transaction:
    made = pending_payout(amount=amount)
    Transaction.objects.filter(pk=made.pk).update(status="HELD")
    made.refresh_from_db()
    return made


@pytest.mark.usefixtures("_threshold")
def test_payments_that_sum_above_the_threshold_take_a_second_person() -> None:
    # given
    first, second = operator(), operator()
    small, next_one = failed_payout(200), failed_payout(200)

    # when
    done = actions.redirect_to_wallet(transaction_id=small.pk, by=actor(first), at=NOW)
    made = actions.redirect_to_wallet(transaction_id=next_one.pk, by=actor(first), at=NOW, reason="Closed line.")

    # then
    assert isinstance(done, Transaction)
    assert isinstance(made, proposals.Proposed)
    next_one.refresh_from_db()
    assert next_one.status == "HELD"
    with pytest.raises(proposals.ProposalWaits):
        actions.redirect_to_wallet(transaction_id=next_one.pk, by=actor(second), at=NOW)

    # when
    paid = proposals.approve(
        proposal_id=made.proposal_id, preview_hash=made.preview_hash, holds=anything, by=actor(second), at=NOW,
        acts=actions.procedures(),
    )  # fmt: skip

    # then
    assert (paid.status, Proposal.objects.get().state) == ("COMPLETED", "APPROVED")
    people = AuditEntry.objects.filter(action="payout.to_wallet", subject=f"transaction:{paid.pk}")
    assert list(people.order_by("number").values_list("actor", flat=True)) == [first.pk, second.pk]
    assert paid.user.__class__.objects.get(pk=paid.user_id).balance == Decimal(200)


@pytest.mark.usefixtures("_threshold")
def test_acts_of_the_day_before_and_of_others_do_not_count() -> None:
    first, second = operator(), operator()
    for by, at in ((first, NOW), (second, NOW), (first, NOW + timedelta(hours=24))):
        done = actions.redirect_to_wallet(transaction_id=failed_payout(300).pk, by=actor(by), at=at)
        assert isinstance(done, Transaction)


def test_without_a_threshold_one_person_is_enough() -> None:
    done = actions.redirect_to_wallet(transaction_id=failed_payout(240_000).pk, by=actor(operator()), at=NOW)
    assert isinstance(done, Transaction)
