"""The user's guide, followed over HTTP against the real processes: each command does as the guide says."""

import json
import re
from pathlib import Path

import pytest
import requests

from testing.running import Running, running, until

pytestmark = pytest.mark.journey

# Part 4.1, word for word.
CREATE_TEST_DATA = """
# Django shell: python manage.py shell

from markets.models import Market, Bet, Outcome
from users.models import CustomUser
from decimal import Decimal

# Create users
user1 = CustomUser.objects.create_user(phone_number='254712345678', full_name='User 1', pin='1234')
user2 = CustomUser.objects.create_user(phone_number='254712345679', full_name='User 2', pin='1234')

# Give them balance
user1.balance = Decimal('1000')
user1.save()
user2.balance = Decimal('2000')
user2.save()

# Create market
market = Market.objects.create(
    question="Will it rain tomorrow?",
    category="Environment",
    status="OPEN",
    end_date="2026-02-17"
)

# Create bets
bet1 = Bet.objects.create(
    user=user1, market=market, outcome="Yes", amount=100
)
bet2 = Bet.objects.create(
    user=user2, market=market, outcome="No", amount=200
)

print(f"Market {market.id} created with 2 bets")
print(f"Total pool: {Decimal('100') + Decimal('200')}")
"""

ANOTHER_MARKET = """
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="And the day after?", category="Environment", end_date="2026-02-18")
for user, outcome, amount in zip(CustomUser.objects.filter(is_staff=False).order_by("id"), ["Yes", "No"], [100, 200]):
    Bet.objects.create(user=user, market=market, outcome=outcome, amount=amount)
"""

# Our books' M-Pesa payments, in the form of the provider's book.
OUR_PAYMENTS = """
SELECT t.phone_number, t.amount::int, a.receipt FROM payments_transaction t
JOIN payments_attempt a ON a.transaction_id = t.id AND a.state = 'PAID' AND a.kind = 'b2c'
WHERE t.destination = 'mpesa' AND t.status = 'COMPLETED' ORDER BY 1, 2, 3
"""


def settled(place: Running, market_id: int, state: str) -> dict[str, object]:
    """Wait until the only payout of a market is in a state, and return the settlement status."""
    return until(
        lambda: (status := place.status(market_id))["payout_count"][state] == 1 and status,
        f"the payout of market {market_id} to be {state}",
        lambda: place.log("worker")[-4000:],
    )


def test_guide_works_from_the_shell_to_the_last_call(tmp_path: Path) -> None:
    with running(tmp_path, SWEEP_EVERY_SECONDS="1", PAYOUT_RETRY_AFTER="3600") as place:
        place.start_simulator()
        place.start_web_and_worker()
        flower = _start_the_monitors(place)
        place.log_in()
        _create_resolve_and_be_paid(place)
        _call_the_dashboards_paths(place)
        _complete_a_payout_by_hand(place)

        books = place.manage("reconcile")
        assert "The books close" in books
        _the_monitors_saw_the_worker(place, flower)


def _start_the_monitors(place: Running) -> str:
    """Part 3.4: start the event monitor and Flower. Returns Flower's URL."""
    place.start_events()
    return place.start_flower()


def _the_monitors_saw_the_worker(place: Running, flower: str) -> None:
    # then: the event monitor printed the settlement's task
    for event in ("received", "succeeded"):
        line = rf"task {event}: payments\.settlement_tasks\.settle_market\("
        until(
            lambda: re.search(line, place.log("events")),  # noqa: B023 - called at once
            f"the event {line}",
            lambda: place.log("events")[-2000:],
        )

    # then: Flower shows the worker as online, with its events
    def workers() -> list[dict[str, object]]:
        return json.loads(requests.get(f"{flower}/workers?json=1", timeout=30).text)["data"]

    (worker,) = until(workers, "the worker in Flower", lambda: place.log("flower"))
    assert str(worker["hostname"]).startswith("celery@")
    assert worker["status"] is True
    assert int(str(worker["task-succeeded"])) >= 1


def _create_resolve_and_be_paid(place: Running) -> None:
    # when: part 4.1
    printed = place.manage("shell", typed=CREATE_TEST_DATA)

    # then
    assert printed.splitlines()[-2:] == ["Market 1 created with 2 bets", "Total pool: 300"]

    # when: part 4.2
    answer = place.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})

    # then
    assert answer.status_code == 200, answer.text
    resolved = answer.json()
    assert resolved == {
        "status": "resolved",
        "market_id": 1,
        "outcome": "Yes",
        "settlement_task_id": resolved["settlement_task_id"],
    }
    status = settled(place, 1, "completed")
    assert (status["status"], status["outcome"]) == ("SETTLED", "Yes")
    assert {name: status[name] for name in status if name.endswith(("pool", "fee", "payouts"))} == {
        "pool": "300.00",
        "platform_fee": "15.00",
        "total_payouts": "285.00",
        "completed_payouts": "285.00",
        "failed_payouts": "0.00",
        "pending_payouts": "0.00",
        "in_doubt_payouts": "0.00",
        "held_payouts": "0.00",
    }

    # then: part 4.3, in any order. A sweep may be faster than the message, whose line then comes later
    task_id = re.escape(resolved["settlement_task_id"])
    for line in (
        rf"INFO/MainProcess\] Task payments\.settlement_tasks\.settle_market\[{task_id}\] received",
        r"Settling market 1: total_pool=300\.00, ",
        r"INFO/MainProcess\] Task payments\.settlement_tasks\.send_b2c_payout\[[0-9a-f-]{36}\] received",
        r"Initiating B2C payout for transaction 1, amount=285$",
    ):
        until(
            lambda: re.search(line, place.log("worker"), re.MULTILINE),  # noqa: B023 - called at once
            f"the line {line}",
            lambda: place.log("worker")[-4000:],
        )
    assert "254712345678" not in place.log("worker")

    # then: the money is on the phone, once, and nowhere else
    book = place.book()
    assert book["double_paid"] == []
    assert place.sql(OUR_PAYMENTS) == [
        (payment["phone"], payment["amount"], payment["receipt"]) for payment in book["payments"]
    ]
    assert [(payment["phone"], payment["amount"]) for payment in book["payments"]] == [("254712345678", 285)]
    assert place.sql("SELECT balance::text FROM users_customuser WHERE NOT is_staff ORDER BY id") == [
        ("1000.00",),
        ("2000.00",),
    ]
    assert "The books close" in place.manage("reconcile")


def _call_the_dashboards_paths(place: Running) -> None:
    """Call the paths of part 8, and the same calls under the prefix of part 2.6."""
    for prefix in ("payments", "markets"):
        # when
        one = place.post(f"/api/{prefix}/admin/retry-payout/", {"transaction_id": 42})
        paid = place.post(f"/api/{prefix}/admin/retry-payout/", {"transaction_id": 1})
        batch = place.post(f"/api/{prefix}/admin/retry-failed-payouts/", {"hours": 24})

        # then
        assert (one.status_code, one.json()["code"]) == (404, "transaction_not_found")
        assert (paid.status_code, paid.json()["code"]) == (409, "payout_not_retryable")
        assert (batch.status_code, batch.json()) == (
            200,
            {"status": "retried", "count": 0, "transaction_ids": [], "skipped": 0},
        )
    again = place.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})
    assert (again.status_code, again.json()["code"]) == (409, "market_already_resolved")
    anonymous = requests.get(f"{place.url}/api/markets/admin/settlement-status/1/", timeout=30)
    assert anonymous.status_code == 401


def _complete_a_payout_by_hand(place: Running) -> None:
    """Complete a payout by the callback of part 4.4, while the provider refuses connections."""
    # given
    before = len(place.book()["payments"])
    place.stop("simulator")
    place.manage("shell", typed=ANOTHER_MARKET)
    place.post("/api/markets/admin/resolve/", {"market_id": 2, "outcome": "Yes"})
    until(
        lambda: place.sql("SELECT id FROM payments_attempt WHERE state = 'WAITING'"),
        "a request that cannot leave",
        lambda: place.log("worker")[-4000:],
    )
    assert settled(place, 2, "pending")["pending_payouts"] == "285.00"
    ((reference,),) = place.sql("SELECT external_ref FROM payments_transaction WHERE status = 'PENDING'")

    # when
    answer = requests.post(
        f"{place.url}/api/payments/b2c-callback/",
        json={
            "Result": {
                "ResultCode": 0,
                "ResultDesc": "The service request has been processed successfully.",
                "OriginatorConversationID": "...",
                "ConversationID": "...",
                "ExternalReference": reference,
                "ResponseDescription": "success",
            }
        },
        timeout=30,
    )

    # then
    assert answer.status_code == 200, answer.text
    assert settled(place, 2, "completed")["completed_payouts"] == "285.00"
    place.start_simulator()
    assert len(place.book()["payments"]) == before
