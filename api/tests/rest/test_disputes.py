"""Disputes over HTTP: the endpoints of members and of staff."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from payments.models import Dispute, Settlement
from testing.builders import AT, bearer, member, operator
from testing.dispute_steps import TEXT, decide, dispute, failed_payout, lost_bet, notices_of, reply
from testing.rest import UNREADABLE_BODIES, assert_refused, post
from users.models import AuditEntry, CustomUser


@pytest.fixture
def user(db: None) -> CustomUser:
    return member(full_name="Amina")


@pytest.fixture
def staff(db: None) -> CustomUser:
    return operator()


def test_disputed_result_is_stored_and_the_member_told_the_deadline(user: CustomUser, client: Client) -> None:
    # given
    lost = lost_bet(user, timezone.now())

    # when
    path = f"/api/markets/{lost.market_id}/bets/{lost.public_id}/disputes/"
    answer = post(client, path, {"text": f"  {TEXT} "}, bearer(user))

    # then
    assert answer.status_code == 201
    opened = Dispute.objects.get()
    body = answer.json()["dispute"]
    assert (body["id"], body["bet_id"], body["transaction_id"]) == (str(opened.public_id), str(lost.public_id), None)
    assert (body["state"], body["overdue"], body["remedy"]) == ("OPEN", False, None)
    assert [(entry["kind"], entry["by"], entry["text"]) for entry in body["history"]] == [("opened", "member", TEXT)]
    assert opened.due_at - opened.opened_at == timedelta(hours=72)
    assert opened.settlement == Settlement.objects.get()
    assert notices_of(user) == ["We have your dispute of the bet of KES 200.00 on No. We will answer within 72 hours."]
    entry = AuditEntry.objects.get(action="dispute.open")
    assert (entry.actor_id, entry.source, entry.subject) == (user.pk, "127.0.0.1", f"dispute:{opened.public_id}")


def test_disputed_payout_is_stored_and_the_member_told_the_deadline(user: CustomUser, client: Client) -> None:
    payout = failed_payout(user, timezone.now())
    answer = post(client, f"/api/payments/transactions/{payout.public_id}/disputes/", {"text": TEXT}, bearer(user))
    assert (answer.status_code, answer.json()["dispute"]["transaction_id"]) == (201, str(payout.public_id))
    assert notices_of(user) == ["We have your dispute of the payout of KES 285.00. We will answer within 72 hours."]


def test_queue_is_ordered_by_deadline_with_history_and_explanation(
    user: CustomUser, staff: CustomUser, client: Client
) -> None:
    # given: the second dispute was answered and reopened, so its deadline is later; both are overdue
    payout, lost = failed_payout(user), lost_bet(user)
    second, first = dispute(payout), dispute(lost, AT + timedelta(hours=1))
    decide(second, "answer", staff)
    reply(second, AT + timedelta(hours=2))

    # when
    queue = client.get("/api/payments/admin/disputes/?state=OPEN", headers=bearer(staff)).json()

    # then
    assert queue["count"] == 2
    assert [entry["id"] for entry in queue["disputes"]] == [str(first.public_id), str(second.public_id)]
    about_bet, about_payout = queue["disputes"]
    assert about_bet["overdue"]
    assert about_payout["overdue"]
    assert about_bet["explanation"]["sentence"].startswith('Your KES 200.00 on "No" did not win')
    assert about_payout["explanation"]["status"] == "FAILED"
    assert about_payout["explanation"]["reason"]
    assert [event["kind"] for event in about_payout["history"]] == ["opened", "answered", "replied"]
    masked = f"2547****{user.phone_number[-3:]}"
    assert about_bet["member"] == {"id": str(user.public_id), "full_name": "Amina", "phone_number": masked}
    answered = client.get("/api/payments/admin/disputes/?state=ANSWERED", headers=bearer(staff)).json()
    assert answered == {"count": 0, "disputes": []}
    assert client.get("/api/payments/admin/disputes/", headers=bearer(staff)).json()["count"] == 2
    refused = client.get("/api/payments/admin/disputes/?state=open", headers=bearer(staff))
    assert_refused(refused, 400, "invalid")


def test_dispute_runs_from_opening_to_remedy_over_http(
    user: CustomUser, staff: CustomUser, client: Client, queued: Callable[[], list[Any]]
) -> None:
    # given
    payout, by_member, by_staff = failed_payout(user, timezone.now()), bearer(user), bearer(staff)
    opened = post(client, f"/api/payments/transactions/{payout.public_id}/disputes/", {"text": TEXT}, by_member).json()
    dispute_id = opened["dispute"]["id"]
    admin = f"/api/payments/admin/disputes/{dispute_id}"

    # when
    answered = post(client, f"{admin}/answer/", {"text": "We are looking."}, by_staff)
    replied = post(client, f"/api/users/me/disputes/{dispute_id}/reply/", {"text": "And what did you see?"}, by_member)
    upheld = post(client, f"{admin}/uphold/", {"remedy": "resend", "text": "It goes again."}, by_staff)

    # then
    states = [answer.json()["dispute"]["state"] for answer in (answered, replied, upheld)]
    assert states == ["ANSWERED", "OPEN", "UPHELD"]
    assert upheld.json()["dispute"]["remedy_state"] == "DUE"
    assert [(name, arguments) for name, _, arguments in queued()] == [
        ("payments.settlement_tasks.ask_about_doubts", []),
        ("payments.settlement_tasks.send_b2c_payout", [payout.pk]),
    ]
    (seen,) = client.get("/api/users/me/disputes/", headers=by_member).json()["disputes"]
    assert [event["by"] for event in seen["history"]] == ["member", "operator", "member", "operator"]
    assert str(staff.pk) not in {str(event["by"]) for event in seen["history"]}
    notices = client.get("/api/users/me/notices/", headers=by_member).json()["notices"]
    assert [notice["text"] for notice in notices] == notices_of(user)[::-1]
    assert {notice["sent_at"] for notice in notices} == {None}
    assert_refused(post(client, f"{admin}/reject/", {"text": "Too late."}, by_staff), 409, "dispute_moved")
    assert client.get("/api/users/me/disputes/", headers=bearer(member())).json() == {"disputes": []}
    assert client.get("/api/users/me/notices/", headers=bearer(member())).json() == {"notices": []}


def test_each_endpoint_admits_only_its_callers(user: CustomUser, staff: CustomUser, client: Client) -> None:
    # given
    now = timezone.now()
    lost, payout = lost_bet(user, now), failed_payout(user, now)
    opened = dispute(payout, now)
    decide(opened, "answer", staff, now)
    other, admin = member(), f"/api/payments/admin/disputes/{opened.public_id}"
    uphold = {"remedy": "none", "text": "Indeed."}
    routes = [  # path, body, status for another member, status for staff
        (f"/api/markets/{lost.market_id}/bets/{lost.public_id}/disputes/", {"text": TEXT}, 404, 404),
        (f"/api/payments/transactions/{payout.public_id}/disputes/", {"text": TEXT}, 404, 404),
        (f"/api/users/me/disputes/{opened.public_id}/reply/", {"text": TEXT}, 404, 404),
        (f"{admin}/answer/", {"text": "Indeed."}, 403, 409),
        (f"{admin}/uphold/", uphold, 403, 200),
        (f"{admin}/reject/", {"text": "Indeed."}, 403, 409),
    ]

    # then
    for path, body, as_other, as_staff in routes:
        assert_refused(post(client, path, body), 401, "not_authenticated")
        assert post(client, path, body, bearer(other)).status_code == as_other, path
        assert client.get(path, headers=bearer(staff)).status_code == 405
        assert post(client, path, body, bearer(staff)).status_code == as_staff, path
    for path, as_member in (("users/me/disputes/", 200), ("users/me/notices/", 200), ("payments/admin/disputes/", 403)):
        assert client.get(f"/api/{path}").status_code == 401
        assert client.get(f"/api/{path}", headers=bearer(user)).status_code == as_member
        assert client.get(f"/api/{path}", headers=bearer(staff)).status_code == 200
    for path in (admin.replace(str(opened.public_id), str(uuid4())), admin[:-1] + "x"):
        assert post(client, f"{path}/answer/", {"text": "Indeed."}, bearer(staff)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": None},
        {"text": 1234567890},
        {"text": ["The match ended 2:1."]},
        {"text": "too short"},
        {"text": "   short      "},
        {"text": "x" * 2001},
        {"text": TEXT, "amount": 5},
    ],
)
def test_text_outside_10_to_2000_characters_is_refused(user: CustomUser, client: Client, body: Any) -> None:
    lost = lost_bet(user, timezone.now())
    path = f"/api/markets/{lost.market_id}/bets/{lost.public_id}/disputes/"
    assert_refused(post(client, path, body, bearer(user)), 400, "invalid")
    assert not Dispute.objects.exists()
    for text in ("x" * 10, "x" * 2000):
        assert post(client, path, {"text": text}, bearer(user)).status_code == 201
        Dispute.objects.filter(state="OPEN").update(state="UPHELD")


@pytest.mark.parametrize(
    "body",
    [{"text": "Indeed."}, {"remedy": "cash", "text": "Indeed."}, {"remedy": ["none"], "text": "Indeed."},
     {"remedy": "none"}, {"remedy": None, "text": "Indeed."}, {"remedy": "none", "text": "x"}],
)  # fmt: skip
def test_uphold_without_a_known_remedy_is_refused(
    user: CustomUser, staff: CustomUser, client: Client, body: Any
) -> None:
    opened = dispute(lost_bet(user))
    answer = post(client, f"/api/payments/admin/disputes/{opened.public_id}/uphold/", body, bearer(staff))
    assert_refused(answer, 400, "invalid")
    opened.refresh_from_db()
    assert opened.state == "OPEN"


def test_unreadable_bodies_are_refused(user: CustomUser, staff: CustomUser, client: Client) -> None:
    opened, by_member, by_staff = dispute(lost_bet(user)), bearer(user), bearer(staff)
    for path, headers in (
        (f"/api/markets/{opened.bet.market_id}/bets/{opened.bet.public_id}/disputes/", by_member),
        (f"/api/payments/transactions/{uuid4()}/disputes/", by_member),
        (f"/api/users/me/disputes/{opened.public_id}/reply/", by_member),
        (f"/api/payments/admin/disputes/{opened.public_id}/uphold/", by_staff),
    ):
        for name, body in UNREADABLE_BODIES.items():
            assert post(client, path, body, headers).status_code == 400, (path, name)
