"""Every road that moves a payout's money, in every situation that must stop it."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from payments.models import Dispute, Settlement, Transaction
from payments.payouts.operations import actions, bulk_retries, failures, reissue
from payments.settlement import undo
from testing import builders, dispute_steps, payout_steps
from testing.builders import actor, nothing_moved
from testing.payout_steps import after, claims
from testing.settlement_steps import TWO_PERSON_ACTS, anything
from users import proposals
from users.audit import MACHINE
from users.models import CustomUser, Proposal

pytestmark = pytest.mark.django_db

NOW = after(3_600)
NEW_NUMBER = "254798765432"


# --- roads: each moves the money of a failed payout -------------------------------------------------------------------


def retry(payout: Transaction) -> Any:
    return actions.retry(transaction_id=payout.pk, by=MACHINE, at=NOW)


def retry_in_bulk(payout: Transaction) -> Any:
    result = bulk_retries.start(by=MACHINE, at=NOW)
    if not result.retried:
        raise actions.PayoutNotRetryable("skipped")


def to_wallet(payout: Transaction) -> Any:
    return actions.redirect_to_wallet(transaction_id=payout.pk, by=MACHINE, at=NOW)


def release(payout: Transaction) -> Any:
    return actions.release(transaction_id=payout.pk, by=MACHINE, at=NOW)


def remedy(kind: str) -> Callable[[Transaction], Any]:
    def uphold(payout: Transaction) -> Any:
        dispute = Dispute.objects.get(transaction=payout)
        return dispute_steps.decide(dispute, "uphold", CustomUser.objects.get(is_staff=True), at=NOW, remedy=kind)

    return uphold


def propose_reissue(payout: Transaction) -> Any:
    boss = CustomUser.objects.get(is_staff=True)
    return reissue.propose(transaction_id=payout.pk, grounds="Checked.", by=actor(boss), at=NOW)


ROADS: dict[str, Callable[[Transaction], Any]] = {
    "retry": retry,
    "bulk retry": retry_in_bulk,
    "to the wallet": to_wallet,
    "remedy resend": remedy("resend"),
    "remedy to the wallet": remedy("pay_to_wallet"),
    "re-issue": propose_reissue,
}


# --- situations ------------------------------------------------------------------------------------------------------


def within_the_hold(payout: Transaction, boss: CustomUser) -> None:
    Settlement.objects.filter(pk=payout.settlement_id).update(release_at=NOW + timedelta(hours=1))


def undo_proposed(payout: Transaction, boss: CustomUser) -> None:
    policy = builders.policy(approval_above=Decimal(1))
    undo.undo(market_id=payout.settlement.market_id, reason="Wrong.", by=actor(boss), at=after(100), policy=policy)


def being_undone(payout: Transaction, boss: CustomUser) -> None:
    market_id = payout.settlement.market_id
    undo.undo(market_id=market_id, reason="Wrong.", by=actor(boss), at=after(100), policy=builders.policy())


def held_by_a_person(payout: Transaction, boss: CustomUser) -> None:
    number = CustomUser.objects.get(pk=payout.user_id).phone_number
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=payout.phone_number)
    actions.retry(transaction_id=payout.pk, by=MACHINE, at=after(90))
    Transaction.objects.get(pk=payout.pk).attempts.update(next_query_at=None)
    actions.hold(transaction_id=payout.pk, reason="Ask the member.", by=actor(boss), at=after(100))
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=number)


SITUATIONS: dict[str, tuple[Callable[[Transaction, CustomUser], None], type[Exception]]] = {
    "within the hold": (within_the_hold, actions.PayoutStopped),
    "undo proposed": (undo_proposed, actions.PayoutStopped),
    "being undone": (being_undone, actions.PayoutStopped),
    "held by a person": (held_by_a_person, actions.HeldByPerson),
}


def failed_payout(road: str) -> tuple[Transaction, CustomUser]:
    """Return a failed and disputed payout, and a member of staff. For a re-issue, the member's number has changed."""
    boss = builders.operator()
    payout = builders.payout(285)
    payout_steps.failed(payout)
    dispute_steps.dispute(payout, at=after(10))
    if road == "re-issue":
        CustomUser.objects.filter(pk=payout.user_id).update(phone_number=NEW_NUMBER)
    return Transaction.objects.get(pk=payout.pk), boss


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("road", ROADS)
def test_every_road_is_closed_in_every_situation(road: str, situation: str) -> None:
    # given
    payout, boss = failed_payout(road)
    prepare, refusal = SITUATIONS[situation]
    prepare(payout, boss)
    expected = actions.PayoutNotRetryable if road == "bulk retry" else refusal

    # when, then: nothing moves, and the refusal says what happened to the money
    with nothing_moved(), pytest.raises(expected) as refused:
        ROADS[road](payout)
    assert road == "bulk retry" or "No money moved" in str(refused.value) or "nothing of it is paid" in str(refused)
    assert claims(NOW) == []


@pytest.mark.parametrize("road", ROADS)
def test_every_road_is_open_otherwise(road: str) -> None:
    payout, _ = failed_payout(road)
    ROADS[road](payout)


@pytest.mark.parametrize("situation", ["within the hold", "undo proposed", "being undone"])
def test_release_is_closed_while_the_settlement_is_stopped(situation: str) -> None:
    boss = builders.operator()
    payout = builders.payout(285)
    actions.hold(transaction_id=payout.pk, reason="Wait.", by=MACHINE, at=after(1))
    SITUATIONS[situation][0](payout, boss)
    with nothing_moved(), pytest.raises(actions.PayoutStopped):
        release(payout)


def test_release_ends_a_persons_hold_and_opens_the_roads() -> None:
    payout, boss = failed_payout("retry")
    held_by_a_person(payout, boss)
    release(payout)
    payout.refresh_from_db()
    assert (payout.status, payout.held_by_person) == ("PENDING", False)


def test_rejected_undo_opens_the_roads_again() -> None:
    payout, boss = failed_payout("retry")
    undo_proposed(payout, boss)
    proposals.reject(
        proposal_id=Proposal.objects.get().pk,
        reason="It is right.",
        holds=anything,
        acts=TWO_PERSON_ACTS,
        by=actor(boss),
        at=after(200),
    )
    retry(payout)
    payout.refresh_from_db()
    assert payout.status == "PENDING"


def test_payout_held_by_the_machine_may_go_to_the_wallet() -> None:
    policy = builders.policy(max_attempts=1)
    payout = builders.payout(285)
    payout_steps.failed(payout, policy=policy)
    payout.refresh_from_db()
    assert payout.status == "HELD"
    to_wallet(payout)
    payout.refresh_from_db()
    assert payout.status == "COMPLETED"


def test_bulk_plan_skips_what_a_retry_would_refuse() -> None:
    stopped, changed, free = _three()
    within_the_hold(stopped, CustomUser.objects.get(is_staff=True))
    CustomUser.objects.filter(pk=changed.user_id).update(phone_number=NEW_NUMBER)
    plan = failures.plan(failures.chosen(), by=MACHINE, at=NOW)
    assert plan.transaction_ids == [free.pk]
    assert plan.skipped == {failures.BLOCKED["stopped"]: 1, failures.BLOCKED["number"]: 1}


def _three() -> list[Transaction]:
    builders.operator()
    payouts = [builders.payout(285) for _ in range(3)]
    for payout in payouts:
        payout_steps.failed(payout)
    return payouts
