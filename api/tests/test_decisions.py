"""The operator's decisions, over HTTP against the real processes.

The first market is decided twice too early: its decisions are previewed, approved, withdrawn and undone. In the second
market an outcome is scratched, and the event ended before bets were closed. This market is certified and disputed.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from testing.running import PIN, ROOT, Json, Running, running, until

pytestmark = [pytest.mark.journey, pytest.mark.long]

MARKET = """
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="Will it rain tomorrow?", category="Environment", end_date="2099-02-17")
for phone, outcome, amount in (("0712345678", "Yes", 100), ("0712345679", "Yes", 100), ("0712345680", "No", 200)):
    user = CustomUser.objects.create_user(phone_number=phone, full_name="Member", pin="1234")
    Bet.objects.create(user=user, market=market, outcome=outcome, amount=amount)
"""
ADMIN = "/api/markets/admin/"


class SecondPerson:
    """The second member of staff, who approves."""

    def __init__(self, place: Running) -> None:
        self.place = place
        words = ("createsuperuser", "--noinput", "--phone_number", "254700000002", "--full_name", "Second")
        place.manage(*words, DJANGO_SUPERUSER_PASSWORD=PIN)
        credentials = {"phone_number": "254700000002", "pin": PIN}
        token = requests.post(f"{place.url}/api/users/login/", json=credentials, timeout=30).json()["token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    def approve(self, proposed: Json) -> Json:
        """Approve a proposal by its preview hash."""
        body = {"proposal_id": proposed["proposal_id"], "preview_hash": proposed["preview_hash"]}
        url = f"{self.place.url}{ADMIN}approve/"
        answer = requests.post(url, json=body, headers=self.headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()


def propose(place: Running, call: str, **body: object) -> Json:
    answer = place.post(f"{ADMIN}{call}/", {"market_id": 1, **body})
    assert (answer.status_code, answer.json()["status"]) == (202, "proposed"), answer.text
    return answer.json()


def wait(place: Running, status: str, **counts: int) -> Json:
    """Wait until the market has a status and these counts of payouts by state."""

    def reached() -> Json | None:
        current = place.status(1)
        states = current["payout_count"]
        matches = current["status"] == status and all(states[name] == count for name, count in counts.items())
        return current if matches else None

    return until(reached, f"the market to be {status} with {counts}", lambda: place.log("worker")[-4000:])


def test_market_decided_twice_too_early_pays_the_right_winner_once(tmp_path: Path) -> None:
    with running(
        tmp_path,
        SWEEP_EVERY_SECONDS="1",
        RESOLVE_APPROVAL_ABOVE="100",
        SETTLEMENT_HOLD_MINUTES="0,400:30",
        PAYOUT_CANARY="off",
    ) as place:
        place.start_simulator("--phone-fault=254712345679=fail:2040x1")
        place.start_web_and_worker()
        place.log_in()
        second = SecondPerson(place)
        place.manage("shell", typed=MARKET)

        # when: it is previewed, proposed, and approved by the same hash
        (preview,) = place.get(f"{ADMIN}settlement-preview/1/?outcome=Yes").json()["previews"]
        proposed = propose(place, "resolve", outcome="Yes", preview_hash=preview["preview_hash"])
        assert (preview["platform_fee"], preview["winners"], preview["payouts"]["by_mpesa"]) == ("20.00", 2, "380.00")
        assert proposed["preview_hash"] == preview["preview_hash"]
        assert second.approve(proposed)["outcome"] == "Yes"

        # then: its payouts are held, nothing leaves, and members see that the result may still change
        assert wait(place, "SETTLED", pending=2)["total_payouts"] == "380.00"
        assert place.get("/api/markets/1/").json()["provisional"] is True
        assert place.book()["payments"] == []

        # when: it is withdrawn in time, and resolved again without a hold
        withdrawn = place.post(f"{ADMIN}withdraw/", {"market_id": 1, "reason": "Not official yet."})
        assert withdrawn.status_code == 200, withdrawn.text
        wait(place, "CLOSED")
        place.stop("worker")
        place.environment["SETTLEMENT_HOLD_MINUTES"] = "0"
        place.start_worker()
        second.approve(propose(place, "resolve", outcome="Yes"))

        # then: one of two payouts is completed, the other fails
        wait(place, "SETTLED", completed=1, failed=1)

        # when: the right outcome is No, and two people undo the settlement
        assert second.approve(propose(place, "undo", reason="It did not rain."))["status"] == "undoing"
        wait(place, "CLOSED")

        # then: the winner who was wrongly paid owes the dividend
        (receivable,) = place.get("/api/payments/admin/recoveries/").json()["recoveries"]
        assert (receivable["market_id"], receivable["outstanding"]) == (1, "190.00")

        # when
        second.approve(propose(place, "resolve", outcome="No", evidence_note="The weather service says so."))

        # then: the rightful winner is paid, once
        wait(place, "SETTLED", completed=1)
        book = place.book()
        assert book["double_paid"] == []
        assert sorted((payment["phone"], payment["amount"]) for payment in book["payments"] if payment["receipt"]) == [
            ("254712345678", 190),
            ("254712345680", 380),
        ]
        assert "The books close" in place.manage("reconcile")
        place.manage("verify_audit")
        (cost,) = place.get("/api/payments/admin/undo-costs/").json()["by_market"]
        assert (cost["undone"], cost["wrongly_paid"], cost["charges"]) == (2, "190.00", "5.00")


RACE = """
from datetime import timedelta
from django.utils import timezone
from markets.models import Bet, Market
from users.models import CustomUser
race = Market.objects.create(question="Who wins?", outcome_names=("Achieng", "Baraka", "Chebet"), end_date="2099-02-17")
match = Market.objects.create(question="Who scores first?", end_date="2099-02-17")
long_ago, just_now = timezone.now() - timedelta(hours=2), timezone.now() - timedelta(minutes=1)
for phone, market, outcome, amount, at in (
    ("0712345678", race, "Achieng", 100, long_ago), ("0712345679", race, "Achieng", 100, long_ago),
    ("0712345680", race, "Baraka", 200, long_ago), ("0712345681", race, "Chebet", 50, long_ago),
    ("0712345682", race, "Baraka", 60, just_now), ("0712345683", match, "Yes", 70, long_ago),
):
    user = CustomUser.objects.create_user(phone_number=phone, full_name="Member", pin="1234")
    Bet.objects.create(user=user, market=market, outcome=outcome, amount=amount, placed_at=at)
"""
WINNER, UNPAID, LOSER, SCRATCHED, LATE, VOIDED = (f"2547123456{number}" for number in (78, 79, 80, 81, 82, 83))


class Member:
    """A member over HTTP, with one bet."""

    def __init__(self, place: Running, phone: str) -> None:
        self.place, self.phone = place, phone
        credentials = {"phone_number": phone, "pin": PIN}
        token = requests.post(f"{place.url}/api/users/login/", json=credentials, timeout=30).json()["token"]
        self.headers = {"Authorization": f"Bearer {token}"}
        ((self.bet,),) = place.sql(
            "SELECT b.public_id::text FROM markets_bet b JOIN users_customuser u ON u.id = b.user_id"  # noqa: S608
            f" WHERE u.phone_number = '{phone}'"
        )

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.place.url}{path}", headers=self.headers, timeout=30)

    def dispute(self, path: str, text: str) -> Json:
        url = f"{self.place.url}{path}"
        opened = requests.post(url, json={"text": text}, headers=self.headers, timeout=30)
        assert opened.status_code == 201, opened.text
        return opened.json()["dispute"]

    def was_told(self, words: str) -> bool:
        return words in self.get("/api/users/me/notices/").text


def balance(place: Running, phone: str) -> str:
    ((money,),) = place.sql(f"SELECT balance::text FROM users_customuser WHERE phone_number = '{phone}'")  # noqa: S608
    return str(money)


def paid_phones(place: Running) -> list[str]:
    return [payment["phone"] for payment in place.book()["payments"] if payment["receipt"]]


def verified_alone(*files: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "docs" / "verify_settlement.py"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_scratched_market_closed_earlier_is_certified_and_disputed(tmp_path: Path) -> None:
    with running(tmp_path, SWEEP_EVERY_SECONDS="1", PAYOUT_CANARY="off") as place:
        place.start_simulator(f"--phone-fault={UNPAID}=fail:2040")
        place.start_web_and_worker()
        place.log_in()
        place.manage("shell", typed=RACE)
        winner, unpaid, loser = Member(place, WINNER), Member(place, UNPAID), Member(place, LOSER)

        # when: a runner does not start, another market is voided, and the race ended an hour ago
        out = place.post(f"{ADMIN}scratch/", {"market_id": 1, "outcome": "Chebet", "reason": "She did not start."})
        assert out.status_code == 200, out.text
        off = place.post(f"{ADMIN}void/", {"market_id": 2, "reason": "postponed"})
        assert off.status_code == 200, off.text
        until(lambda: balance(place, SCRATCHED) == "50.00", "the stake on the scratched outcome")
        until(lambda: balance(place, VOIDED) == "70.00", "the stake in the voided market")
        assert place.get("/api/markets/1/").json()["status"] == "OPEN"
        ended = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        decision = {"outcome": "Achieng", "effective_close_at": ended, "evidence_url": "https://example.org/race"}
        declared = place.post(f"{ADMIN}resolve/", {"market_id": 1, **decision})
        assert declared.status_code == 200, declared.text

        # then: the late stake is returned before the division, and one of two winners cannot be paid
        wait(place, "SETTLED", failed=1)
        until(
            lambda: [p["phone"] for p in place.book()["payments"] if p["receipt"]] == [WINNER], "the winner's payment"
        )
        assert (balance(place, LATE), balance(place, LOSER)) == ("60.00", "0.00")

        # then: our command and the separate script verify certificate and proof, and refuse a changed cent
        saved, forged, mine = tmp_path / "saved.json", tmp_path / "forged.json", tmp_path / "mine.json"
        saved.write_bytes(requests.get(f"{place.url}/api/markets/1/settlement/", timeout=30).content)
        mine.write_bytes(winner.get(f"/api/markets/1/bets/{winner.bet}/explanation/").content)
        place.manage("verify_settlement", str(saved))
        assert "https://example.org/race" in saved.read_text()
        assert json.loads(mine.read_bytes())["figures"]["dividend"] == "190.00"
        forged.write_text(saved.read_text().replace("190.00", "190.01", 1))
        assert forged.read_text() != saved.read_text()
        for file, status in ((saved, 0), (mine, 0), (forged, 1)):
            verification = verified_alone(file)
            assert verification.returncode == status, verification.stdout + verification.stderr
        with pytest.raises(AssertionError, match=r"it must be 190\.00"):
            place.manage("verify_settlement", str(forged))

        # when: the unpaid winner and the loser dispute
        ((payout,),) = place.sql("SELECT public_id::text FROM payments_transaction WHERE status = 'FAILED'")
        about_pay = unpaid.dispute(f"/api/payments/transactions/{payout}/disputes/", "My money has not come.")
        about_bet = loser.dispute(f"/api/markets/1/bets/{loser.bet}/disputes/", "Baraka was first, I saw it.")
        queue = place.get("/api/payments/admin/disputes/?state=OPEN").json()
        decide = "/api/payments/admin/disputes/{}/{}/".format
        answers = [
            place.post(decide(about_bet["id"], "answer"), {"text": "The judges' photograph says otherwise."}),
            place.post(decide(about_bet["id"], "reject"), {"text": "The result stands."}),
            place.post(decide(about_pay["id"], "uphold"), {"remedy": "pay_to_wallet", "text": "No M-Pesa there."}),
        ]

        # then: each is explained and decided, its member is told, and the money is in the wallet once
        assert queue["count"] == 2
        assert all(dispute["explanation"] and dispute["history"] for dispute in queue["disputes"])
        assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
        rejected = loser.get("/api/users/me/disputes/").json()["disputes"][0]
        assert rejected["state"] == "REJECTED"
        assert [event["kind"] for event in rejected["history"]] == ["opened", "answered", "rejected"]
        assert loser.was_told("The result stands.")
        assert unpaid.was_told("No M-Pesa there.")
        assert (balance(place, UNPAID), balance(place, WINNER)) == ("190.00", "0.00")
        assert paid_phones(place) == [WINNER]
        assert "The books close" in place.manage("reconcile")
        place.manage("verify_audit")
