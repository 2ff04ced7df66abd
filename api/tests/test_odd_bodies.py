"""Results in the forms that come in the wild complete their payouts, over HTTP against the real processes."""

from pathlib import Path

import pytest

from testing.running import running, until

pytestmark = [pytest.mark.journey, pytest.mark.long]

FORMS = ("chunked", "bom", "windows_1252", "control", "parameters")
MARKET = """
from markets.models import Bet, Market
from users.models import CustomUser
market = Market.objects.create(question="Will it rain tomorrow?", category="Environment", end_date="2026-02-17")
for number in range(6):
    user = CustomUser.objects.create_user(phone_number=f"071234567{number}", full_name="Member", pin="1234")
    Bet.objects.create(user=user, market=market, outcome="No" if number == 5 else "Yes", amount=100)
"""


def test_every_odd_form_of_a_result_completes_its_payout(tmp_path: Path) -> None:
    # given: status queries come too late to help, so only the results can complete the payouts
    with running(tmp_path, SWEEP_EVERY_SECONDS="1", PAYOUT_QUERY_AFTER="3600", PAYOUT_CANARY="off") as place:
        place.start_simulator(
            *(f"--phone-fault=25471234567{number}=odd_body:{form}" for number, form in enumerate(FORMS))
        )
        place.start_web_and_worker()
        place.log_in()
        place.manage("shell", typed=MARKET)

        # when
        answer = place.post("/api/markets/admin/resolve/", {"market_id": 1, "outcome": "Yes"})
        assert answer.status_code == 200, answer.text

        # then
        until(
            lambda: place.status(1)["payout_count"]["completed"] == len(FORMS),
            "all payouts to be completed",
            lambda: str(place.status(1)) + place.log("worker")[-4000:],
        )
        assert "The books close" in place.manage("reconcile")
