"""Status and stop."""

import json
from urllib.parse import urlsplit

import pytest

from api import embedded
from testing.embedded_checkouts import Checkout, answers

pytestmark = pytest.mark.servers


def test_status_shows_addresses_without_passwords(checkout: Checkout) -> None:
    # given
    urls = checkout.use()

    # when
    shown = embedded.describe(checkout.base_dir, "durable")

    # then
    assert f"DATABASE_URL=postgresql://kasoko_app:***@127.0.0.1:{urlsplit(urls['DATABASE_URL']).port}/kasoko" in shown
    for password in json.loads((checkout.state / "secrets.json").read_text()).values():
        assert password not in shown


def test_stop_ends_servers_that_are_still_used(checkout: Checkout) -> None:
    # given
    urls = checkout.use()

    # when
    stopped = embedded.stop(checkout.base_dir, "durable")

    # then
    assert stopped
    assert not answers(urls["DATABASE_URL"])
    assert not embedded.stop(checkout.base_dir, "durable")
