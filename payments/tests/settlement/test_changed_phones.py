"""No money leaves to a phone that was just changed, on any road, before its hold ends."""

from datetime import datetime, timedelta

from payments.models import Transaction
from payments.payouts import attempts
from testing import builders

HOLD = timedelta(hours=24)


def test_winnings_wait_for_the_hold_of_a_changed_phone(db: None, at: datetime) -> None:
    changed, other = builders.member(phone_held_until=at + HOLD), builders.member(phone_held_until=at - HOLD)
    market = builders.settled_market([(changed, "Yes", 300), (other, "Yes", 300)], fee_pct=0, at=at)
    due = dict(Transaction.objects.filter(settlement__market=market, destination="mpesa").values_list("user", "due_at"))
    assert due == {changed.pk: at + HOLD, other.pk: at}


def test_retry_and_release_do_not_shorten_the_hold(db: None, at: datetime) -> None:
    payout = builders.payout(285)
    payout.user.phone_held_until = at + HOLD
    attempts.make_pending(payout, due_at=at)
    assert payout.due_at == at + HOLD
    attempts.make_pending(payout, due_at=at + 2 * HOLD)
    assert payout.due_at == at + 2 * HOLD
