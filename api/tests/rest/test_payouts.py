"""Tests of api/rest/payouts.py: one payout with the plan of its win, and the re-issue by two people."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from payments import wiring
from payments.models import Transaction, Verdict
from testing import builders, payout_steps
from testing.builders import AT, bearer, member, nothing_moved, operator, settled_market
from testing.rest import UNREADABLE_BODIES, assert_refused, post
from users.models import CustomUser

PAYOUT = "/api/payments/admin/payouts/{}/"
REISSUE = "/api/payments/admin/reissue-payout/"
CONFIRM = "/api/payments/admin/confirm-reissue/"
REJECT = "/api/payments/admin/reject-reissue/"
OLD, NEW = "254712345678", "254798765432"
GROUNDS = "The member showed the new SIM card."


@pytest.fixture
def api() -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def staff(db: None) -> dict[str, str]:
    return bearer(operator())


@pytest.fixture
def second(db: None) -> dict[str, str]:
    return bearer(operator())


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the views read a time after the failure of the payout."""
    monkeypatch.setattr(wiring, "now", lambda: AT + timedelta(minutes=1))


def failed_at_old_number() -> Transaction:
    """Return a payout that failed at the member's old number. The member has a new number."""
    payout = builders.payout(285, user=member(phone_number=OLD))
    payout_steps.failed(payout)
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number=NEW)
    return payout


def proposed(api: Client, headers: dict[str, str], payout: Transaction) -> int:
    answer = post(api, REISSUE, {"transaction_id": payout.pk, "grounds": GROUNDS}, headers)
    assert answer.status_code == 202, answer.content
    return int(answer.json()["decision_id"])


@pytest.mark.usefixtures("late")
def test_two_people_reissue_a_payout_over_rest(api: Client, staff: dict[str, str], second: dict[str, str]) -> None:
    # given: a retry is refused, and the payout's state names the way out
    payout = failed_at_old_number()
    refused = post(api, "/api/payments/admin/retry-payout/", {"transaction_id": payout.pk}, staff)
    assert_refused(refused, 409, "number_changed")
    assert "reissue" in api.get(PAYOUT.format(payout.pk), headers=staff).json()["actions"]

    # when
    decision_id = proposed(api, staff, payout)

    # then: no money moves until another person confirms it
    shown = api.get(PAYOUT.format(payout.pk), headers=second).json()
    assert (shown["status"], shown["decision"]["decision_id"]) == ("FAILED", decision_id)
    assert (shown["decision"]["phone"], shown["decision"]["grounds"]) == ("2547****432", GROUNDS)
    with nothing_moved():
        assert_refused(post(api, CONFIRM, {"decision_id": decision_id}, staff), 403, "proposer_cannot_confirm")

    # when
    confirmed = post(api, CONFIRM, {"decision_id": decision_id}, second)

    # then
    assert confirmed.status_code == 200, confirmed.content
    assert confirmed.json() == {
        "status": "reissued",
        "transaction_id": payout.pk,
        "new_status": "PENDING",
        "phone": "2547****432",
    }
    payout.refresh_from_db()
    assert (payout.status, payout.receiver) == ("PENDING", NEW)
    shown = api.get(PAYOUT.format(payout.pk), headers=staff).json()
    assert (shown["reissued"], shown["decision"], len(shown["requests"])) == (True, None, 1)
    assert_refused(post(api, CONFIRM, {"decision_id": decision_id}, second), 409, "decision_not_open")


@pytest.mark.usefixtures("late")
def test_rejected_reissue_leaves_the_payout_as_it_was(
    api: Client, staff: dict[str, str], second: dict[str, str]
) -> None:
    payout = failed_at_old_number()
    decision_id = proposed(api, staff, payout)
    assert_refused(
        post(api, REISSUE, {"transaction_id": payout.pk, "grounds": GROUNDS}, second), 409, "not_to_be_decided"
    )
    with nothing_moved():
        answer = post(api, REJECT, {"decision_id": decision_id, "reason": "Not the member's SIM card."}, second)
    assert answer.json() == {"status": "rejected", "decision_id": decision_id, "transaction_id": payout.pk}
    assert Verdict.objects.get().confirmed is False
    proposed(api, second, payout)


@pytest.mark.usefixtures("late")
def test_reject_reissue_does_not_touch_other_decisions(api: Client, staff: dict[str, str]) -> None:
    payout = builders.payout(285)
    verdict = Verdict.objects.create(
        transaction=payout, grounds="Statement.", proposed_by=operator(), proposed_from="10.0.0.1", proposed_at=AT
    )
    for path, body in ((CONFIRM, {}), (REJECT, {"reason": "No."})):
        assert_refused(post(api, path, {"decision_id": verdict.pk, **body}, staff), 409, "decision_not_open")
    verdict.refresh_from_db()
    assert verdict.closed_at is None


@pytest.mark.usefixtures("late")
def test_member_of_staff_cannot_reissue_their_own_payout(api: Client, staff: dict[str, str]) -> None:
    payout = failed_at_old_number()
    CustomUser.objects.filter(pk=payout.user_id).update(is_staff=True)
    headers = bearer(CustomUser.objects.get(pk=payout.user_id))
    body = {"transaction_id": payout.pk, "grounds": GROUNDS}
    assert_refused(post(api, REISSUE, body, headers), 403, "own_payout")
    decision_id = proposed(api, staff, payout)
    assert_refused(post(api, CONFIRM, {"decision_id": decision_id}, headers), 403, "own_payout")


@pytest.mark.parametrize("path", [REISSUE, CONFIRM, REJECT])
@pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES)
def test_unreadable_body_answers_400(api: Client, staff: dict[str, str], path: str, body: bytes) -> None:
    assert post(api, path, body, staff).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (REISSUE, {"transaction_id": 1}, "grounds"),
        (REISSUE, {"transaction_id": "1", "grounds": GROUNDS}, "transaction_id"),
        (REISSUE, {"transaction_id": 1, "grounds": "  "}, "grounds"),
        (REISSUE, {"transaction_id": 1, "grounds": GROUNDS, "phone": NEW}, "phone"),
        (CONFIRM, {"decision_id": 0}, "decision_id"),
        (CONFIRM, {"decision_id": 1, "reason": "x"}, "reason"),
        (REJECT, {"decision_id": 1}, "reason"),
        (REJECT, {"decision_id": 1, "reason": "x" * 301}, "reason"),
    ],
)
def test_wrong_field_answers_400_and_names_it(
    api: Client, staff: dict[str, str], path: str, body: dict[str, Any], field: str
) -> None:
    answer = post(api, path, body, staff)
    assert_refused(answer, 400, "invalid")
    assert list(answer.json()["details"]) == [field]


@pytest.mark.parametrize("path", [REISSUE, CONFIRM, REJECT])
def test_members_may_not_call_staff_calls_of_payouts(db: None, api: Client, path: str) -> None:
    headers = bearer(member())
    assert_refused(post(api, path, {}, headers), 403, "forbidden")
    assert_refused(post(api, path, {}), 401, "not_authenticated")
    assert_refused(api.get(PAYOUT.format(1), headers=headers), 403, "forbidden")


def test_unknown_payout_answers_404(api: Client, staff: dict[str, str]) -> None:
    for unknown in (1, 2**63, 10**30):
        assert_refused(api.get(PAYOUT.format(unknown), headers=staff), 404, "not_found")
    assert_refused(post(api, REISSUE, {"transaction_id": 1, "grounds": GROUNDS}, staff), 404, "transaction_not_found")
    assert_refused(post(api, CONFIRM, {"decision_id": 1}, staff), 409, "decision_not_open")


def test_status_of_a_large_win_shows_every_day_and_its_end(
    api: Client, staff: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: 20 days at 500,000 a day; the list shows 14 of them
    monkeypatch.setattr(wiring, "now", lambda: AT)
    market = settled_market([(member(), "Yes", 10_000_000)], fee_pct=0)
    payout = Transaction.objects.filter(settlement__market=market, destination="mpesa").order_by("tranche")[0]

    # when
    plan = api.get(PAYOUT.format(payout.pk), headers=staff).json()["plan"]

    # then
    assert (plan["tranches"], plan["waiting"], plan["amount"]) == (40, 40, "10000000.00")
    assert plan["days"][0] == {"day": "2026-02-16", "count": 2, "amount": "500000.00"}
    assert len(plan["days"]) == 14
    assert plan["ends_on"] == str(date(2026, 2, 16) + timedelta(days=19))


def test_status_names_what_a_payout_waits_for(
    api: Client, staff: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "now", lambda: AT)
    payout = builders.payout(285)
    due = datetime(2026, 2, 16, 9, 0, tzinfo=UTC)
    Transaction.objects.filter(pk=payout.pk).update(due_at=due)
    answer = api.get(PAYOUT.format(payout.pk), headers=staff).json()
    assert answer["waits_for"] == [{"cause": "the time at which it is due", "until": "2026-02-16T09:00:00Z"}]
    assert answer["plan"] is None
    assert payout.phone_number not in json.dumps(answer)


@pytest.mark.usefixtures("late")
def test_documents_show_the_keys_of_real_answers(api: Client, staff: dict[str, str], second: dict[str, str]) -> None:
    # given
    text = (Path(settings.BASE_DIR) / "docs" / "api.md").read_text(encoding="utf-8")
    section = text.partition("### Example: re-issue a payout")[2].partition("\n### ")[0]
    examples = [json.loads(line) for line in re.findall(r"^# (\{.*\})$", section, re.M)]
    payout = failed_at_old_number()

    # when
    first = post(api, REISSUE, {"transaction_id": payout.pk, "grounds": GROUNDS}, staff).json()
    shown = api.get(PAYOUT.format(payout.pk), headers=staff).json()
    confirmed = post(api, CONFIRM, {"decision_id": first["decision_id"]}, second).json()

    # then
    assert [list(example) for example in examples] == [list(first), list(confirmed)]
    named = section.partition("keys:")[2].partition(".")[0]
    assert [key.strip() for key in named.replace("\n", " ").split(",")] == list(shown)
