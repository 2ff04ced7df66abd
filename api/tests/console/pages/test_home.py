"""Tests of the home page: the state of beat, workers and Redis."""

from datetime import timedelta
from typing import Any

from django.conf import Settings
from django.test import Client
from django.utils import timezone

from payments.monitoring import overview
from testing import builders, console_scenes
from testing.console_scenes import page_text, submit
from users.models import PinCounter


def test_home_page_says_which_process_has_stopped(console: Client, settings: Settings, queued: Any) -> None:
    def home_page() -> str:
        return page_text(console.get("/admin/"))

    assert "Celery beat has not run yet. Start beat and a worker." in home_page()
    overview.beat(worker="here", at=timezone.now())
    assert "Background work has stopped." not in home_page()
    overview.beat(worker="here", at=timezone.now() - timedelta(minutes=5))
    assert "Celery beat has stopped. Start or restart it." in home_page()
    builders.resolve(builders.market())
    submit(console, f"/admin/payouts/{console_scenes.failed_payout().pk}/retry/")
    assert queued()
    assert "Messages wait and no worker takes them" in home_page()
    settings.CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
    assert "Redis cannot be reached." in home_page()
    settings.CELERY_BROKER_URL = "amqp://somewhere"
    assert "Celery beat has stopped." in home_page()


def test_home_page_counts_the_markets_that_close_soon(console: Client) -> None:
    assert "soon" not in page_text(console.get("/admin/"))
    builders.market(end_date=timezone.now() + timedelta(minutes=30))
    builders.market(end_date=timezone.now() + timedelta(hours=3))
    assert "market closes soon" in page_text(console.get("/admin/"))


def test_home_page_says_that_the_cache_is_away_although_the_broker_lives(console: Client, cache_down: None) -> None:
    overview.beat(worker="here", at=timezone.now())
    assert "Redis cannot be reached." in page_text(console.get("/admin/"))


def test_home_page_says_that_the_overall_limit_of_wrong_pins_is_used_up(console: Client) -> None:
    at = timezone.now()
    PinCounter.objects.create(key="overall", wrong=100, until=at + timedelta(hours=1))
    assert "Too many wrong PINs" not in page_text(console.get("/admin/"))
    PinCounter.objects.update(until=at + timedelta(hours=4))
    page = page_text(console.get("/admin/"))
    assert "Too many wrong PINs came from everywhere together." in page
    assert "only from a device or an address that we know" in page
