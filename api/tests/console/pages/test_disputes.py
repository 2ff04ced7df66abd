"""Tests of the dispute pages: answer, reject and uphold."""

from typing import Any

from django.utils import timezone

from payments import disputes
from payments.models import Dispute, Transaction
from testing import builders, console_scenes, payout_steps
from testing.console_scenes import client_of, page_text, submit
from users.models import CustomUser


def disputed(amount: int = 285) -> tuple[Transaction, Dispute]:
    """Open a dispute about a failed payout. Return the payout and the dispute."""
    at = timezone.now()
    payout = builders.payout(amount, at=at)
    console_scenes.send_and_refuse(payout, at)
    dispute = disputes.open_about_transaction(
        user_id=payout.user_id,
        transaction_id=payout.public_id,
        text="It has not come to my phone, please look.",
        by=console_scenes.ACTOR,
        at=at,
        policy=payout_steps.POLICY,
    )
    return payout, dispute


def test_dispute_is_answered_and_rejected(db: None) -> None:
    client = client_of(console_scenes.staff("support"))
    _, dispute = disputed()
    assert "dispute to answer" in page_text(client.get("/admin/"))
    assert "It has not come" in page_text(client.get("/admin/disputes/"))
    path = f"/admin/disputes/{dispute.public_id}/"
    assert "Answer…" in page_text(client.get(path))
    assert "Reject…" not in page_text(client.get(path))
    assert "Your answer is recorded, and the member is told." in submit(
        client, f"{path}answer/", text="We are looking into it."
    )
    assert "The dispute is rejected" in submit(client, f"{path}reject/", text="It was paid, see the receipt.")
    dispute.refresh_from_db()
    assert dispute.state == "REJECTED"
    assert "We are looking into it." in page_text(client.get(path))
    with builders.nothing_moved():
        assert "No money was moved" in submit(client, f"{path}answer/", text="Once more.")


def test_upheld_dispute_pays_to_the_wallet(db: None, queued: Any) -> None:
    client = client_of(console_scenes.staff("support"))
    payout, dispute = disputed()
    path = f"/admin/disputes/{dispute.public_id}/uphold/"
    assert "please choose" in submit(client, path, text="You are right.", remedy="gold")
    assert "is upheld: the payout goes to the wallet" in submit(
        client, path, text="You are right.", remedy="pay_to_wallet"
    )
    payout.refresh_from_db()
    assert payout.status == "COMPLETED"
    assert CustomUser.objects.get(pk=payout.user_id).balance == 285


def test_upheld_dispute_sends_the_payout_again(db: None, queued: Any) -> None:
    client = client_of(console_scenes.staff("support"))
    payout, dispute = disputed()
    submit(client, f"/admin/disputes/{dispute.public_id}/uphold/", text="You are right.", remedy="resend")
    payout.refresh_from_db()
    assert payout.status == "PENDING"
    assert ("payments.settlement_tasks.send_b2c_payout", [payout.pk]) in [(name, ids) for name, _, ids in queued()]


def test_own_dispute_must_be_decided_by_another_person(db: None) -> None:
    payout, dispute = disputed()
    owner = payout.user
    owner.is_staff = owner.is_superuser = True
    owner.save()
    client = client_of(owner)
    path = f"/admin/disputes/{dispute.public_id}/"
    assert "This is your own dispute" in page_text(client.get(path))
    with builders.nothing_moved():
        assert "You opened this dispute yourself." in submit(client, f"{path}answer/", text="I am right.")
