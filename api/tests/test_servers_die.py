"""PostgreSQL stopped and Redis emptied and killed during payouts: every winner is paid once."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from testing.running import until
from testing.supervised import Servers, Supervised

pytestmark = [pytest.mark.journey, pytest.mark.servers, pytest.mark.long]

WINNERS = 60
MARKET_WITH_WINNERS = f"""
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="Will it rain tomorrow?", end_date="2026-02-17", platform_fee_pct=5)
users = CustomUser.objects.bulk_create(
    [CustomUser(phone_number=f"2547000{{number:05d}}", password="!") for number in range(100, 100 + {WINNERS} + 1)]
)
Bet.objects.bulk_create([Bet(user=user, market=market, outcome="Yes", amount=100) for user in users[:-1]])
Bet.objects.create(user=users[-1], market=market, outcome="No", amount=6000)
"""
DIVIDEND = 190  # The pool of 12,000, less five per cent, by sixty.
SHORT = {
    "PAYOUT_TPS": "20",
    "SWEEP_EVERY_SECONDS": "1",
    "PAYOUT_QUERY_AFTER": "2",
    "PAYOUT_QUERY_GAP": "2",
    "PAYOUT_RETRY_AFTER": "1",
    "PAYOUT_CANARY": "off",
}


@pytest.fixture
def servers() -> Iterator[Servers]:
    # Not pytest's tmp_path, because root's servers run as another user, who may not enter it.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        pair = Servers(Path(directory))
        yield pair
        pair.stop()


@pytest.fixture
def place(servers: Servers, tmp_path: Path) -> Iterator[Supervised]:
    urls = servers.urls
    place = Supervised(tmp_path, urls["DATABASE_URL"], {**urls, **SHORT})
    place.manage("migrate", "--verbosity", "0")
    yield place
    place.stop_all()


def paid(place: Supervised) -> int:
    """Return the number of completed payouts, or 0 while PostgreSQL does not answer."""
    try:
        ((count,),) = place.sql("SELECT count(*) FROM payments_transaction WHERE status = 'COMPLETED'")
    except psycopg2.OperationalError:
        return 0
    return count


def await_paid(place: Supervised, at_least: int) -> None:
    until(lambda: paid(place) >= at_least, f"{at_least} payouts", lambda: place.log("worker")[-6000:])


def test_stopped_postgres_and_emptied_redis_pay_everybody_once(place: Supervised, servers: Servers) -> None:
    # given: ten results that never come, so that some payouts are unpaid at the first death on any machine
    silent = [f"--phone-fault=2547000{number:05d}=callback_lost" for number in range(150, 160)]
    place.start_simulator("--callback-delay", "0.2", *silent)
    place.start_web()
    place.start_beat()
    place.start_worker()
    place.log_in()
    place.manage("shell", typed=MARKET_WITH_WINNERS)
    place.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})

    # when
    await_paid(place, 3)
    servers.lose_redis()
    before_redis_died = paid(place)
    servers.restart()
    await_paid(place, before_redis_died + 1)
    servers.crash_postgres()
    servers.restart()
    before_postgres_died = paid(place)
    await_paid(place, WINNERS)

    # then
    assert 3 <= before_redis_died < before_postgres_died < WINNERS, "The deaths came too late to prove anything."
    assert place.names_of_ended() == []
    book = place.book()
    assert book["double_paid"] == []
    assert (book["totals"]["paid_count"], book["totals"]["paid_total"]) == (WINNERS, WINNERS * DIVIDEND)
    ours = place.sql(
        "SELECT originator_conversation_id, amount::int, phone_number, receipt, lower(state) FROM payments_attempt"
    )
    provider_payments = [
        (payment["ocid"], payment["amount"], payment["phone"], payment["receipt"], payment["state"])
        for payment in book["payments"]
    ]
    assert sorted(ours) == sorted(provider_payments)
    assert "The books close" in place.manage("reconcile")
