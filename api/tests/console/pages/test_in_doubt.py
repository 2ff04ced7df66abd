"""Page of the payouts in doubt: the requests that our books do not have."""

from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from testing import lost_commits
from testing.payout_steps import ACCEPTED, RECEIPT, after, result_body, status_body


def lost_payment(*, until: int) -> str:
    """Store the result of a request that is lost, sweep until `until` seconds later, and return the request's id."""
    loss = lost_commits.Loss()
    loss.send(ACCEPTED)
    loss.lose()
    (lost,) = loss.lost
    lost_commits.store_result(lost, result_body(lost), after(10))
    lost_commits.answer_about_orphan(status_body(lost), after(11))
    lost_commits.sweep(after(until))
    return lost.originator_conversation_id


def test_lost_request_is_listed_with_amount_receipt_and_masked_phone(console: Client) -> None:
    ocid = lost_payment(until=400)
    page = console.get(reverse("admin:in_doubt")).content.decode()
    assert all(text in page for text in (ocid, "285", RECEIPT, "2547****", "in suspense", "runbook"))


def test_page_without_lost_requests_says_nothing_about_them(console: Client) -> None:
    assert "our books do not have" not in console.get(reverse("admin:in_doubt")).content.decode()


def test_command_lists_lost_requests(db: None, capsys: object) -> None:
    ocid = lost_payment(until=20)
    call_command("in_doubt")
    assert f"request {ocid}, which our books do not have" in capsys.readouterr().out  # type: ignore[attr-defined]
