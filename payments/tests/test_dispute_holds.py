"""Payouts that disputes keep back within the hold of their settlement, and the deadlines of disputes."""

import logging
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from markets.models import Bet
from payments import dispute_holds, disputes, settlement_tasks
from payments.models import Dispute, Transaction
from payments.payouts.operations import actions, timeline
from testing import builders
from testing.builders import AT, actor, at_once, member, operator, settled_market
from testing.dispute_steps import decide, dispute, notices_of, reply
from testing.payout_steps import claims
from users.models import AuditEntry, CustomUser

pytestmark = pytest.mark.django_db(transaction=True)
HELD = builders.policy(holds=((Decimal(0), timedelta(minutes=30)),))
AFTER_HOLD = AT + timedelta(hours=1)
KEPT = ("HELD", actions.DISPUTED)


@pytest.fixture
def user() -> CustomUser:
    return member(full_name="Amina")


def bets_within_hold(user: CustomUser, stakes: tuple[int, ...] = (300,)) -> list[Bet]:
    """Settle a market with a hold of 30 minutes, which this member and another member have won."""
    settled = settled_market([*((user, "Yes", stake) for stake in stakes), (member(), "Yes", 200)], policy=HELD)
    return list(Bet.objects.filter(market=settled, user=user).order_by("pk"))


def state_of(user: CustomUser) -> tuple[str, str]:
    payout = Transaction.objects.get(user=user)
    return payout.status, payout.reason


def leaving(at: datetime) -> set[int]:
    ids = [claim.transaction_id for claim in claims(at)]
    return set(Transaction.objects.filter(pk__in=ids).values_list("user", flat=True))


@pytest.mark.parametrize("about", ["bet", "payout"])
def test_dispute_within_the_hold_keeps_only_its_members_payouts_back(user: CustomUser, about: str) -> None:
    # given
    (won,) = bets_within_hold(user)

    # when
    opened = dispute(won if about == "bet" else Transaction.objects.get(user=user))

    # then
    assert state_of(user) == KEPT
    assert notices_of(user)[-1].endswith("We will answer within 72 hours. Your payout waits for our decision.")
    left = leaving(AFTER_HOLD)
    assert (len(left), user.pk in left) == (1, False)
    (entry,) = AuditEntry.objects.filter(action="payout.hold")
    assert (entry.actor, entry.reason) == (None, f"Dispute {opened.public_id}")


def test_page_of_a_disputed_payout_sends_people_to_the_dispute(user: CustomUser) -> None:
    dispute(bets_within_hold(user)[0])
    shown = timeline.of_payout(Transaction.objects.get(user=user).pk, at=AFTER_HOLD, policy=HELD)
    assert shown is not None
    assert shown.words == f"It is held, and the money is still with us. {actions.DISPUTED}"
    assert shown.advice.startswith("Decide the dispute on the page Disputes.")
    assert (shown.main_action, {"hold", "release", "wallet"} <= shown.actions) == ("", True)


def test_dispute_after_the_hold_keeps_nothing_back(user: CustomUser) -> None:
    (won,) = bets_within_hold(user)
    dispute(won, AFTER_HOLD)
    assert state_of(user)[0] == "PENDING"
    assert user.pk in leaving(AFTER_HOLD)


@pytest.mark.parametrize("step", ["reject", "uphold"])
def test_decided_dispute_lets_the_payout_leave(user: CustomUser, step: str) -> None:
    # given
    (won,) = bets_within_hold(user)
    opened, staff = dispute(won), operator()
    decide(opened, "answer", staff, AFTER_HOLD)
    assert state_of(user) == KEPT

    # when
    decide(opened, step, staff, AFTER_HOLD, **({"remedy": "none"} if step == "uphold" else {}))

    # then
    assert state_of(user) == ("PENDING", "")
    assert user.pk in leaving(AFTER_HOLD)
    assert [entry.actor for entry in AuditEntry.objects.filter(action="payout.release")] == [None]


def test_payout_waits_until_the_market_is_resolved_again(user: CustomUser) -> None:
    won, other_bet = bets_within_hold(user, (200, 100))
    first, second, staff = dispute(won), dispute(other_bet), operator()
    decide(first, "uphold", staff, AFTER_HOLD, remedy="re_resolve")
    decide(second, "uphold", staff, AFTER_HOLD, remedy="none")
    assert state_of(user) == KEPT
    builders.undo(won.market, by=staff, at=AFTER_HOLD)
    assert state_of(user)[0] == "CANCELLED"


def test_last_of_two_disputes_lets_the_payout_leave_even_at_once(user: CustomUser) -> None:
    opened = [dispute(bet) for bet in bets_within_hold(user, (200, 100))]
    staff = [operator(), operator()]
    calls = [
        partial(decide, one, "uphold", by, AFTER_HOLD, remedy="none") for one, by in zip(opened, staff, strict=True)
    ]
    assert {type(answer) for answer in at_once(*calls)} == {disputes.Upheld}
    assert state_of(user) == ("PENDING", "")


def test_first_of_two_decided_disputes_keeps_the_payout_back(user: CustomUser) -> None:
    first, second = (dispute(bet) for bet in bets_within_hold(user, (200, 100)))
    decide(first, "uphold", operator(), AFTER_HOLD, remedy="none")
    assert state_of(user) == KEPT
    decide(second, "uphold", operator(), AFTER_HOLD, remedy="none")
    assert state_of(user)[0] == "PENDING"


def test_support_cannot_release_a_payout_that_an_operator_holds(user: CustomUser) -> None:
    # given: an operator holds a payout that a dispute already keeps back
    (won,) = bets_within_hold(user)
    opened, support = dispute(won), operator()
    payout = Transaction.objects.get(user=user)
    actions.hold(transaction_id=payout.pk, reason="The police ask.", by=actor(operator()), at=AT)

    # when, then
    for remedy in ("resend", "pay_to_wallet"):
        with pytest.raises(actions.HeldByPerson):
            decide(opened, "uphold", support, AFTER_HOLD, remedy=remedy)
    decide(opened, "uphold", support, AFTER_HOLD, remedy="none")
    assert state_of(user) == ("HELD", "Held by a person: The police ask.")


def test_overdue_dispute_raises_one_alarm_for_each_deadline(user: CustomUser, caplog: Any) -> None:
    # given
    (won,) = bets_within_hold(user)
    opened, staff = dispute(won), operator()
    due = AT + timedelta(hours=72)

    def alarms(at: datetime) -> int:
        return dispute_holds.alarm_overdue(at=at, limit=10)

    # when, then
    assert alarms(due - timedelta(seconds=1)) == 0
    with caplog.at_level(logging.ERROR, "kasoko.alarm"):
        assert [alarms(due), alarms(due + timedelta(hours=1))] == [1, 0]
    assert f"Dispute {opened.public_id} is not decided by its deadline" in caplog.text
    assert "It keeps KES 300.00 back" in caplog.text

    # when: the member replies to an answer, which sets a new deadline, and staff answer again without a decision
    decide(opened, "answer", staff, due + timedelta(hours=2))
    reply(opened, due + timedelta(hours=3))
    decide(opened, "answer", staff, due + timedelta(hours=4))
    assert [alarms(due + timedelta(hours=74)), alarms(due + timedelta(hours=75)), alarms(due + timedelta(days=9))] == [
        0, 1, 0,
    ]  # fmt: skip


def test_answered_dispute_without_money_raises_no_alarm(user: CustomUser) -> None:
    (won,) = bets_within_hold(user)
    opened = dispute(won, AFTER_HOLD)
    decide(opened, "answer", operator(), AFTER_HOLD)
    assert dispute_holds.alarm_overdue(at=AT + timedelta(days=9), limit=10) == 0


def test_sweep_raises_the_alarms_of_overdue_disputes(user: CustomUser) -> None:
    opened = dispute(bets_within_hold(user)[0])
    settlement_tasks.close_remedied_disputes()
    assert Dispute.objects.get(pk=opened.pk).alarmed_at is not None
