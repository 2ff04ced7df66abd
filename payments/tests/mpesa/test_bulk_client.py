"""The bulk gateway keeps the gateway's promise: each end of a request is named by what it says of the money.

Over real connections to a server on loopback that answers as told, breaks off, or is not there.
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
from payments.tests.mpesa.test_client import (
    ACK,
    ACKNOWLEDGEMENT,
    ANSWERS,
    BAD_TOKENS,
    LOST,
    PAYMENT,
    Script,
    Wire,
    certificate,
    closed_port,
    credentials,
    http_answer,
    read_request,
    redis_client,
    reset,
    tokens,
)

__all__ = ["certificate", "redis_client", "tokens"]

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
def on_the_wire(tokens: SharedTokens, script: Script, **more: Any) -> Iterator[tuple[BulkGateway, Wire]]:
    wire = Wire(script)
    try:
        with bulk_gateway(tokens, wire.url, **more) as bulk:
            yield bulk, wire
    finally:
        wire.close()


def pay(bulk: BulkGateway, count: int = 1, **changes: Any) -> list[Ended]:
    """So many payments at once; what each came to, by its key."""
    payments = [
        Payment(key, time.monotonic(), PAYMENT | {"originator_conversation_id": f"{OCID}{key}"} | changes)
        for key in range(count)
    ]
    bulk.start(payments)
    ended: list[Ended] = []
    deadline = time.monotonic() + PATIENCE
    while len(ended) < count and time.monotonic() < deadline:
        ended += bulk.collect(patience_seconds=1.0, enough=count)
    return sorted(ended, key=lambda end: end.key)


def said(bulk: BulkGateway, **changes: Any) -> Any:
    (end,) = pay(bulk, **changes)
    return end.response


def always(answer: bytes) -> Script:
    return lambda connection, _: connection.sendall(answer)


def answered(status: int, body: Any, *headers: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http_answer(raw, f"{status} {REASONS.get(status, 'Status')}", *headers)


# --- what is sent, and how answers are read --------------------------------------------------------------------------


def test_many_payments_are_accepted_over_few_connections_and_say_what_the_gateway_says(tokens: SharedTokens) -> None:
    # given
    peers: set[Any] = set()

    def acknowledge(connection: socket.socket, _: int) -> None:
        peers.add(connection.getpeername())
        connection.sendall(ACKNOWLEDGEMENT)

    # when
    with on_the_wire(tokens, acknowledge, in_flight=4) as (bulk, wire):
        ended = pay(bulk, 40)

    # then
    accepted = Accepted("AG_20261123_1", "KASOKO-1-7-0a1b2c3d-1")
    assert ended == [Ended(key, accepted) for key in range(40)]
    assert (len(wire.requests), len(peers) <= 4) == (40, True)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in wire.requests]
    expected = Gateway(credentials(), tokens=tokens).payment(**PAYMENT)
    assert sorted(body.pop("OriginatorConversationID") for body in bodies) == sorted(f"{OCID}{n}" for n in range(40))
    assert all(body == {k: v for k, v in expected.items() if k != "OriginatorConversationID"} for body in bodies)
    head = wire.requests[0].lower()
    assert b"post /mpesa/b2c/v3/paymentrequest http/1.1" in head
    assert b"authorization: bearer wire-token" in head
    assert b"accept-encoding: identity" in head
    assert b"cookie" not in head


@pytest.mark.parametrize(("status", "body", "error", "facts"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_answer_is_read_as_the_gateway_reads_it(
    tokens: SharedTokens, status: int, body: Any, error: type[GatewayError], facts: dict[str, Any]
) -> None:
    with on_the_wire(tokens, always(answered(status, body, "Location: /elsewhere"))) as (bulk, wire):
        found = said(bulk)

    assert type(found) is error
    assert {name: getattr(found, name) for name in facts} == facts
    assert len(wire.requests) == 1


def test_a_throttle_tells_how_long_to_wait(tokens: SharedTokens) -> None:
    with on_the_wire(tokens, always(answered(429, b"", "Retry-After: 7"))) as (bulk, _):
        assert said(bulk).retry_after_seconds == 7.0


def test_what_must_not_be_sent_is_the_callers_to_raise_and_the_others_go(tokens: SharedTokens) -> None:
    with on_the_wire(tokens, always(ACKNOWLEDGEMENT)) as (bulk, wire):
        (refused,) = pay(bulk, amount_shillings=0)
        (sent,) = pay(bulk)

    assert isinstance(refused.response, ValueError)
    assert isinstance(sent.response, Accepted)
    assert len(wire.requests) == 1


def test_cookies_that_daraja_sets_are_not_kept(tokens: SharedTokens) -> None:
    with on_the_wire(tokens, always(answered(200, ACK, "Set-Cookie: visid=1; Path=/"))) as (bulk, wire):
        pay(bulk)
        pay(bulk)

    assert all(b"visid" not in request for request in wire.requests)


# --- the token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "body"), BAD_TOKENS)
def test_a_refused_token_is_renewed_once_for_all_and_each_body_goes_once_more(
    tokens: SharedTokens, status: int, body: dict
) -> None:
    # given
    refusal, renewal = answered(status, body), answered(200, {"access_token": "second-token", "expires_in": "3599"})

    class Listening(Wire):
        def _converse(self, connection: socket.socket) -> None:
            with connection:
                while request := read_request(connection):
                    self.requests.append(request)
                    is_second = b"second-token" in request
                    connection.sendall(
                        renewal if b"GET /oauth" in request else ACKNOWLEDGEMENT if is_second else refusal
                    )

    wire = Listening(reset)
    try:
        with bulk_gateway(tokens, wire.url) as bulk:
            # when
            ended = pay(bulk, 5)
    finally:
        wire.close()

    # then
    assert [type(end.response) for end in ended] == [Accepted] * 5
    assert sum(b"GET /oauth" in request for request in wire.requests) == 1
    posts = [request for request in wire.requests if b"POST" in request]
    assert sum(b"second-token" in request for request in posts) == 5


def test_without_a_token_nothing_is_sent(tokens: SharedTokens) -> None:
    # given
    tokens.drop("wire-token")
    wire = Wire(always(answered(503, b"")))
    gateway = Gateway(credentials(wire.url), tokens=tokens)
    bulk = BulkGateway(gateway, in_flight=4)

    # when
    ended = pay(bulk, 3)
    bulk.close()
    gateway.close()
    wire.close()

    # then
    assert [(type(end.response), end.response.reason) for end in ended] == [(NotSent, "network")] * 3
    assert all(b"paymentrequest" not in request for request in wire.requests)


# --- no whole answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", LOST.values(), ids=LOST.keys())
def test_a_payment_whose_answer_is_lost_is_in_doubt(tokens: SharedTokens, script: Script) -> None:
    with on_the_wire(tokens, script, timeout_seconds=1.5) as (bulk, wire):
        found = said(bulk)

    assert type(found) is OutcomeUnknown
    assert found.duplicate is False
    assert len(wire.requests) == 1


def test_a_kept_connection_that_dies_after_sending_is_in_doubt(tokens: SharedTokens) -> None:
    def once(connection: socket.socket, number: int) -> None:
        connection.sendall(ACKNOWLEDGEMENT) if number == 1 else reset(connection, number)

    with on_the_wire(tokens, once) as (bulk, wire):
        first, second = said(bulk), said(bulk)

    assert (type(first), type(second)) == (Accepted, OutcomeUnknown)
    assert len(wire.requests) == 2


def test_a_refused_connection_is_not_sent(tokens: SharedTokens) -> None:
    with bulk_gateway(tokens, f"http://127.0.0.1:{closed_port()}") as bulk:
        found = said(bulk)

    assert (type(found), found.reason) == (NotSent, "network")


def test_an_unknown_host_is_not_sent(tokens: SharedTokens) -> None:
    with bulk_gateway(tokens, "http://no-such-host.invalid") as bulk:
        found = said(bulk)

    assert (type(found), found.reason) == (NotSent, "network")


def test_a_tls_handshake_that_fails_is_not_sent(tokens: SharedTokens) -> None:
    def answer_in_plain_text(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_in_plain_text, args=(listener,))
        thread.start()
        with bulk_gateway(tokens, f"https://127.0.0.1:{listener.getsockname()[1]}") as bulk:
            found = said(bulk)
        thread.join(30)

    assert (type(found), found.reason) == (NotSent, "network")


def test_a_certificate_nobody_vouches_for_is_not_sent(tokens: SharedTokens, certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    wire = Wire(always(ACKNOWLEDGEMENT), tls)
    try:
        with bulk_gateway(tokens, wire.url) as bulk:
            found = said(bulk)
    finally:
        wire.close()

    assert (type(found), found.reason) == (NotSent, "network")
    assert wire.requests == []


def test_a_connection_that_does_not_come_in_time_is_not_sent(tokens: SharedTokens) -> None:
    # given: a listener whose queue is full, so that a further connection gets no answer at all
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)

        # when
        with bulk_gateway(tokens, f"http://127.0.0.1:{address[1]}", timeout_seconds=1.0) as bulk:
            found = said(bulk)
        for one in waiting:
            one.close()

    # then
    assert (type(found), found.reason) == (NotSent, "network")


def client_errors() -> list[type[BaseException]]:
    """Every class of error that aiohttp's client declares, and the two it lets through."""
    declared = [getattr(aiohttp.client_exceptions, name) for name in aiohttp.client_exceptions.__all__]
    errors = [each for each in declared if isinstance(each, type) and issubclass(each, aiohttp.ClientError)]
    return [*errors, TimeoutError, ConnectionResetError, OSError]


@pytest.mark.parametrize("has_left", [False, True])
@pytest.mark.parametrize("error", client_errors(), ids=lambda error: error.__name__)
def test_every_error_of_the_client_is_named_by_whether_the_request_may_have_left(
    tokens: SharedTokens, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], has_left: bool
) -> None:
    # given: the wire raises it, before or after the request is handed to a connection
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
    with on_the_wire(tokens, always(ACKNOWLEDGEMENT)) as (bulk, _):
        found = said(bulk)

    # then
    assert type(found) is (OutcomeUnknown if has_left else NotSent)
