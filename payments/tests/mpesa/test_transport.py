"""The transport, over real connections: a request of which any byte left never counts as not sent."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import requests

from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.client import Gateway
from payments.mpesa.gateway_errors import NotSent, OutcomeUnknown
from testing.gateways import (
    ACKNOWLEDGEMENT,
    LOST_ANSWERS,
    PAYMENT,
    SEAL,
    Script,
    ScriptedServer,
    closed_port,
    credentials,
    http_answer,
    reset,
)


@contextmanager
def scripted_daraja(tokens: SharedTokens, script: Script, timeout_seconds: float = 10.0) -> Iterator[tuple]:
    tokens.get(lambda: ("wire-token", 3599))
    server = ScriptedServer(script)
    gateway = Gateway(credentials(server.url), tokens=tokens, timeout_seconds=timeout_seconds)
    try:
        yield gateway, server
    finally:
        gateway.close()
        server.close()


def test_payments_reuse_one_connection(tokens: SharedTokens) -> None:
    peers: set[Any] = set()

    def acknowledge(connection: socket.socket, _: int) -> None:
        peers.add(connection.getpeername())
        connection.sendall(ACKNOWLEDGEMENT)

    with scripted_daraja(tokens, acknowledge) as (gateway, server):
        for _ in range(3):
            assert gateway.pay(**PAYMENT).conversation_id == "AG_20261123_1"

    assert (len(server.requests), len(peers)) == (3, 1)
    assert b"authorization: bearer wire-token" in server.requests[0].lower()


@pytest.mark.parametrize("script", LOST_ANSWERS.values(), ids=LOST_ANSWERS.keys())
def test_payment_without_complete_answer_is_in_doubt(tokens: SharedTokens, script: Script) -> None:
    with scripted_daraja(tokens, script, timeout_seconds=1.5) as (gateway, server):
        with pytest.raises(OutcomeUnknown) as caught:
            gateway.pay(**PAYMENT)

        assert caught.value.duplicate is False
        assert len(server.requests) == 1


def test_redirect_is_not_followed(tokens: SharedTokens) -> None:
    def redirect(connection: socket.socket, _: int) -> None:
        connection.sendall(http_answer(b"", "307 Temporary Redirect", "Location: /elsewhere"))

    with scripted_daraja(tokens, redirect) as (gateway, server):
        with pytest.raises(OutcomeUnknown):
            gateway.pay(**PAYMENT)

        assert len(server.requests) == 1


def test_reused_connection_that_closes_after_sending_is_in_doubt(tokens: SharedTokens) -> None:
    def once(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.sendall(ACKNOWLEDGEMENT)
        else:
            reset(connection, number)

    with scripted_daraja(tokens, once) as (gateway, server):
        gateway.pay(**PAYMENT)
        with pytest.raises(OutcomeUnknown):
            gateway.pay(**PAYMENT)

        assert len(server.requests) == 2


def test_refused_connection_raises_not_sent(tokens: SharedTokens) -> None:
    tokens.get(lambda: ("wire-token", 3599))
    gateway = Gateway(credentials(f"http://127.0.0.1:{closed_port()}"), tokens=tokens)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "network"


def test_unknown_host_raises_not_sent(tokens: SharedTokens) -> None:
    tokens.get(lambda: ("wire-token", 3599))
    gateway = Gateway(credentials("http://no-such-host.invalid"), tokens=tokens)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "network"


def test_failed_tls_handshake_raises_not_sent(tokens: SharedTokens) -> None:
    tokens.get(lambda: ("wire-token", 3599))
    greetings: list[bytes] = []

    def answer_in_plain_text(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            greetings.append(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_in_plain_text, args=(listener,))
        thread.start()
        gateway = Gateway(credentials(f"https://127.0.0.1:{listener.getsockname()[1]}"), tokens=tokens)
        with pytest.raises(NotSent) as caught:
            gateway.pay(**PAYMENT)
        thread.join(30)

    assert caught.value.reason == "network"
    assert b"paymentrequest" not in greetings[0]


def test_over_tls_only_a_request_that_left_is_in_doubt(tokens: SharedTokens, certificate: Path) -> None:
    def acknowledge_once(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.sendall(ACKNOWLEDGEMENT)
        else:
            reset(connection, number)

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tokens.get(lambda: ("wire-token", 3599))
    server = ScriptedServer(acknowledge_once, tls)
    trusting = requests.Session()
    trusting.verify = str(certificate)
    trusted = Gateway(credentials(server.url), tokens=tokens, session=trusting, timeout_seconds=10)
    untrusting = Gateway(credentials(server.url), tokens=tokens, timeout_seconds=10)

    accepted = trusted.pay(**PAYMENT)
    with pytest.raises(OutcomeUnknown):
        trusted.pay(**PAYMENT)
    with pytest.raises(NotSent):
        untrusting.pay(**PAYMENT)

    assert accepted.conversation_id == "AG_20261123_1"
    assert len(server.requests) == 2
    trusted.close()
    untrusting.close()
    server.close()


def test_slow_token_request_raises_not_sent(redis_client: redis.Redis) -> None:
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}", seal=SEAL)
    listener = socket.create_server(("127.0.0.1", 0))
    gateway = Gateway(credentials(f"http://127.0.0.1:{listener.getsockname()[1]}"), tokens=tokens, timeout_seconds=0.3)
    with listener, pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "network"


def test_many_threads_share_one_gateway(tokens: SharedTokens) -> None:
    def echo(connection: socket.socket, _: int) -> None:
        connection.sendall(ACKNOWLEDGEMENT)

    with scripted_daraja(tokens, echo) as (gateway, server), ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(lambda n: gateway.pay(**{**PAYMENT, "amount_shillings": n}), range(1, 101)))

    amounts = sorted(json.loads(request.partition(b"\r\n\r\n")[2])["Amount"] for request in server.requests)
    assert len(accepted) == 100
    assert amounts == list(range(1, 101))
