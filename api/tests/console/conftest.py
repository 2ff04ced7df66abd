"""Fixtures of the console's tests."""

import pytest
from django.conf import Settings
from django.test import Client

from testing import console_scenes


@pytest.fixture
def console(db: None) -> Client:
    """Return a test client in which an operator is logged in."""
    return console_scenes.client_of(console_scenes.staff("operator", full_name="Grace Wambui"))


@pytest.fixture
def code_required(settings: Settings) -> None:
    """Require an authenticator code from all staff."""
    settings.STAFF_TOTP = True
