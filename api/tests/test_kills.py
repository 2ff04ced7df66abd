"""kill -9 during payouts: every winner is paid exactly once, and the books close."""

from pathlib import Path

import pytest

from testing.running import Running, running, until

pytestmark = pytest.mark.journey

WINNERS = 40
MARKET_WITH_WINNERS = f"""
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="Will it rain tomorrow?", category="Environment", end_date="2026-02-17")
users = CustomUser.objects.bulk_create(
    [CustomUser(phone_number=f"2547000{{number:05d}}", password="!") for number in range(100, 100 + {WINNERS} + 1)]
)
Bet.objects.bulk_create([Bet(user=user, market=market, outcome="Yes", amount=100) for user in users[:-1]])
Bet.objects.create(user=users[-1], market=market, outcome="No", amount=1000)
"""
SHORT = {
    "PAYOUT_TPS": "20",
    "SWEEP_EVERY_SECONDS": "1",
    "PAYOUT_QUERY_AFTER": "2",
    "PAYOUT_QUERY_GAP": "2",
    "PAYOUT_RETRY_AFTER": "1",
}


def by_mpesa(place: Running) -> int:
    ((count,),) = place.sql(
        "SELECT count(*) FROM payments_transaction WHERE destination = 'mpesa' AND status = 'COMPLETED'"
    )
    return count


def assert_everybody_is_paid_once(place: Running) -> None:
    """Wait until all payouts are completed, then compare the provider's book with ours and check the invariants."""
    until(lambda: by_mpesa(place) == WINNERS, "everybody to be paid", lambda: place.log("worker")[-4000:])
    book = place.book()
    assert book["double_paid"] == []
    assert book["totals"]["paid_count"] == WINNERS
    assert len({payment["phone"] for payment in book["payments"]}) == WINNERS
    ours = place.sql(
        "SELECT originator_conversation_id, amount::int, phone_number, receipt FROM payments_attempt"
        " WHERE state = 'PAID' ORDER BY 1"
    )
    provider_payments = [
        (payment["ocid"], payment["amount"], payment["phone"], payment["receipt"])
        for payment in book["payments"]
        if payment["state"] == "paid"
    ]
    assert ours == sorted(provider_payments)
    status = place.status(1)
    assert (status["completed_payouts"], status["total_payouts"]) == ("4750.00", "4750.00")
    assert "The books close" in place.manage("reconcile")


def _paid(place: Running, *, at_least: int) -> None:
    until(lambda: by_mpesa(place) >= at_least, f"{at_least} payouts", lambda: place.log("worker")[-4000:])


def test_killed_worker_and_then_all_killed_processes_pay_everybody_once(tmp_path: Path) -> None:
    with running(tmp_path, **SHORT) as place:
        # given: ten results that never come, so that some payouts are unpaid at the first kill on any machine
        silent = [f"--phone-fault=2547000{number:05d}=callback_lost" for number in range(130, 140)]
        place.start_simulator("--callback-delay", "0.1", *silent)
        place.start_web_and_worker()
        place.log_in()
        place.manage("shell", typed=MARKET_WITH_WINNERS)
        place.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})

        # when
        _paid(place, at_least=3)
        place.kill("worker")
        paid = by_mpesa(place)
        place.start_worker()
        _paid(place, at_least=paid + 3)
        place.kill("web")
        place.kill("worker")
        place.start_web_and_worker()

        # then
        assert 3 <= paid < WINNERS, "The kill came too late to prove anything."
        assert_everybody_is_paid_once(place)
