"""The bulk gateway classifies the end of each request in the same way as the gateway.

The tests use real connections to a server on loopback that follows a script, hangs up or does not exist.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from payments.mpesa import bulk_client
from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.bulk_client import BulkGateway, Ended, Payment
from payments.mpesa.client import Accepted, Gateway
from payments.mpesa.gateway_errors import GatewayError, NotSent, OutcomeUnknown
from testing.gateways import (
    ACK,
    ACKNOWLEDGEMENT,
    ANSWERS,
    BAD_TOKENS,
    LOST_ANSWERS,
    PAYMENT,
    Script,
    ScriptedServer,
    closed_port,
    credentials,
    http_answer,
    read_request,
    reset,
)

PATIENCE = 60.0
OCID = PAYMENT["originator_conversation_id"]
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 500: "Error"}


@contextmanager
def bulk_gateway(
    tokens: SharedTokens, url: str, *, in_flight: int = 8, timeout_seconds: float = 10.0
) -> Iterator[BulkGateway]:
    tokens.get(lambda: ("wire-token", 3599))
    gateway = Gateway(credentials(url), tokens=tokens, timeout_seconds=timeout_seconds)
    bulk = BulkGateway(gateway, in_flight=in_flight)
    try:
        yield bulk
    finally:
        bulk.close()
        gateway.close()


@contextmanager
def scripted_daraja(tokens: SharedTokens, script: Script, **more: Any) -> Iterator[tuple[BulkGateway, ScriptedServer]]:
    server = ScriptedServer(script)
    try:
        with bulk_gateway(tokens, server.url, **more) as bulk:
            yield bulk, server
    finally:
        server.close()


def pay(bulk: BulkGateway, count: int = 1, **changes: Any) -> list[Ended]:
    """Start `count` payments at once and return their ends, sorted by key."""
    payments = [
        Payment(key, time.monotonic(), PAYMENT | {"originator_conversation_id": f"{OCID}{key}"} | changes)
        for key in range(count)
    ]
    bulk.start(payments)
    ended: list[Ended] = []
    deadline = time.monotonic() + PATIENCE
    while len(ended) < count and time.monotonic() < deadline:
        ended += bulk.collect(patience_seconds=1.0, at_least=count)
    return sorted(ended, key=lambda end: end.key)


def response_of(bulk: BulkGateway, **changes: Any) -> Any:
    (end,) = pay(bulk, **changes)
    return end.response


def always(answer: bytes) -> Script:
    return lambda connection, _: connection.sendall(answer)


def answered(status: int, body: Any, *headers: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http_answer(raw, f"{status} {REASONS.get(status, 'Status')}", *headers)


# --- requests and answers ----------------------------------------------------------------------------------------


def test_each_of_several_groups_of_payments_ends(tokens: SharedTokens) -> None:
    # given: two full groups and a part, with a request in the first group that cannot be made
    count = 2 * bulk_client.HANDED_OVER_AT_ONCE + 3
    due = time.monotonic()
    requests = [PAYMENT | {"originator_conversation_id": f"{OCID}{key}"} for key in range(count)]
    requests[1] = requests[1] | {"remarks": "!"}

    # when
    with scripted_daraja(tokens, always(ACKNOWLEDGEMENT), in_flight=4) as (bulk, server):
        bulk.start(Payment(key, due, request) for key, request in enumerate(requests))
        ended: list[Ended] = []
        deadline = time.monotonic() + PATIENCE
        while len(ended) < count and time.monotonic() < deadline:
            ended += bulk.collect(patience_seconds=1.0, at_least=count)

    # then
    assert sorted(end.key for end in ended) == list(range(count))
    assert [end.key for end in ended if not isinstance(end.response, Accepted)] == [1]
    assert len(server.requests) == count - 1


def test_many_payments_share_few_connections_and_the_gateways_bodies(tokens: SharedTokens) -> None:
    # given
    peers: set[Any] = set()

    def acknowledge(connection: socket.socket, _: int) -> None:
        peers.add(connection.getpeername())
        connection.sendall(ACKNOWLEDGEMENT)

    # when
    with scripted_daraja(tokens, acknowledge, in_flight=4) as (bulk, server):
        ended = pay(bulk, 40)

    # then
    accepted = Accepted("AG_20261123_1", "KASOKO-1-7-0a1b2c3d-1")
    assert ended == [Ended(key, accepted) for key in range(40)]
    assert (len(server.requests), len(peers) <= 4) == (40, True)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    expected = Gateway(credentials(), tokens=tokens).payment_body(**PAYMENT)
    assert sorted(body.pop("OriginatorConversationID") for body in bodies) == sorted(f"{OCID}{n}" for n in range(40))
    assert all(body == {k: v for k, v in expected.items() if k != "OriginatorConversationID"} for body in bodies)
    head = server.requests[0].lower()
    assert b"post /mpesa/b2c/v3/paymentrequest http/1.1" in head
    assert b"authorization: bearer wire-token" in head
    assert b"accept-encoding: identity" in head
    assert b"cookie" not in head


@pytest.mark.parametrize(("status", "body", "error", "facts"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_answer_is_read_as_by_the_gateway(
    tokens: SharedTokens, status: int, body: Any, error: type[GatewayError], facts: dict[str, Any]
) -> None:
    with scripted_daraja(tokens, always(answered(status, body, "Location: /elsewhere"))) as (bulk, server):
        response = response_of(bulk)

    assert type(response) is error
    assert {name: getattr(response, name) for name in facts} == facts
    assert len(server.requests) == 1


def test_throttle_gives_the_retry_delay(tokens: SharedTokens) -> None:
    with scripted_daraja(tokens, always(answered(429, b"", "Retry-After: 7"))) as (bulk, _):
        assert response_of(bulk).retry_after_seconds == 7.0


def test_invalid_payment_ends_with_its_error_and_others_are_sent(tokens: SharedTokens) -> None:
    with scripted_daraja(tokens, always(ACKNOWLEDGEMENT)) as (bulk, server):
        (refused,) = pay(bulk, amount_shillings=0)
        (sent,) = pay(bulk)

    assert isinstance(refused.response, ValueError)
    assert isinstance(sent.response, Accepted)
    assert len(server.requests) == 1


def test_cookies_from_daraja_are_not_kept(tokens: SharedTokens) -> None:
    with scripted_daraja(tokens, always(answered(200, ACK, "Set-Cookie: visid=1; Path=/"))) as (bulk, server):
        pay(bulk)
        pay(bulk)

    assert all(b"visid" not in request for request in server.requests)


# --- the token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "body"), BAD_TOKENS)
def test_refused_token_is_renewed_once_and_each_body_sent_again(tokens: SharedTokens, status: int, body: dict) -> None:
    # given
    refusal, renewal = answered(status, body), answered(200, {"access_token": "second-token", "expires_in": "3599"})

    class Listening(ScriptedServer):
        def _converse(self, connection: socket.socket) -> None:
            with connection:
                while request := read_request(connection):
                    self.requests.append(request)
                    is_second = b"second-token" in request
                    connection.sendall(
                        renewal if b"GET /oauth" in request else ACKNOWLEDGEMENT if is_second else refusal
                    )

    server = Listening(reset)
    try:
        with bulk_gateway(tokens, server.url) as bulk:
            # when
            ended = pay(bulk, 5)
    finally:
        server.close()

    # then
    assert [type(end.response) for end in ended] == [Accepted] * 5
    assert sum(b"GET /oauth" in request for request in server.requests) == 1
    posts = [request for request in server.requests if b"POST" in request]
    assert sum(b"second-token" in request for request in posts) == 5


def test_without_token_nothing_is_sent(tokens: SharedTokens) -> None:
    # given
    tokens.drop("wire-token")
    server = ScriptedServer(always(answered(503, b"")))
    gateway = Gateway(credentials(server.url), tokens=tokens)
    bulk = BulkGateway(gateway, in_flight=4)

    # when
    ended = pay(bulk, 3)
    bulk.close()
    gateway.close()
    server.close()

    # then
    assert [(type(end.response), end.response.reason) for end in ended] == [(NotSent, "network")] * 3
    assert all(b"paymentrequest" not in request for request in server.requests)


# --- no complete answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", LOST_ANSWERS.values(), ids=LOST_ANSWERS.keys())
def test_payment_without_complete_answer_is_in_doubt(tokens: SharedTokens, script: Script) -> None:
    with scripted_daraja(tokens, script, timeout_seconds=1.5) as (bulk, server):
        response = response_of(bulk)

    assert type(response) is OutcomeUnknown
    assert response.duplicate is False
    assert len(server.requests) == 1


def test_reused_connection_that_closes_after_sending_is_in_doubt(tokens: SharedTokens) -> None:
    def once(connection: socket.socket, number: int) -> None:
        connection.sendall(ACKNOWLEDGEMENT) if number == 1 else reset(connection, number)

    with scripted_daraja(tokens, once) as (bulk, server):
        first, second = response_of(bulk), response_of(bulk)

    assert (type(first), type(second)) == (Accepted, OutcomeUnknown)
    assert len(server.requests) == 2


def test_refused_connection_raises_not_sent(tokens: SharedTokens) -> None:
    with bulk_gateway(tokens, f"http://127.0.0.1:{closed_port()}") as bulk:
        response = response_of(bulk)

    assert (type(response), response.reason) == (NotSent, "network")


def test_unknown_host_raises_not_sent(tokens: SharedTokens) -> None:
    with bulk_gateway(tokens, "http://no-such-host.invalid") as bulk:
        response = response_of(bulk)

    assert (type(response), response.reason) == (NotSent, "network")


def test_failed_tls_handshake_raises_not_sent(tokens: SharedTokens) -> None:
    def answer_in_plain_text(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_in_plain_text, args=(listener,))
        thread.start()
        with bulk_gateway(tokens, f"https://127.0.0.1:{listener.getsockname()[1]}") as bulk:
            response = response_of(bulk)
        thread.join(30)

    assert (type(response), response.reason) == (NotSent, "network")


def test_untrusted_certificate_raises_not_sent(tokens: SharedTokens, certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server = ScriptedServer(always(ACKNOWLEDGEMENT), tls)
    try:
        with bulk_gateway(tokens, server.url) as bulk:
            response = response_of(bulk)
    finally:
        server.close()

    assert (type(response), response.reason) == (NotSent, "network")
    assert server.requests == []


def test_connection_that_takes_too_long_raises_not_sent(tokens: SharedTokens) -> None:
    # given: a listener whose queue is full, so that another connection gets no answer
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(address)

        # when
        with bulk_gateway(tokens, f"http://127.0.0.1:{address[1]}", timeout_seconds=1.0) as bulk:
            response = response_of(bulk)
        for connection in waiting:
            connection.close()

    # then
    assert (type(response), response.reason) == (NotSent, "network")


def client_errors() -> list[type[BaseException]]:
    """Return every error class that aiohttp's client declares, and the other errors that it may raise."""
    declared = [getattr(aiohttp.client_exceptions, name) for name in aiohttp.client_exceptions.__all__]
    errors = [each for each in declared if isinstance(each, type) and issubclass(each, aiohttp.ClientError)]
    return [*errors, TimeoutError, ConnectionResetError, OSError]


@pytest.mark.parametrize("has_left", [False, True])
@pytest.mark.parametrize("error", client_errors(), ids=lambda error: error.__name__)
def test_every_client_error_shows_if_the_request_may_have_left(
    tokens: SharedTokens, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], has_left: bool
) -> None:
    # given: the connection raises the error, before or after it gets the request
    raised = error.__new__(error)

    async def send(self: Any, conn: Any) -> Any:
        raise raised

    async def connect(self: Any, *arguments: Any, **more: Any) -> Any:
        raise raised

    if has_left:
        monkeypatch.setattr(aiohttp.ClientRequest, "send", send)
    else:
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    assert issubclass(bulk_client._WatchedRequest, aiohttp.ClientRequest)

    # when
    with scripted_daraja(tokens, always(ACKNOWLEDGEMENT)) as (bulk, _):
        response = response_of(bulk)

    # then
    assert type(response) is (OutcomeUnknown if has_left else NotSent)
