"""Tests of step-up: a money action needs a recent PIN or code."""

from datetime import datetime, timedelta

from django.conf import Settings
from django.test import Client
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from payments.models import Breaker
from testing.builders import PIN, operator
from testing.console_scenes import code_of, enrol, log_in, page_text

STOP = {"reason": "Something is odd.", "typed": "stop"}


def switched_off() -> bool:
    """Return True if a person has switched sending off."""
    return Breaker.objects.filter(cause="switch", opened_at__isnull=False).exists()


def test_money_action_without_the_pin_does_nothing(db: None, client: Client) -> None:
    client.force_login(operator(is_superuser=True))
    assert "Your PIN" in page_text(client.get("/admin/sending/stop/"))
    for proof in ({}, {"proof": "0000"}):
        answer = client.post("/admin/sending/stop/", STOP | proof)
        assert answer.status_code == 409
        assert "not your PIN. Nothing was done." in page_text(answer)
        assert not switched_off()
    assert client.post("/admin/sending/stop/", STOP | {"proof": PIN}).status_code == 302
    assert switched_off()


def test_proof_expires_after_step_up_minutes(db: None, client: Client, settings: Settings) -> None:
    client.force_login(operator(is_superuser=True))
    client.post("/admin/sending/stop/", STOP | {"proof": PIN})
    assert client.post("/admin/sending/start/").status_code == 302
    assert not switched_off()

    session = client.session
    session["stepped_up_at"] = (timezone.now() - timedelta(minutes=settings.STEP_UP_MINUTES, seconds=1)).isoformat()
    session.save()
    assert client.post("/admin/sending/stop/", STOP).status_code == 409
    assert not switched_off()


def test_money_action_needs_a_code_if_an_app_is_set_up(
    db: None, client: Client, code_required: None, at: datetime
) -> None:
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    log_in(client, superuser, code_of(superuser))
    session = client.session
    session["stepped_up_at"] = (timezone.now() - timedelta(hours=1)).isoformat()
    session.save()
    assert "Code from your app" in page_text(client.get("/admin/sending/stop/"))
    assert client.post("/admin/sending/stop/", STOP | {"proof": PIN}).status_code == 409
    TOTPDevice.objects.update(last_t=-1, throttling_failure_timestamp=None, throttling_failure_count=0)
    assert client.post("/admin/sending/stop/", STOP | {"proof": code_of(superuser)}).status_code == 302
    assert switched_off()


def test_change_of_the_pin_is_no_proof_in_place_of_a_code(
    db: None, client: Client, code_required: None, at: datetime
) -> None:
    """A thief of a session who knows the PIN has no code, and could otherwise stop and start the sending."""
    # given: a session that showed a code an hour ago
    superuser = operator(is_superuser=True)
    enrol(superuser, at)
    log_in(client, superuser, code_of(superuser))
    session = client.session
    session["stepped_up_at"] = (timezone.now() - timedelta(hours=1)).isoformat()
    session.save()

    # when
    new_pin = {"pin": PIN, "new_pin": "739146", "again": "739146"}
    assert "Your PIN is changed" in page_text(client.post("/admin/password_change/", new_pin))

    # then
    assert "Code from your app" in page_text(client.get("/admin/sending/stop/"))
    assert client.post("/admin/sending/stop/", STOP).status_code == 409
    assert not switched_off()


def test_wrong_pins_at_a_money_action_lock_its_form(db: None, client: Client) -> None:
    superuser = operator(is_superuser=True)
    client.force_login(superuser)
    for _ in range(5):
        client.post("/admin/sending/stop/", STOP | {"proof": "0000"})
    answer = client.post("/admin/sending/stop/", STOP | {"proof": PIN})
    assert "Too many wrong PINs" in page_text(answer)
    assert not switched_off()
    # then: the lock concerns this form only
    assert "Needs your attention" in log_in(Client(), superuser)
