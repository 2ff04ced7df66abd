"""The ports of the servers, if another process takes them."""

import socket
from urllib.parse import urlsplit

import pytest

from testing.embedded_checkouts import Checkout, sql

pytestmark = pytest.mark.servers


def test_servers_move_when_another_process_took_their_port(checkout: Checkout) -> None:
    # given both ports taken while the servers were down
    urls = checkout.use()
    checkout.leave()
    with socket.socket() as first, socket.socket() as second:
        for listener, name in ((first, "DATABASE_URL"), (second, "CELERY_BROKER_URL")):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", urlsplit(urls[name]).port))
            listener.listen()

        # when
        again = checkout.use()

        # then the servers use other ports
        assert urlsplit(again["DATABASE_URL"]).port != urlsplit(urls["DATABASE_URL"]).port
        assert urlsplit(again["CELERY_BROKER_URL"]).port != urlsplit(urls["CELERY_BROKER_URL"]).port
        assert sql(again, "select 1") == [(1,)]
