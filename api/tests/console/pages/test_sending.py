"""Tests of the sending page: the kill switch, and stops that a person ends."""

from django.db import transaction
from django.test import Client

from payments.models import Breaker, Settlement
from payments.payouts import breakers
from testing import builders, payout_steps
from testing.console_scenes import page_text, submit


def test_sending_is_stopped_and_started(console: Client) -> None:
    with builders.nothing_moved():
        assert "Type “stop” exactly" in submit(console, "/admin/sending/stop/", reason="Odd.")
    assert "Sending is off." in submit(console, "/admin/sending/stop/", reason="Odd receipts.", typed="stop")
    home = page_text(console.get("/admin/"))
    assert "Sending is paused: switched off by a person" in home
    assert "Odd receipts." in home
    assert payout_steps.claims() == []
    assert "Sending is on." in submit(console, "/admin/sending/start/")
    assert "Sending is paused" not in page_text(console.get("/admin/"))


def test_stop_is_shown_and_ended_with_a_reason(console: Client) -> None:
    # given
    builders.payout(285)
    with transaction.atomic():
        breakers.stop(Breaker.Cause.ORPHAN, reason="A result names KASOKO-1-2-0a1b2c3d-1.", at=builders.AT)

    # then
    assert "Sending is paused: M-Pesa reported a request that we do not have" in page_text(console.get("/admin/"))
    shown = console.get("/admin/sending/").content.decode()
    assert "/admin/sending/lift/orphan/" in shown
    assert "/admin/sending/lift/switch/" not in shown
    assert console.get("/admin/sending/lift/switch/").status_code == 404
    assert console.get("/admin/sending/release/0/").status_code == 404
    with builders.nothing_moved():
        assert "Reason: please fill this in." in submit(console, "/admin/sending/lift/orphan/", typed="send")
    assert payout_steps.claims() == []

    # when
    answer = submit(console, "/admin/sending/lift/orphan/", reason="In the statement.", typed="send")

    # then
    assert "The stop is ended." in answer
    assert len(payout_steps.claims()) == 1


def test_switch_is_told_once_with_its_person_and_reason(console: Client) -> None:
    submit(console, "/admin/sending/stop/", reason="Odd receipts.", typed="stop")
    page = page_text(console.get("/admin/sending/"))
    assert page.count("Odd receipts.") == 1
    assert "All sending is off since" in page
    assert "Grace Wambui" in page.partition("Kill switch")[2].partition("Breakers")[0]
    assert "No breaker is open." in page


def test_stopped_release_is_shown_and_let_go_with_a_reason(console: Client) -> None:
    # given
    payout = builders.payout(285)
    Settlement.objects.filter(pk=payout.settlement_id).update(
        release_open=False, canary_stopped_at=builders.AT, canary_stop_reason="1 of its first 1 payouts failed."
    )

    # then
    for page in ("/admin/", "/admin/sending/"):
        assert "1 of its first 1 payouts failed." in page_text(console.get(page))
    assert payout_steps.claims() == []

    # when
    answer = submit(console, f"/admin/sending/release/{payout.settlement_id}/", reason="An odd number.", typed="send")

    # then
    assert "The release goes on." in answer
    assert len(payout_steps.claims()) == 1


def test_next_test_payout_is_never_told_in_the_past(console: Client) -> None:
    # given
    with transaction.atomic():
        breakers.trip(Breaker.Cause.NO_FLOAT, reason="Code 1.", at=builders.AT, policy=payout_steps.POLICY)
    assert "Next test payout: the next payout that is due." in page_text(console.get("/admin/sending/"))

    # when
    with transaction.atomic():
        breakers.stop(Breaker.Cause.ORPHAN, reason="A result names KASOKO-1-2-0a1b2c3d-1.", at=builders.AT)

    # then
    page = page_text(console.get("/admin/sending/"))
    assert "No test payout leaves while a stop waits for a person." in page
    assert "Next test payout" not in page
