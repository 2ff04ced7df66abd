"""Tests of the sending page: the kill switch."""

from django.test import Client

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
