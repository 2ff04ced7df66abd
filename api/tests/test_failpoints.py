"""Every failpoint: SIGKILL ends a real process there, and every winner is still paid exactly once.

All rounds use one installation. In each round the web process or the worker dies at one failpoint while a small market
goes from bets to payouts. The process is then started again, and the sweeps do the rest. The next worker usually dies
at the next failpoint, even if it is still recovering the work of the last one.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
import requests

from payments import failpoints
from testing.running import PIN, until
from testing.supervised import Supervised, supervised

pytestmark = [pytest.mark.journey, pytest.mark.long]

# The failpoint of the worker, and the failpoint of the web process at another moment of the same round.
ROUNDS = (
    ("settlement step before commit", "bet before commit"),
    ("settlement step after commit", "bet after commit"),
    ("claim before commit", "callback before store"),
    ("claim after commit", "callback after store"),
    ("request written", ""),
    ("answer read", ""),
    ("record after commit", ""),
    ("apply before evidence", ""),
    ("apply before commit", ""),
    ("sweep between rows", ""),
    ("question after commit", ""),
    ("status query posted", ""),
)
# The failpoints of two workers, one after the other, while the first market is undone after its payment.
UNDOS = ("undo step before commit", "undo step after commit")
STAKES = (("254700000101", "Yes", "100"), ("254700000102", "Yes", "100"), ("254700000103", "No", "200"))
DIVIDEND = 190  # The pool of 400, less five per cent, halved.
MEMBERS_AND_MARKETS = f"""
from markets.models import Market
from users.models import CustomUser
for phone, _, _ in {STAKES}:
    CustomUser.objects.create_user(phone_number=phone, full_name="Member", pin="{PIN}", balance=10_000)
for number in range({len(ROUNDS)}):
    Market.objects.create(question=f"Will it rain on day {{number}}?", end_date="2099-12-31", platform_fee_pct=5)
"""
SHORT = {
    "PAYOUT_TPS": "20",
    "SWEEP_EVERY_SECONDS": "1",
    "PAYOUT_QUERY_AFTER": "1",
    "PAYOUT_QUERY_GAP": "1",
    "PAYOUT_RETRY_AFTER": "1",
    "PAYOUT_CANARY": "off",
}
FIRST_WINNER = STAKES[0][0]
# The simulator's fault for the first winner's payment, which leads the worker to the failpoint.
FAULTS = {
    "record after commit": "spike_arrestx1",
    "question after commit": "callback_lost",
    "status query posted": "callback_lost",
    # Proven payments are booked in bulk. The evidence at this failpoint is weighed alone.
    "sweep between rows": "system_17:executed",
}


class Members:
    """The members' calls over HTTP, each with the member's own token."""

    def __init__(self, place: Supervised) -> None:
        self._place = place
        self._tokens = {
            phone: place.post("/api/users/login/", {"phone_number": phone, "pin": PIN}).json()["token"]
            for phone, _, _ in STAKES
        }

    def bet(self, market_id: int, phone: str, outcome: str, amount: str) -> int:
        """POST a bet with the same key each time, and return the status of the answer."""
        answer = requests.post(
            f"{self._place.url}/api/markets/{market_id}/bets/",
            json={"outcome": outcome, "amount": amount},
            headers={"Authorization": f"Bearer {self._tokens[phone]}", "Idempotency-Key": f"{market_id}-{phone}"},
            timeout=30,
        )
        return answer.status_code


def place_bets(place: Supervised, members: Members, market_id: int, web_dies: str) -> None:
    """Place all bets of a market. If the web process is to die at a bet, it dies at the first, and that is repeated."""
    for phone, outcome, amount in STAKES:
        if phone == FIRST_WINNER and web_dies.startswith("bet"):
            deaths = place.kills_in_web()
            with pytest.raises(requests.ConnectionError):
                members.bet(market_id, phone, outcome, amount)
            place.await_kill_in_web(deaths)
            place.start_web()
            # The bet was placed and never answered, or never placed. The same key shows which.
            assert members.bet(market_id, phone, outcome, amount) == (200 if "after" in web_dies else 201)
        else:
            assert members.bet(market_id, phone, outcome, amount) == 201


def assert_payments_agree(place: Supervised, rounds: int) -> None:
    """Check that the provider paid each winner of each market once, and that our books agree by receipt."""
    book: dict[str, Any] = place.book()
    assert book["double_paid"] == []
    provider_payments = [
        (payment["ocid"], payment["amount"], payment["phone"], payment["receipt"], payment["state"])
        for payment in book["payments"]
    ]
    ours = place.sql(
        "SELECT originator_conversation_id, amount::int, phone_number, receipt, lower(state) FROM payments_attempt"
    )
    assert sorted(provider_payments) == sorted(ours)
    winners = {phone for phone, outcome, _ in STAKES if outcome == "Yes"}
    assert book["totals"]["by_phone"].keys() == winners
    assert book["totals"]["paid_total"] == rounds * len(winners) * DIVIDEND
    assert "The books close" in place.manage("reconcile")


def death_after(market_id: int) -> str:
    """Return the failpoint of the next worker, or an empty text if a web process is to die by a callback.

    In that case the worker must live to receive the results of its payouts, or the next round must start without them.
    """
    following = [*ROUNDS, (UNDOS[0], "")][market_id]
    by_callback = any(web_dies.startswith("callback") for _, web_dies in (ROUNDS[market_id - 1], following))
    return "" if by_callback else following[0]


def await_everybody_is_paid(place: Supervised, markets: int) -> None:
    for market_id in range(1, markets + 1):
        until(
            lambda market_id=market_id: place.status(market_id)["completed_payouts"] == f"{2 * DIVIDEND}.00",
            f"everybody of market {market_id} to be paid",
            lambda: place.log("worker")[-4000:],
        )


def test_process_killed_at_any_failpoint_pays_everybody_once(tmp_path: Path) -> None:
    visited = []
    with supervised(tmp_path, **SHORT) as place:
        # given
        place.start_simulator("--callback-delay", "0.1", "--latency", "0.02")
        place.manage("shell", typed=MEMBERS_AND_MARKETS)
        place.start_beat()
        place.start_web()
        place.log_in()
        members = Members(place)

        for market_id, (worker_dies, web_dies) in enumerate(ROUNDS, start=1):
            # given: callbacks of earlier markets must not kill a web process that is to die by this market's callback
            if market_id > 1 and not death_after(market_id - 1):
                await_everybody_is_paid(place, market_id - 1)
                place.kill("worker")
            if web_dies:
                place.kill("web")
                place.start_web(crash_at=web_dies)

            # when
            place_bets(place, members, market_id, web_dies)
            place.set_fault(FIRST_WINNER, FAULTS.get(worker_dies))
            if not place.runs("worker"):
                place.start_worker(crash_at=worker_dies)
            deaths = place.kills_in_web()
            place.post("/api/markets/admin/resolve/", {"market_id": market_id, "outcome": "Yes"})
            died_by = place.await_kill_of_worker()
            place.start_worker(crash_at=death_after(market_id))
            if web_dies.startswith("callback"):
                place.await_kill_in_web(deaths)
                place.start_web()

            # then
            assert died_by == -signal.SIGKILL, worker_dies
            visited += [name for name in (worker_dies, web_dies) if name]
        await_everybody_is_paid(place, len(ROUNDS))

        # when
        place.post("/api/markets/admin/undo/", {"market_id": 1, "reason": "It did not rain."})
        for number, worker_dies in enumerate(UNDOS, start=1):
            assert place.await_kill_of_worker() == -signal.SIGKILL, worker_dies
            visited.append(worker_dies)
            place.start_worker(crash_at="".join(UNDOS[number:]))

        # then
        until(
            lambda: place.status(1)["status"] == "CLOSED", "market 1 to be undone", lambda: place.log("worker")[-4000:]
        )
        owed = place.sql("SELECT amount::int FROM payments_recovery ORDER BY id")
        assert owed == [(DIVIDEND,)] * 2
        bets = place.sql("SELECT market_id, count(*) FROM markets_bet GROUP BY 1 ORDER BY 1")
        assert bets == [(market_id, len(STAKES)) for market_id in range(1, len(ROUNDS) + 1)]
        assert_payments_agree(place, len(ROUNDS))
    assert sorted(visited) == sorted(failpoints.NAMES)
