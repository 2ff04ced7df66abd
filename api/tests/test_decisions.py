"""A market that is decided twice too early, by HTTP against the real processes: seen, approved, withdrawn, undone."""

from pathlib import Path

import pytest
import requests

from api.tests.running import PIN, Json, Running, running, until

pytestmark = pytest.mark.journey

MARKET = """
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="Will it rain tomorrow?", category="Environment", end_date="2099-02-17")
for phone, outcome, amount in (("0712345678", "Yes", 100), ("0712345679", "Yes", 100), ("0712345680", "No", 200)):
    user = CustomUser.objects.create_user(phone_number=phone, full_name="Member", pin="1234")
    Bet.objects.create(user=user, market=market, outcome=outcome, amount=amount)
"""
ADMIN = "/api/markets/admin/"


class Second:
    """The second member of staff."""

    def __init__(self, place: Running) -> None:
        self.place = place
        words = ("createsuperuser", "--noinput", "--phone_number", "254700000002", "--full_name", "Second")
        place.manage(*words, DJANGO_SUPERUSER_PASSWORD=PIN)
        credentials = {"phone_number": "254700000002", "pin": PIN}
        token = requests.post(f"{place.url}/api/users/login/", json=credentials, timeout=30).json()["token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    def approve(self, proposed: Json) -> Json:
        body = {"proposal_id": proposed["proposal_id"], "preview_hash": proposed["preview_hash"]}
        url = f"{self.place.url}{ADMIN}approve/"
        answered = requests.post(url, json=body, headers=self.headers, timeout=30)
        assert answered.status_code == 200, answered.text
        return answered.json()


def propose(place: Running, call: str, **body: object) -> Json:
    answered = place.post(f"{ADMIN}{call}/", {"market_id": 1, **body})
    assert (answered.status_code, answered.json()["status"]) == (202, "proposed"), answered.text
    return answered.json()


def wait(place: Running, status: str, **counts: int) -> Json:
    """Wait until the market has a status and so many of its payouts are in these states."""

    def found() -> Json | None:
        now = place.status(1)
        there = now["status"] == status and all(now["payout_count"][name] == count for name, count in counts.items())
        return now if there else None

    return until(found, f"the market to be {status} with {counts}", lambda: place.log("worker")[-4000:])


def test_seen_approved_withdrawn_resolved_half_paid_undone_and_resolved_rightly(tmp_path: Path) -> None:
    with running(
        tmp_path,
        SWEEP_EVERY_SECONDS="1",
        RESOLVE_APPROVAL_ABOVE="100",
        SETTLEMENT_HOLD_MINUTES="0,400:30",
        PAYOUT_CANARY="off",
    ) as place:
        place.start_simulator("--phone-fault=254712345679=fail:2040x1")
        place.start_web()
        place.start_worker()
        place.log_in()
        second = Second(place)
        place.manage("shell", typed=MARKET)

        # when: it is seen, proposed, and approved by the same hash
        (seen,) = place.get(f"{ADMIN}settlement-preview/1/?outcome=Yes").json()["previews"]
        proposed = propose(place, "resolve", outcome="Yes", preview_hash=seen["preview_hash"])
        assert (seen["platform_fee"], seen["winners"], seen["payouts"]["by_mpesa"]) == ("20.00", 2, "380.00")
        assert proposed["preview_hash"] == seen["preview_hash"]
        assert second.approve(proposed)["outcome"] == "Yes"

        # then: it is held, nothing leaves, and members see that it may still change
        assert wait(place, "SETTLED", pending=2)["total_payouts"] == "380.00"
        assert place.get("/api/markets/1/").json()["provisional"] is True
        assert place.book()["payments"] == []

        # when: withdrawn in time, and declared again without a hold
        withdrawn = place.post(f"{ADMIN}withdraw/", {"market_id": 1, "reason": "Not official yet."})
        assert withdrawn.status_code == 200, withdrawn.text
        wait(place, "CLOSED")
        place.stop("worker")
        place.environment["SETTLEMENT_HOLD_MINUTES"] = "0"
        place.start_worker()
        second.approve(propose(place, "resolve", outcome="Yes"))

        # then: half of it is paid, the other half fails
        wait(place, "SETTLED", completed=1, failed=1)

        # when: it was No, and two people undo it
        assert second.approve(propose(place, "undo", reason="It did not rain."))["status"] == "undoing"
        wait(place, "CLOSED")

        # then: what was carried is owed
        (owed,) = place.get("/api/payments/admin/recoveries/").json()["recoveries"]
        assert (owed["market_id"], owed["outstanding"]) == (1, "190.00")

        # when
        second.approve(propose(place, "resolve", outcome="No", evidence_note="The weather service says so."))

        # then: the rightful winner is paid, once
        wait(place, "SETTLED", completed=1)
        book = place.book()
        assert book["double_paid"] == []
        assert sorted((paid["phone"], paid["amount"]) for paid in book["payments"] if paid["receipt"]) == [
            ("254712345678", 190),
            ("254712345680", 380),
        ]
        assert "The books close" in place.manage("reconcile")
        place.manage("verify_audit")
        (cost,) = place.get("/api/payments/admin/undo-costs/").json()["by_market"]
        assert (cost["undone"], cost["wrongly_paid"], cost["charges"]) == (2, "190.00", "5.00")
