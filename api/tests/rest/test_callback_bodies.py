"""Bodies of callbacks as web servers hand them over: in chunks, without a length, cut off, and too many of them."""

import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from django.conf import Settings
from django.core import signals
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import WSGIRequestHandler
from django.db import close_old_connections
from django.test import Client
from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http import wsgi as gunicorn_wsgi

from payments.models import Attempt, Callback
from payments.payouts.evidence import callbacks
from testing import builders, shapes
from testing.payout_steps import ADDRESSES, after, question, result_body, sent

pytestmark = pytest.mark.django_db

MPESA = "196.201.214.200"
SIXTEEN_KIB = 16 * 1024
Server = Callable[[bytes], tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def _addresses_of_the_test_kit(settings: Settings) -> None:
    settings.CALLBACK_TOKEN_KEY, settings.MPESA_CALLBACK_URL = ADDRESSES.key, ADDRESSES.callback_url


@pytest.fixture(autouse=True)
def _connection_of_the_test() -> Iterator[None]:
    """Keep the test's database connection open, as Django's test client does."""
    for signal in (signals.request_started, signals.request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (signals.request_started, signals.request_finished):
        signal.connect(close_old_connections)


@pytest.fixture
def attempt() -> Attempt:
    return sent(builders.payout(285))


def own_path(attempt: Attempt) -> str:
    return f"/api/payments/b2c-callback/{ADDRESSES.token(attempt.originator_conversation_id)}/"


def post(attempt: Attempt, body: bytes, source: str = MPESA) -> Any:
    return Client().post(own_path(attempt), body, content_type="application/json", REMOTE_ADDR=source)


# --- web servers: each parses a request as it comes from the network, and calls the application


def gunicorn(request: bytes) -> tuple[int, dict[str, Any]]:
    """Answer a raw HTTP request as gunicorn does."""
    config = Config()
    parsed = next(RequestParser(config, iter([request]), ("127.0.0.1", 5000)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _, environ = gunicorn_wsgi.create(parsed, ours, ("127.0.0.1", 5000), ("127.0.0.1", 8000), config)
        answered: list[str] = []
        parts = WSGIHandler()(environ, lambda status, headers: answered.append(status))
        return int(answered[0].split()[0]), json.loads(b"".join(parts))


class _OneServer:
    """The parts of a WSGI server that its request handler uses."""

    base_environ: ClassVar[dict[str, str]] = {"SERVER_NAME": "localhost", "SERVER_PORT": "8000", "SCRIPT_NAME": ""}

    def get_app(self) -> WSGIHandler:
        return WSGIHandler()


def runserver(request: bytes) -> tuple[int, dict[str, Any]]:
    """Answer a raw HTTP request as Django's runserver does, which is wsgiref."""
    caller, server = socket.socketpair()
    with caller, server:
        caller.sendall(request)
        caller.shutdown(socket.SHUT_WR)
        logging.getLogger("django.server").disabled = True
        try:
            WSGIRequestHandler(server, ("127.0.0.1", 5000), _OneServer())
        finally:
            logging.getLogger("django.server").disabled = False
        server.shutdown(socket.SHUT_WR)
        answer = io.BytesIO()
        while part := caller.recv(65_536):
            answer.write(part)
    head, _, body = answer.getvalue().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def request(attempt: Attempt, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {own_path(attempt)} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int = 100) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


SERVERS = pytest.mark.parametrize("server", [gunicorn, runserver])


@SERVERS
def test_body_with_a_length_is_stored(attempt: Attempt, server: Server) -> None:
    # given
    body = result_body(attempt)

    # when
    status, answer = server(request(attempt, body, f"Content-Length: {len(body)}"))

    # then
    assert (status, answer["ResultDesc"]) == (200, "Accepted")
    assert bytes(Callback.objects.get().body) == body


@pytest.mark.parametrize("size", [1, 100, 5_000])
def test_chunked_body_is_stored_completely_under_gunicorn(attempt: Attempt, size: int) -> None:
    # given
    body = result_body(attempt).ljust(SIXTEEN_KIB)

    # when
    status, answer = gunicorn(request(attempt, chunked(body, size), "Transfer-Encoding: chunked"))

    # then
    assert (status, answer["ResultDesc"]) == (200, "Accepted")
    assert bytes(Callback.objects.get().body) == body


def test_chunked_body_is_refused_with_411_under_runserver(attempt: Attempt) -> None:
    # when
    status, answer = runserver(request(attempt, chunked(result_body(attempt)), "Transfer-Encoding: chunked"))

    # then
    assert (status, answer["code"]) == (411, "length_required")
    assert Callback.objects.count() == 0


@pytest.mark.parametrize(
    ("server", "body", "headers", "refusal"),
    [
        (gunicorn, chunked(b" " * (SIXTEEN_KIB + 1)), ["Transfer-Encoding: chunked"], (400, "body_too_large")),
        (gunicorn, b"5\r\n{}", ["Transfer-Encoding: chunked"], (400, "incomplete_body")),
        (gunicorn, b"zz\r\n{}", ["Transfer-Encoding: chunked"], (400, "incomplete_body")),
        (gunicorn, b"0\r\n\r\n", ["Transfer-Encoding: chunked"], (400, "empty_body")),
        (gunicorn, b"", [], (400, "empty_body")),
        (gunicorn, b"", ["Content-Length: 0"], (400, "empty_body")),
        (gunicorn, b"{}", ["Content-Length: 9"], (400, "incomplete_body")),
        (runserver, b"", ["Content-Length: 0"], (400, "empty_body")),
        (runserver, b"{}", ["Content-Length: 9"], (400, "incomplete_body")),
        (runserver, b"{}", [], (411, "length_required")),
    ],
)
def test_body_that_was_not_read_is_refused_and_not_stored(
    attempt: Attempt, server: Server, body: bytes, headers: list[str], refusal: tuple[int, str]
) -> None:
    # when
    status, answer = server(request(attempt, body, *headers))

    # then
    assert (status, answer["code"]) == refusal
    assert Callback.objects.count() == 0


@SERVERS
def test_rest_call_in_chunks_is_refused_and_does_nothing(attempt: Attempt, server: Server) -> None:
    # given
    token = builders.token_of(builders.operator())
    lines = ["POST /api/markets/admin/retry-failed-payouts/ HTTP/1.1", "Host: localhost"]
    lines += [f"Authorization: Bearer {token}", "Content-Type: application/json", "Transfer-Encoding: chunked"]

    # when
    with builders.nothing_moved():
        status, answer = server("\r\n".join([*lines, "", ""]).encode() + chunked(b'{"hours": "nonsense"}'))

    # then
    assert (status, answer["code"]) == (411, "length_required")


# --- bodies that came in the wild


CALLBACKS = shapes.of_kind("b2c_result", "b2c_timeout", "status_answer", "balance_answer")


@pytest.mark.parametrize("shape", CALLBACKS, ids=lambda shape: shape.name)
def test_every_known_body_is_stored_as_it_came(attempt: Attempt, shape: shapes.Shape) -> None:
    # given
    asked = question(attempt, after(20))
    addresses = [own_path(attempt), own_path(attempt).replace("b2c-callback", "b2c-timeout"), "/api/payments/"]
    addresses[2] += f"status-result/{asked.token}/"

    # when
    answers = [Client().post(address, shape.body, content_type="application/json") for address in addresses]

    # then
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [bytes(callback.body) for callback in Callback.objects.all()] == [shape.body] * 3


# --- the limit of an address


def test_address_stores_fifty_bodies_and_refuses_others(attempt: Attempt, caplog: pytest.LogCaptureFixture) -> None:
    # given
    bodies = [b"%d" % number for number in range(callbacks.MOST_BODIES + 2)]

    # when
    statuses = [post(attempt, body, "6.6.6.6").status_code for body in bodies]
    repeated = post(attempt, bodies[0], "6.6.6.6").status_code
    refused = post(attempt, bodies[-1], "6.6.6.6")

    # then
    assert statuses == [200] * 50 + [429] * 2
    assert repeated == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_callbacks")
    assert Callback.objects.count() == callbacks.MOST_BODIES == 50
    assert sum("different body" in record.getMessage() for record in caplog.records) == 1


def test_others_cannot_use_up_mpesas_own_limit(attempt: Attempt) -> None:
    # given
    for number in range(callbacks.MOST_BODIES + 1):
        post(attempt, b"%d" % number, "6.6.6.6")

    # when
    answer = post(attempt, result_body(attempt))

    # then
    assert answer.status_code == 200
    assert Callback.objects.filter(trusted=True).count() == 1


def test_each_address_has_a_limit_of_its_own(attempt: Attempt) -> None:
    # given
    for number in range(callbacks.MOST_BODIES):
        post(attempt, b"%d" % number)
    other, asked = sent(builders.payout(285)), question(attempt, after(20))

    # when
    answers = [
        post(other, b"1"),
        Client().post(own_path(attempt).replace("b2c-callback", "b2c-timeout"), b"1", content_type="text/plain"),
        Client().post(f"/api/payments/status-result/{asked.token}/", b"1", content_type="text/plain"),
    ]

    # then
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_address_of_a_lost_request_has_the_same_limit(attempt: Attempt) -> None:
    # given
    lost = "KASOKO-1-1-0a1b2c3d-1"
    address = f"/api/payments/b2c-callback/{ADDRESSES.token(lost)}/"
    bodies = [result_body(attempt, ocid=lost) + b" " * number for number in range(callbacks.MOST_BODIES + 1)]

    # when
    statuses = [Client().post(address, body, content_type="application/json").status_code for body in bodies]

    # then
    assert statuses == [200] * 50 + [429]
    assert Callback.objects.count() == 50
