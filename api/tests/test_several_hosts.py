"""Two web processes and two workers on the same servers, as on several hosts: each thing happens once."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testing.running import running, until

pytestmark = [pytest.mark.journey, pytest.mark.long]

MARKETS, WINNERS = 6, 5
# Small chunks give each settlement several transactions, in which a second worker could interfere.
SETTINGS = {"PAYOUT_TPS": "50", "SWEEP_EVERY_SECONDS": "1", "SETTLEMENT_CHUNK": "2", "PAYOUT_CANARY": "off"}
MARKETS_WITH_WINNERS = f"""
from markets.models import Bet, Market
from users.models import CustomUser
users = CustomUser.objects.bulk_create(
    [CustomUser(phone_number=f"2547000{{number:05d}}", password="!") for number in range(100, 101 + {WINNERS})]
)
for number in range({MARKETS}):
    market = Market.objects.create(question=f"Will it rain on day {{number}}?", end_date="2026-02-17")
    Bet.objects.bulk_create([Bet(user=user, market=market, outcome="Yes", amount=100) for user in users[1:]])
    Bet.objects.create(user=users[0], market=market, outcome="No", amount=500)
"""
PAID = "SELECT count(*) FROM payments_transaction WHERE destination = 'mpesa' AND status = 'COMPLETED'"
# No constraint makes these rows unique, so a second settlement or request would be visible.
SETTLED = "SELECT market_id, count(*) FROM payments_settlement WHERE state = 'SETTLED' GROUP BY market_id ORDER BY 1"
SENT = "SELECT transaction_id, count(*) FROM payments_attempt GROUP BY transaction_id HAVING count(*) > 1"


def test_two_workers_and_two_webs_settle_and_send_once(tmp_path: Path) -> None:
    with running(tmp_path, **SETTINGS) as place:
        # given
        place.start_simulator()
        place.start_web()
        second = place.start_second_web()
        place.log_in()
        place.manage("shell", typed=MARKETS_WITH_WINNERS)
        place.start_worker()
        place.start_second_worker()

        # when: each market is resolved through both web processes at the same time
        def resolve(number: int) -> tuple[int, int]:
            url = (place.url, second)[number % 2]
            body = {"market_id": 1 + number // 2, "outcome": "Yes"}
            return body["market_id"], place.post("/api/markets/admin/resolve/", body, url).status_code

        with ThreadPoolExecutor(4) as people:
            answers = sorted(people.map(resolve, range(2 * MARKETS)))
        everybody = MARKETS * WINNERS
        until(
            lambda: place.sql(PAID) == [(everybody,)],
            "everybody to be paid",
            lambda: place.log("worker")[-3000:] + place.log("second worker")[-3000:],
        )

        # then: each market was resolved once and settled once, and each payout had one request
        assert answers == [(market, status) for market in range(1, MARKETS + 1) for status in (200, 409)]
        assert place.sql(SETTLED) == [(market, 1) for market in range(1, MARKETS + 1)]
        assert place.sql(SENT) == []
        logs = place.log("worker") + place.log("second worker")
        finished = Counter(re.findall(r"Settled market (\d+):", logs))
        assert finished == {str(market): 1 for market in range(1, MARKETS + 1)}
        sent = Counter(re.findall(r"Initiating B2C payout for transaction (\d+),", logs))
        assert len(sent) == everybody
        assert set(sent.values()) == {1}
        # and: the provider agrees: (500 + 500) × 95 % shared by five is 190 each
        book = place.book()
        assert book["double_paid"] == []
        assert (book["totals"]["paid_count"], book["totals"]["paid_total"]) == (everybody, 190 * everybody)
        assert "The books close" in place.manage("reconcile")
