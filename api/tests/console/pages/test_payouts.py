"""Tests of the payout pages: each manual action asks for confirmation and a PIN, and reports its result."""

import re
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from payments import settlement_tasks
from payments.models import BulkRetry, Transaction
from payments.payouts import breakers
from payments.payouts.operations import failures
from testing import builders, console_scenes, payout_steps
from testing.console_scenes import client_of, hidden_value, page_text, submit
from users.models import AuditEntry, CustomUser


def status(payout: Transaction) -> str:
    """Read the payout again from the database, and return its status."""
    payout.refresh_from_db()
    return payout.status


def test_failed_payout_is_sent_again_after_confirmation(console: Client, queued: Any) -> None:
    payout = console_scenes.failed_payout()
    page = page_text(console.get(f"/admin/payouts/{payout.pk}/"))
    assert f"/admin/payouts/{payout.pk}/retry/" in page
    with builders.nothing_moved():
        asked = page_text(console.get(f"/admin/payouts/{payout.pk}/retry/"))
    assert "Effects" in asked
    assert "No payout is paid twice." in asked

    done = submit(console, f"/admin/payouts/{payout.pk}/retry/")

    assert f"Payout {payout.pk} is pending and will be sent again." in done
    assert status(payout) == "PENDING"
    assert ("payments.settlement_tasks.send_b2c_payout", [payout.pk]) in [(name, ids) for name, _, ids in queued()]
    assert AuditEntry.objects.filter(action="payout.retry", actor__full_name="Grace Wambui").count() == 1
    assert "Grace Wambui" in page_text(console.get(f"/admin/payouts/{payout.pk}/"))


def test_refused_action_says_that_no_money_moved(console: Client) -> None:
    payout = builders.payout(285)
    payout_steps.sent(payout)
    with builders.nothing_moved():
        page = submit(console, f"/admin/payouts/{payout.pk}/retry/")
    assert "Only a failed or held payout can be retried" in page
    assert "No money was moved." in page


def test_failed_payout_goes_to_the_wallet_once_wallet_is_typed(console: Client) -> None:
    payout = console_scenes.failed_payout()
    with builders.nothing_moved():
        assert "Type “wallet” exactly" in submit(console, f"/admin/payouts/{payout.pk}/wallet/", typed="walet")
    assert "KES 285.00 is in the member's wallet." in submit(
        console, f"/admin/payouts/{payout.pk}/wallet/", typed="wallet"
    )
    assert status(payout) == "COMPLETED"
    assert CustomUser.objects.get(pk=payout.user_id).balance == 285


def test_payout_is_held_and_released(console: Client) -> None:
    payout = builders.payout(285)
    assert "Reason: please fill this in" in submit(console, f"/admin/payouts/{payout.pk}/hold/")
    assert "is held. No money left." in submit(console, f"/admin/payouts/{payout.pk}/hold/", reason="A doubt.")
    assert status(payout) == "HELD"
    assert "is due now." in submit(console, f"/admin/payouts/{payout.pk}/release/")
    assert status(payout) == "PENDING"


def test_release_with_a_changed_number_says_that_nothing_is_sent(console: Client) -> None:
    payout = builders.payout(285)
    submit(console, f"/admin/payouts/{payout.pk}/hold/", reason="A doubt.")
    CustomUser.objects.filter(pk=payout.user_id).update(phone_number="254798765432")
    answer = submit(console, f"/admin/payouts/{payout.pk}/release/")
    assert f"Payout {payout.pk} is failed, and nothing is sent. Its hold is ended." in answer
    assert "is due now." not in answer
    assert status(payout) == "FAILED"


def test_status_query_is_due_at_once_when_asked_now(console: Client, queued: Any) -> None:
    payout = builders.payout(285)
    attempt = payout_steps.sent(payout)
    assert "The query is sent now." in submit(console, f"/admin/payouts/{payout.pk}/ask/")
    attempt.refresh_from_db()
    assert attempt.next_query_at is not None
    assert attempt.next_query_at <= timezone.now()
    assert ("payments.settlement_tasks.ask_about_doubts", []) in [(name, ids) for name, _, ids in queued()]


DECISION = {"decision": "paid", "receipt": "skg7paid01", "grounds": "Line 7 of Monday's statement.", "typed": "decide"}


def test_small_held_payout_is_decided_by_one_person(console: Client) -> None:
    payout = console_scenes.held_in_doubt(300, timezone.now())
    with builders.nothing_moved():
        assert "letters and digits" in submit(
            console, f"/admin/payouts/{payout.pk}/decide/", **DECISION | {"receipt": ""}
        )
        assert "has no receipt" in submit(
            console, f"/admin/payouts/{payout.pk}/decide/", **DECISION | {"decision": "not_paid"}
        )
        assert "please fill" in submit(console, f"/admin/payouts/{payout.pk}/decide/", **DECISION | {"grounds": ""})
        assert "please choose" in submit(
            console, f"/admin/payouts/{payout.pk}/decide/", **DECISION | {"decision": "maybe"}
        )
    assert f"Payout {payout.pk} is decided: paid." in submit(console, f"/admin/payouts/{payout.pk}/decide/", **DECISION)
    assert status(payout) == "COMPLETED"
    assert payout.receipt == "SKG7PAID01"


def test_large_held_payout_needs_a_second_person(console: Client) -> None:
    # given
    payout = console_scenes.held_in_doubt(60_000, timezone.now())
    other = client_of(console_scenes.staff("approver", full_name="Peter Second"))

    # when: the first person proposes the decision, and cannot confirm it
    with builders.nothing_moved():
        assert "Another person must confirm it on this page." in submit(
            console, f"/admin/payouts/{payout.pk}/decide/", **DECISION
        )
        own = submit(console, f"/admin/payouts/{payout.pk}/confirm/", typed="decide")
        assert "You made this decision. Another person must confirm it." in own
    assert "Another person must confirm it from their own login." in page_text(
        console.get(f"/admin/payouts/{payout.pk}/")
    )
    assert "payout decision to confirm" in page_text(other.get("/admin/"))

    # when: the second person reviews and confirms it
    asked = page_text(other.get(f"/admin/payouts/{payout.pk}/confirm/"))
    assert "Grace Wambui" in asked
    assert "SKG7PAID01" in asked
    assert "Line 7" in asked
    done = submit(other, f"/admin/payouts/{payout.pk}/confirm/", typed="decide")

    # then
    assert f"Two people decided payout {payout.pk}: paid, receipt SKG7PAID01." in done
    assert status(payout) == "COMPLETED"


def test_withdrawn_decision_leaves_the_payout_held(console: Client) -> None:
    payout = console_scenes.held_in_doubt(60_000, timezone.now())
    submit(console, f"/admin/payouts/{payout.pk}/decide/", **DECISION)
    assert "The proposed decision is dropped." in submit(
        console, f"/admin/payouts/{payout.pk}/refuse/", reason="The wrong line."
    )
    assert status(payout) == "HELD"
    assert payout.verdicts.get().confirmed is False
    # No decision waits for a second person any more, so the page redirects to the payout.
    assert console.get(f"/admin/payouts/{payout.pk}/confirm/").headers["Location"] == f"/admin/payouts/{payout.pk}/"


def test_bulk_retry_sends_exactly_the_previewed_list(console: Client, queued: Any) -> None:
    # given
    first, second = console_scenes.failed_payout(100), console_scenes.failed_payout(200)
    page = page_text(console.get("/admin/payouts/retry/?code=400.002.02"))
    assert "2 payouts, KES 300.00 in total, are sent again over M-Pesa." in page
    seen = hidden_value(page, "seen")
    form = {"code": "400.002.02", "typed": "send again", "seen": seen}

    # when: another payout has failed since the preview
    third = console_scenes.failed_payout(400)
    with builders.nothing_moved():
        assert "The list has changed since the preview." in submit(console, "/admin/payouts/retry/", **form)

    # when
    page = page_text(console.get("/admin/payouts/retry/?code=400.002.02"))
    form["seen"] = hidden_value(page, "seen")
    done = submit(console, "/admin/payouts/retry/", **form)

    # then
    assert "3 payouts will be sent again." in done
    assert {status(payout) for payout in (first, second, third)} == {"PENDING"}
    assert "payments.settlement_tasks.send_due_payouts" in [name for name, _, _ in queued()]
    with builders.nothing_moved():
        assert "No payout on this list may be sent again." in submit(console, "/admin/payouts/retry/", **form)


def test_bulk_retry_shows_its_progress_to_the_end(console: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # given: a bulk retry does two payouts at once and the other one in the background
    monkeypatch.setattr(failures, "AT_ONCE", 2)
    payouts = [console_scenes.failed_payout(amount) for amount in (100, 200, 400)]
    seen = hidden_value(page_text(console.get("/admin/payouts/retry/")), "seen")

    # when
    shown = submit(console, "/admin/payouts/retry/", seen=seen, typed="send again")

    # then: the person comes to a page that refreshes itself
    assert "1 more payout follows in the background." in shown
    assert "It goes on in the background. 1 payout to go." in shown
    assert 'data-live="3"' in shown
    fragment = console.get("/admin/payouts/retries/", headers={"X-Fragment": "1"})
    assert fragment.headers["X-Refresh"] == "3"

    # when
    settlement_tasks.continue_bulk_retries()

    # then
    fragment = console.get("/admin/payouts/retries/", headers={"X-Fragment": "1"})
    assert fragment.headers["X-Refresh"] == "15"
    assert "<dt>Sent again</dt><dd>3</dd>" in page_text(fragment)
    assert "Finished" in page_text(fragment)
    assert {status(payout) for payout in payouts} == {"PENDING"}


def test_bulk_retry_that_goes_on_stays_on_its_page(console: Client) -> None:
    at = timezone.now()
    fields = {"started_at": at, "started_from": "10.0.0.1"}
    oldest = BulkRetry.objects.create(chosen=700, retried=490, skipped=10, **fields)
    BulkRetry.objects.bulk_create(BulkRetry(chosen=1, retried=1, finished_at=at, **fields) for _ in range(6))
    page = page_text(console.get("/admin/payouts/retries/"))
    assert "200 payouts to go." in page
    BulkRetry.objects.filter(pk=oldest.pk).update(finished_at=at)
    assert "to go." not in page_text(console.get("/admin/payouts/retries/"))


def test_payout_paid_into_the_wallet_shows_the_wallet_as_its_destination(console: Client) -> None:
    payout = console_scenes.failed_payout()
    submit(console, f"/admin/payouts/{payout.pk}/wallet/", typed="wallet")
    page = " ".join(page_text(console.get(f"/admin/payouts/{payout.pk}/")).split())
    assert "<dt>Goes to</dt><dd>wallet <span" in page
    assert "instead of M-Pesa" in page
    assert "Payout credited to the wallet" in page
    assert "<td>wallet<br>" in page_text(console.get(f"/admin/members/{payout.user_id}/"))


def test_both_people_of_a_decision_are_named_on_the_payout(console: Client) -> None:
    payout = console_scenes.held_in_doubt(60_000, timezone.now())
    submit(console, f"/admin/payouts/{payout.pk}/decide/", **DECISION)
    other = client_of(console_scenes.staff("approver", full_name="Peter Second"))
    submit(other, f"/admin/payouts/{payout.pk}/confirm/", typed="decide")
    page = page_text(console.get(f"/admin/payouts/{payout.pk}/"))
    verdict = payout.verdicts.get()
    assert f"proposed by {verdict.proposed_by}, confirmed by {verdict.closed_by}" in page


def test_pending_payout_names_the_causes_of_its_wait(console: Client) -> None:
    payout = builders.payout(285, at=timezone.now())
    breakers.switch_off(reason="Odd.", by=builders.actor(), at=timezone.now())
    page = page_text(console.get(f"/admin/payouts/{payout.pk}/"))
    assert "It waits for a person, who stopped all sending." in page
    assert "It leaves automatically." not in page


def test_failed_payout_is_reissued_to_the_new_number_by_two_people(console: Client) -> None:
    # given: M-Pesa does not know the old number, and the member has a new one
    payout = builders.payout(285)
    console_scenes.send_to_unregistered_phone(payout, timezone.now())
    main = re.compile(r'class="k-button k-main" href="/admin/payouts/\d+/(\w+)/"')
    assert main.findall(console.get(f"/admin/payouts/{payout.pk}/").content.decode()) == ["wallet"]
    payout.user.phone_number = "254798765432"
    payout.user.save(update_fields=["phone_number"])

    # when
    page = console.get(f"/admin/payouts/{payout.pk}/").content.decode()
    assert main.findall(page) == ["reissue"]
    assert "/retry/" not in page
    shown = submit(console, f"/admin/payouts/{payout.pk}/reissue/", grounds="The member came with the SIM card.")
    assert "Another person must confirm it" in shown
    second = client_of(console_scenes.staff("approver", full_name="Peter Second"))
    asked = page_text(second.get(f"/admin/payouts/{payout.pk}/confirm/"))
    assert "<dt>To</dt>" not in asked
    assert "<dt>Number until now</dt>" in asked
    submit(second, f"/admin/payouts/{payout.pk}/confirm/", typed="decide")

    # then
    payout.refresh_from_db()
    assert (payout.status, payout.receiver) == ("PENDING", "254798765432")
