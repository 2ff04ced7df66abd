"""The gateway's promise: each answer, and each way to get none, is named by what we then know of the money."""

import base64
import json
import os
import pickle
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import requests
import responses
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.client import Accepted, Credentials, Gateway, StkAccepted, StkAnswer
from payments.mpesa.gateway_errors import GatewayError, NotSent, OutcomeUnknown, Rejected
from payments.mpesa.request_fields import FORBIDDEN_WORDS

BASE = "https://daraja.test"
TOKEN_URL = f"{BASE}/oauth/v1/generate"
PAY_URL = f"{BASE}/mpesa/b2c/v3/paymentrequest"
STATUS_URL = f"{BASE}/mpesa/transactionstatus/v1/query"
BALANCE_URL = f"{BASE}/mpesa/accountbalance/v1/query"
STK_URL = f"{BASE}/mpesa/stkpush/v1/processrequest"
STK_QUERY_URL = f"{BASE}/mpesa/stkpushquery/v1/query"
AT = datetime(2026, 11, 22, 22, 30, 5, tzinfo=UTC)
ACK = {
    "ConversationID": "AG_20261123_1",
    "OriginatorConversationID": "KASOKO-1-7-0a1b2c3d-1",
    "ResponseCode": "0",
    "ResponseDescription": "Accept the service request successfully.",
}
PAYMENT: dict[str, Any] = {
    "originator_conversation_id": "KASOKO-1-7-0a1b2c3d-1",
    "amount_shillings": 285,
    "phone_number": "254712345678",
    "remarks": "Kasoko: market #1 / payout",
    "occasion": "KASOKO-1-7",
    "result_url": "https://pay.example.com/b2c-callback/0a1b/",
    "timeout_url": "https://pay.example.com/b2c-timeout/0a1b/",
}
URLS = {"result_url": "https://pay.example.com/r/0a/", "timeout_url": "https://pay.example.com/t/0a/"}


def credentials(base_url: str = BASE, **changes: Any) -> Credentials:
    keys = {"consumer_key": "the-key", "consumer_secret": "the-secret", "passkey": "the-passkey"}
    own = {"initiator_name": "kasoko", "security_credential": "the-credential", "shortcode": "600310"}
    return Credentials(base_url, **{**keys, **own, **changes})


@pytest.fixture
def redis_client() -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
    yield client
    for key in client.scan_iter("daraja:token:test-*"):
        client.delete(key)
    client.close()


@pytest.fixture
def tokens(redis_client: redis.Redis) -> SharedTokens:
    return SharedTokens(redis_client, name=f"test-{uuid4().hex}")


@pytest.fixture
def gateway(tokens: SharedTokens) -> Iterator[Gateway]:
    gateway = Gateway(credentials(), tokens=tokens)
    yield gateway
    gateway.close()


@pytest.fixture
def daraja() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.get(TOKEN_URL, json={"access_token": "first-token", "expires_in": "3599"})
        yield mock


def sent_bodies(daraja: responses.RequestsMock, url: str) -> list[dict[str, Any]]:
    return [json.loads(call.request.body) for call in daraja.calls if call.request.url == url]


# -------- payments


def test_a_payment_is_sent_with_daraja_s_own_spellings(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, json=ACK)

    accepted = gateway.pay(**PAYMENT)

    assert accepted == Accepted("AG_20261123_1", "KASOKO-1-7-0a1b2c3d-1")
    assert sent_bodies(daraja, PAY_URL) == [
        {
            "OriginatorConversationID": "KASOKO-1-7-0a1b2c3d-1",
            "InitiatorName": "kasoko",
            "SecurityCredential": "the-credential",
            "CommandID": "BusinessPayment",
            "Amount": 285,
            "PartyA": "600310",
            "PartyB": "254712345678",
            "Remarks": "Kasoko market 1 payout",
            "QueueTimeOutURL": "https://pay.example.com/b2c-timeout/0a1b/",
            "ResultURL": "https://pay.example.com/b2c-callback/0a1b/",
            "Occassion": "KASOKO 1 7",
        }
    ]
    assert daraja.calls[0].request.headers["Authorization"] == requests.auth._basic_auth_str("the-key", "the-secret")
    assert daraja.calls[1].request.headers["Authorization"] == "Bearer first-token"


def test_an_empty_occasion_is_left_out(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, json=ACK)

    gateway.pay(**{**PAYMENT, "occasion": ""})

    assert "Occassion" not in sent_bodies(daraja, PAY_URL)[0]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"amount_shillings": True}, TypeError, "bool"),
        ({"amount_shillings": 285.0}, TypeError, "float"),
        ({"amount_shillings": Decimal("285.37")}, TypeError, "Decimal"),
        ({"amount_shillings": "285"}, TypeError, "str"),
        ({"amount_shillings": 0}, ValueError, "above zero"),
        ({"amount_shillings": -1}, ValueError, "above zero"),
        ({"phone_number": "0712345678"}, ValueError, r"2547\*\*\*\*678"),
        ({"phone_number": "٢٥٤٧١٢٣٤٥٦٧٨"}, ValueError, "does not have the form"),
        ({"originator_conversation_id": "a" * 37}, ValueError, "1 to 36"),
        ({"originator_conversation_id": "a b"}, ValueError, "1 to 36"),
        ({"remarks": "!"}, ValueError, "remarks"),
        ({"result_url": "ftp://pay.example.com/"}, ValueError, "http"),
    ],
)
def test_what_must_not_be_sent_is_refused(
    gateway: Gateway, daraja: responses.RequestsMock, changes: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gateway.pay(**{**PAYMENT, **changes})

    assert len(daraja.calls) == 0


@pytest.mark.parametrize("word", FORBIDDEN_WORDS)
@pytest.mark.parametrize("field", ["result_url", "timeout_url"])
def test_a_callback_url_with_a_forbidden_word_is_refused_by_name(gateway: Gateway, word: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"'{word}'"):
        gateway.pay(**{**PAYMENT, field: f"https://pay.example.com/a{word.upper()}b/"})


ANSWERS: dict[str, tuple[int, Any, type[GatewayError], dict[str, Any]]] = {
    "ack without ConversationID": (200, {"ResponseCode": "0"}, OutcomeUnknown, {"code": "0"}),
    "ack without ResponseCode": (200, {"ConversationID": "AG_1"}, OutcomeUnknown, {}),
    "unknown ResponseCode": (200, {**ACK, "ResponseCode": "1"}, OutcomeUnknown, {"code": "1", "duplicate": False}),
    "cached for resending": (200, {**ACK, "ResponseCode": "100000000"}, OutcomeUnknown, {"code": "100000000"}),
    "duplicate with HTTP 200": (
        200,
        {"ResponseCode": "1", "ResponseDescription": "Duplicate request"},
        OutcomeUnknown,
        {"duplicate": False},
    ),
    "ack with an error in it": (200, {**ACK, "errorCode": "404.001.03"}, OutcomeUnknown, {}),
    "rejected ResponseCode": (200, {**ACK, "ResponseCode": "25"}, Rejected, {"code": "25"}),
    "empty": (200, b"", OutcomeUnknown, {}),
    "HTML": (200, b"<html>Incapsula</html>", OutcomeUnknown, {}),
    "a list": (200, [], OutcomeUnknown, {}),
    "deep garbage": (200, b"[" * 60_000, OutcomeUnknown, {}),
    "bad request": (
        400,
        {"requestId": "1", "errorCode": "400.002.02", "errorMessage": "Bad Request - Invalid PartyB 254712345678"},
        Rejected,
        {"code": "400.002.02", "message": "Bad Request - Invalid PartyB 2547****678"},
    ),
    "wrong path": (404, {"errorCode": "404.002.01", "errorMessage": "Resource not found"}, Rejected, {}),
    "wrong verb": (405, {"errorCode": "405.001", "errorMessage": "Method not allowed"}, Rejected, {}),
    "an unlisted 400": (400, {"errorCode": "400.999.99", "errorMessage": "?"}, OutcomeUnknown, {"code": "400.999.99"}),
    "a rejection by a 500": (500, {"errorCode": "400.002.02", "errorMessage": "?"}, OutcomeUnknown, {}),
    "400 without a body": (400, b"", OutcomeUnknown, {}),
    "403 by a firewall": (403, b"<html>", OutcomeUnknown, {}),
    "duplicate id": (
        500,
        {"errorCode": "500.002.1001", "errorMessage": "Duplicate OriginatorConversationID."},
        OutcomeUnknown,
        {"code": "500.002.1001", "duplicate": True},
    ),
    "the same code, other text": (
        500,
        {"errorCode": "500.002.1001", "errorMessage": "System internal error."},
        OutcomeUnknown,
        {"duplicate": False},
    ),
    "internal error": (500, {"errorCode": "500.003.1001", "errorMessage": "Internal Server Error"}, OutcomeUnknown, {}),
    "503": (503, b"<html>503</html>", OutcomeUnknown, {}),
    "a redirect": (302, b"", OutcomeUnknown, {}),
    "spike arrest": (
        500,
        {"errorCode": "500.003.02", "errorMessage": "Spike Arrest Violation"},
        NotSent,
        {"reason": "throttle", "code": "500.003.02", "retry_after_seconds": None},
    ),
    "quota": (500, {"errorCode": "500.003.03", "errorMessage": "Quota Violation"}, NotSent, {"reason": "throttle"}),
    "429": (429, b"", NotSent, {"reason": "throttle"}),
    "the proxy's own spike arrest": (
        500,
        {"fault": {"faultstring": "Spike", "detail": {"errorcode": "policies.ratelimit.SpikeArrestViolation"}}},
        NotSent,
        {"reason": "throttle"},
    ),
}


@pytest.mark.parametrize(("status", "body", "error", "facts"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_answer_is_named_by_what_it_says_of_the_money(
    gateway: Gateway,
    daraja: responses.RequestsMock,
    status: int,
    body: Any,
    error: type[GatewayError],
    facts: dict[str, Any],
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body)
    daraja.post(PAY_URL, body=raw, status=status, headers={"Location": PAY_URL})

    with pytest.raises(GatewayError) as caught:
        gateway.pay(**PAYMENT)

    assert type(caught.value) is error
    assert {name: getattr(caught.value, name) for name in facts} == facts
    assert len(sent_bodies(daraja, PAY_URL)) == 1


def test_a_throttle_tells_how_long_to_wait_where_daraja_says_so(
    gateway: Gateway, daraja: responses.RequestsMock
) -> None:
    daraja.post(PAY_URL, status=429, headers={"Retry-After": "7"})

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.retry_after_seconds == 7.0


# -------- authorisation

BAD_TOKENS = [
    (404, {"errorCode": "404.001.03", "errorMessage": "Invalid Access Token"}),
    (401, {"errorCode": "401.002.01", "errorMessage": "Error Occurred - Invalid Access Token - first-token"}),
    (400, {"errorCode": "400.003.01", "errorMessage": "Invalid Access Token"}),
    (500, {"errorCode": "500.009.99", "errorMessage": "Invalid access token"}),
    (401, {"fault": {"faultstring": "Invalid Access Token", "detail": {"errorcode": "keymanagement.service.x"}}}),
]


@pytest.mark.parametrize(("status", "body"), BAD_TOKENS)
def test_a_bad_token_is_renewed_once_and_the_same_body_sent_again(
    gateway: Gateway, daraja: responses.RequestsMock, status: int, body: dict
) -> None:
    daraja.post(PAY_URL, json=body, status=status)
    daraja.post(PAY_URL, json=ACK)
    daraja.get(TOKEN_URL, json={"access_token": "second-token", "expires_in": 3599})

    accepted = gateway.pay(**PAYMENT)

    assert accepted.conversation_id == "AG_20261123_1"
    first, second = sent_bodies(daraja, PAY_URL)
    assert first == second
    assert daraja.calls[-1].request.headers["Authorization"] == "Bearer second-token"


def test_a_token_bad_twice_is_not_sent(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, json=BAD_TOKENS[1][1], status=401)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert (caught.value.reason, caught.value.code) == ("auth", "401.002.01")
    assert "first-token" not in str(caught.value)
    assert len(sent_bodies(daraja, PAY_URL)) == 2


def test_a_resend_after_a_bad_token_that_gets_no_answer_is_in_doubt(
    gateway: Gateway, daraja: responses.RequestsMock
) -> None:
    daraja.post(PAY_URL, json=BAD_TOKENS[0][1], status=404)
    daraja.post(PAY_URL, body=b"", status=503)

    with pytest.raises(OutcomeUnknown):
        gateway.pay(**PAYMENT)


def test_a_token_another_worker_already_renewed_is_read_again(
    gateway: Gateway, tokens: SharedTokens, daraja: responses.RequestsMock
) -> None:
    def another_worker_was_faster(request: requests.PreparedRequest) -> tuple[int, dict, str]:
        tokens.drop("first-token")
        tokens.get(lambda: ("their-token", 3599))
        return 404, {}, json.dumps(BAD_TOKENS[0][1])

    daraja.add_callback("POST", PAY_URL, another_worker_was_faster)
    daraja.post(PAY_URL, json=ACK)

    gateway.pay(**PAYMENT)

    assert daraja.calls[-1].request.headers["Authorization"] == "Bearer their-token"
    assert len([call for call in daraja.calls if call.request.url.startswith(TOKEN_URL)]) == 1


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b"", "auth"),
        (400, b'{"errorCode": "400.008.01", "errorMessage": "Invalid Authentication passed"}', "auth"),
        (401, b"", "auth"),
        (503, b"<html>", "network"),
        (200, b"<html>", "network"),
        (200, b'{"access_token": "two words", "expires_in": 3599}', "network"),
        (429, b"", "throttle"),
        (500, b'{"errorCode": "500.003.02", "errorMessage": "Spike Arrest"}', "throttle"),
    ],
)
def test_without_a_token_nothing_is_sent(tokens: SharedTokens, status: int, body: bytes, reason: str) -> None:
    with responses.RequestsMock() as daraja:
        daraja.get(TOKEN_URL, status=status, body=body)

        with pytest.raises(NotSent) as caught:
            Gateway(credentials(), tokens=tokens).pay(**PAYMENT)

        assert caught.value.reason == reason


def test_without_redis_nothing_is_sent(daraja: responses.RequestsMock) -> None:
    nowhere = SharedTokens(redis.Redis(port=closed_port(), retry=None), name="test-nowhere")

    with pytest.raises(NotSent) as caught:
        Gateway(credentials(), tokens=nowhere).pay(**PAYMENT)

    assert caught.value.reason == "network"
    assert len(daraja.calls) == 0


# -------- questions


def test_a_status_is_asked_by_id_or_by_receipt(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(STATUS_URL, json={**ACK, "OriginatorConversationID": "12363-1-1"})

    accepted = gateway.ask_status(originator_conversation_id="KASOKO-1-7-0a1b2c3d-1", **URLS)
    gateway.ask_status(receipt="SKN4Q1ABCD", **URLS)

    by_id, by_receipt = sent_bodies(daraja, STATUS_URL)
    assert accepted == Accepted("AG_20261123_1", "12363-1-1")
    assert by_id == {
        "Initiator": "kasoko",
        "SecurityCredential": "the-credential",
        "CommandID": "TransactionStatusQuery",
        "OriginalConversationID": "KASOKO-1-7-0a1b2c3d-1",
        "PartyA": "600310",
        "IdentifierType": "4",
        "Remarks": "Status",
        "QueueTimeOutURL": URLS["timeout_url"],
        "ResultURL": URLS["result_url"],
    }
    assert by_receipt["TransactionID"] == "SKN4Q1ABCD"
    assert "OriginalConversationID" not in by_receipt


@pytest.mark.parametrize("wanted", [{}, {"originator_conversation_id": "a", "receipt": "b"}])
def test_a_status_is_asked_by_exactly_one_of_them(gateway: Gateway, wanted: dict) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        gateway.ask_status(**wanted, **URLS)


def test_a_balance_is_asked(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(BALANCE_URL, json=ACK)

    accepted = gateway.ask_balance(**URLS)

    assert accepted.conversation_id == "AG_20261123_1"
    assert sent_bodies(daraja, BALANCE_URL)[0]["CommandID"] == "AccountBalance"
    assert sent_bodies(daraja, BALANCE_URL)[0]["PartyA"] == "600310"


STK: dict[str, Any] = {
    "amount_shillings": 100,
    "phone_number": "254712345678",
    "account_reference": "KASOKO",
    "description": "Deposit",
    "callback_url": "https://pay.example.com/stk-callback/0a1b/",
    "at": AT,
}


def test_an_stk_push_is_signed_with_nairobi_time(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    ack = {"MerchantRequestID": "29115-1", "CheckoutRequestID": "ws_CO_1", "ResponseCode": "0", "CustomerMessage": "ok"}
    daraja.post(STK_URL, json=ack)

    accepted = gateway.push_stk(**STK)

    assert accepted == StkAccepted("29115-1", "ws_CO_1", "ok")
    assert sent_bodies(daraja, STK_URL) == [
        {
            "BusinessShortCode": "600310",
            "Password": base64.b64encode(b"600310the-passkey20261123013005").decode(),
            "Timestamp": "20261123013005",
            "TransactionType": "CustomerPayBillOnline",
            "Amount": 100,
            "PartyA": "254712345678",
            "PartyB": "600310",
            "PhoneNumber": "254712345678",
            "CallBackURL": "https://pay.example.com/stk-callback/0a1b/",
            "AccountReference": "KASOKO",
            "TransactionDesc": "Deposit",
        }
    ]


@pytest.mark.parametrize(
    "changes",
    [{"account_reference": "a" * 13}, {"description": "a" * 14}, {"description": ""}, {"at": AT.replace(tzinfo=None)}],
)
def test_an_stk_push_that_daraja_would_refuse_is_not_made(gateway: Gateway, changes: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        gateway.push_stk(**{**STK, **changes})


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (200, {"ResponseCode": "0", "ResultCode": "0", "ResultDesc": "ok"}, StkAnswer("ws_1", False, "0", "ok")),
        (200, {"ResponseCode": "0", "ResultCode": "1032", "ResultDesc": "no"}, StkAnswer("ws_1", False, "1032", "no")),
        (
            200,
            {"ResponseCode": "0", "ResultCode": "4999", "ResultDesc": "wait"},
            StkAnswer("ws_1", True, "4999", "wait"),
        ),
        (
            500,
            {"errorCode": "500.001.1001", "errorMessage": "The transaction is being processed"},
            StkAnswer("ws_1", True, "", "The transaction is being processed"),
        ),
    ],
)
def test_an_stk_push_is_asked_about(
    gateway: Gateway, daraja: responses.RequestsMock, status: int, body: dict, answer: StkAnswer
) -> None:
    daraja.post(STK_QUERY_URL, json=body, status=status)

    assert gateway.ask_stk(checkout_request_id="ws_1", at=AT) == answer
    assert answer.says_paid is (answer.result_code == "0")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"errorCode": "500.001.1001", "errorMessage": "Wrong credentials"}),
        (200, {"ResponseCode": "0"}),
        (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": "ws_2"}),
    ],
)
def test_an_stk_answer_about_nothing_or_another_push_is_in_doubt(
    gateway: Gateway, daraja: responses.RequestsMock, status: int, body: dict
) -> None:
    daraja.post(STK_QUERY_URL, json=body, status=status)

    with pytest.raises(OutcomeUnknown):
        gateway.ask_stk(checkout_request_id="ws_1", at=AT)


# -------- secrets, errors


def test_neither_reprs_nor_errors_tell_secrets(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, status=400, json={"errorCode": "400.002.02", "errorMessage": "the-credential\n254712345678"})

    with pytest.raises(Rejected) as caught:
        gateway.pay(**PAYMENT)

    for text in (repr(gateway), repr(credentials()), repr(caught.value), str(caught.value)):
        assert not any(secret in text for secret in ("the-key", "the-secret", "the-credential", "the-passkey", "71234"))
    assert str(caught.value) == "Rejected 400.002.02 [redacted] 2547****678"


@pytest.mark.parametrize(
    "error", [NotSent("throttle", "429", "slow", 2.0), Rejected("25", "no"), OutcomeUnknown("1", "hm", True)]
)
def test_an_error_survives_a_task_queue(error: GatewayError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert (type(copy), vars(copy), str(copy)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize("base_url", ["api.example.com", "ftp://api.example.com", "https://"])
def test_a_base_url_must_be_one(base_url: str) -> None:
    with pytest.raises(ValueError, match="base URL"):
        credentials(base_url)


def test_the_token_s_name_depends_on_host_and_key_and_tells_neither() -> None:
    names = {
        credentials().token_name,
        credentials("https://other.test").token_name,
        credentials(consumer_key="other").token_name,
    }

    assert len(names) == 3
    assert all(len(name) == 32 and "key" not in name for name in names)
    assert credentials(BASE + "/").token_name == credentials().token_name


# -------- the wire

Script = Callable[[socket.socket, int], None]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wire:
    """A real server on loopback: it reads each request whole, then hands the connection to the script."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with suppress(OSError), self._tls.wrap_socket(connection, True) if self._tls else connection as connection:
            while request := read_request(connection):
                self.requests.append(request)
                self._script(connection, len(self.requests))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)


def read_request(connection: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read:
        part = connection.recv(65_536)
        if not part:
            return b""
        read += part
    head, _, rest = read.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(rest) < int(lengths[0] if lengths else 0):
        rest += connection.recv(65_536)
    return head + b"\r\n\r\n" + rest


def http_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


ACKNOWLEDGEMENT = http_answer(json.dumps(ACK).encode())


@contextmanager
def daraja_on_the_wire(tokens: SharedTokens, script: Script, timeout_seconds: float = 10.0) -> Iterator[tuple]:
    tokens.get(lambda: ("wire-token", 3599))
    wire = Wire(script)
    gateway = Gateway(credentials(wire.url), tokens=tokens, timeout_seconds=timeout_seconds)
    try:
        yield gateway, wire
    finally:
        gateway.close()
        wire.close()


def drip(connection: socket.socket, payload: bytes) -> None:
    for byte in payload:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def reset(connection: socket.socket, _: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang_up(connection: socket.socket, _: int) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def test_a_payment_over_a_real_connection_reuses_it(tokens: SharedTokens) -> None:
    peers: set[Any] = set()

    def acknowledge(connection: socket.socket, _: int) -> None:
        peers.add(connection.getpeername())
        connection.sendall(ACKNOWLEDGEMENT)

    with daraja_on_the_wire(tokens, acknowledge) as (gateway, wire):
        for _ in range(3):
            assert gateway.pay(**PAYMENT).conversation_id == "AG_20261123_1"

    assert (len(wire.requests), len(peers)) == (3, 1)
    assert b"authorization: bearer wire-token" in wire.requests[0].lower()


LOST: dict[str, Script] = {
    "reset after sending": reset,
    "hung up after sending": hang_up,
    "silent": lambda connection, _: hang_until_closed(connection),
    "slow headers": lambda connection, _: drip(connection, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 500 + b"\r\n\r\n"),
    "slow body": lambda connection, _: drip(connection, http_answer(json.dumps(ACK).encode() + b" " * 300)),
    "half a body": lambda connection, _: (connection.sendall(ACKNOWLEDGEMENT[:-5]), hang_up(connection, 0))[0],
    "no HTTP": lambda connection, _: (connection.sendall(b"220 smtp ready\r\n"), hang_up(connection, 0))[0],
    "two lengths": lambda connection, _: connection.sendall(http_answer(b"{}", "200 OK", "Content-Length: 7, 9")),
    "false compression": lambda connection, _: connection.sendall(
        http_answer(b"{}", "200 OK", "Content-Encoding: gzip")
    ),
    "a huge body": lambda connection, _: connection.sendall(http_answer(json.dumps(ACK).encode() + b" " * 70_000)),
    "an endless body": lambda connection, _: pour(connection),
}


def hang_until_closed(connection: socket.socket) -> None:
    connection.recv(1)


def pour(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(10_000):
        connection.sendall(b" " * 65_536)


@pytest.mark.parametrize("script", LOST.values(), ids=LOST.keys())
def test_a_payment_whose_answer_is_lost_is_in_doubt(tokens: SharedTokens, script: Script) -> None:
    with daraja_on_the_wire(tokens, script, timeout_seconds=1.5) as (gateway, wire):
        with pytest.raises(OutcomeUnknown) as caught:
            gateway.pay(**PAYMENT)

        assert caught.value.duplicate is False
        assert len(wire.requests) == 1


def test_a_redirect_is_not_followed(tokens: SharedTokens) -> None:
    def redirect(connection: socket.socket, _: int) -> None:
        connection.sendall(http_answer(b"", "307 Temporary Redirect", "Location: /elsewhere"))

    with daraja_on_the_wire(tokens, redirect) as (gateway, wire):
        with pytest.raises(OutcomeUnknown):
            gateway.pay(**PAYMENT)

        assert len(wire.requests) == 1


def test_a_kept_connection_that_dies_after_sending_is_in_doubt(tokens: SharedTokens) -> None:
    def once(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.sendall(ACKNOWLEDGEMENT)
        else:
            reset(connection, number)

    with daraja_on_the_wire(tokens, once) as (gateway, wire):
        gateway.pay(**PAYMENT)
        with pytest.raises(OutcomeUnknown):
            gateway.pay(**PAYMENT)

        assert len(wire.requests) == 2


def test_a_refused_connection_is_not_sent(tokens: SharedTokens) -> None:
    tokens.get(lambda: ("wire-token", 3599))
    gateway = Gateway(credentials(f"http://127.0.0.1:{closed_port()}"), tokens=tokens)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "network"


def test_an_unknown_host_is_not_sent(tokens: SharedTokens) -> None:
    tokens.get(lambda: ("wire-token", 3599))
    gateway = Gateway(credentials("http://no-such-host.invalid"), tokens=tokens)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "network"


def test_a_tls_handshake_that_fails_is_not_sent(tokens: SharedTokens) -> None:
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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(signed.public_bytes(Encoding.PEM) + private)
    return path


def test_over_tls_too_only_what_left_is_in_doubt(tokens: SharedTokens, certificate: Path) -> None:
    def acknowledge_once(connection: socket.socket, number: int) -> None:
        if number == 1:
            connection.sendall(ACKNOWLEDGEMENT)
        else:
            reset(connection, number)

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tokens.get(lambda: ("wire-token", 3599))
    wire = Wire(acknowledge_once, tls)
    trusting = requests.Session()
    trusting.verify = str(certificate)
    known = Gateway(credentials(wire.url), tokens=tokens, session=trusting, timeout_seconds=10)
    stranger = Gateway(credentials(wire.url), tokens=tokens, timeout_seconds=10)

    accepted = known.pay(**PAYMENT)
    with pytest.raises(OutcomeUnknown):
        known.pay(**PAYMENT)
    with pytest.raises(NotSent):
        stranger.pay(**PAYMENT)

    assert accepted.conversation_id == "AG_20261123_1"
    assert len(wire.requests) == 2
    known.close()
    stranger.close()
    wire.close()


def test_a_slow_token_is_not_sent_and_leaves_no_time_to_pay(redis_client: redis.Redis) -> None:
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}")
    listener = socket.create_server(("127.0.0.1", 0))
    gateway = Gateway(credentials(f"http://127.0.0.1:{listener.getsockname()[1]}"), tokens=tokens, timeout_seconds=0.3)
    with listener, pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "network"


def test_many_threads_share_one_gateway(tokens: SharedTokens) -> None:
    def echo(connection: socket.socket, _: int) -> None:
        connection.sendall(ACKNOWLEDGEMENT)

    with daraja_on_the_wire(tokens, echo) as (gateway, wire):
        with ThreadPoolExecutor(8) as pool:
            accepted = list(pool.map(lambda n: gateway.pay(**{**PAYMENT, "amount_shillings": n}), range(1, 101)))

    amounts = sorted(json.loads(request.partition(b"\r\n\r\n")[2])["Amount"] for request in wire.requests)
    assert len(accepted) == 100
    assert amounts == list(range(1, 101))


# -------- tokens


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def fetches(*values: str, life_seconds: int = 3600) -> Callable[[], tuple[str, int]]:
    left = list(values)
    return lambda: (left.pop(0), life_seconds)


def never() -> tuple[str, int]:
    raise AssertionError("the shared token was not used")


def test_a_token_is_shared_until_a_minute_before_its_end(redis_client: redis.Redis) -> None:
    clock = Clock()
    name = f"test-{uuid4().hex}"
    one, other = (SharedTokens(redis_client, name=name, clock=clock) for _ in range(2))

    assert one.get(fetches("a")) == "a"
    clock.now += 3539
    assert other.get(never) == "a"
    clock.now += 1
    assert other.get(fetches("b")) == "b"
    assert one.get(never) == "b"


def test_a_short_lived_token_is_renewed_after_three_quarters_of_its_life(redis_client: redis.Redis) -> None:
    clock = Clock()
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}", clock=clock)

    assert tokens.get(fetches("a", life_seconds=20)) == "a"
    clock.now += 14.9
    assert tokens.get(never) == "a"
    clock.now += 0.1
    assert tokens.get(fetches("b")) == "b"


def test_near_its_end_a_token_serves_while_no_new_one_is_to_be_had(redis_client: redis.Redis) -> None:
    clock = Clock()
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}", clock=clock)

    def unreachable() -> tuple[str, int]:
        raise NotSent("network")

    tokens.get(fetches("a"))
    clock.now += 3570
    assert tokens.get(unreachable) == "a"
    clock.now += 30
    with pytest.raises(NotSent):
        tokens.get(unreachable)


def test_only_one_of_many_workers_fetches(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    fetched: list[int] = []
    everyone = threading.Barrier(8)

    def fetch() -> tuple[str, int]:
        fetched.append(1)
        return f"token-{len(fetched)}", 3600

    def worker(_: int) -> str:
        everyone.wait(30)
        return SharedTokens(redis_client, name=name, wait_seconds=30).get(fetch)

    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(worker, range(8)))

    assert got == {"token-1"}
    assert len(fetched) == 1


def test_near_its_end_others_go_on_with_the_token_while_one_fetches(redis_client: redis.Redis) -> None:
    clock = Clock()
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}", clock=clock)
    tokens.get(fetches("a"))
    clock.now += 3570

    def fetch_while_another_asks() -> tuple[str, int]:
        assert tokens.get(never) == "a"
        return "b", 3600

    assert tokens.get(fetch_while_another_asks) == "b"


def test_a_worker_that_waits_too_long_for_a_token_sends_nothing(redis_client: redis.Redis) -> None:
    tokens = SharedTokens(redis_client, name=f"test-{uuid4().hex}", wait_seconds=0.05)

    def fetch_while_another_asks() -> tuple[str, int]:
        with pytest.raises(NotSent):
            tokens.get(never)
        return "a", 3600

    assert tokens.get(fetch_while_another_asks) == "a"


def test_dropping_a_token_spares_a_newer_one(tokens: SharedTokens) -> None:
    tokens.get(fetches("a"))
    tokens.drop("a")
    assert tokens.get(fetches("b")) == "b"

    tokens.drop("a")

    assert tokens.get(never) == "b"


def test_a_lock_that_ran_out_while_fetching_costs_nothing(redis_client: redis.Redis) -> None:
    name = f"test-{uuid4().hex}"
    tokens = SharedTokens(redis_client, name=name)

    def fetch_for_too_long() -> tuple[str, int]:
        redis_client.delete(f"daraja:token:{name}:lock")
        return "a", 3600

    assert tokens.get(fetch_for_too_long) == "a"


@pytest.mark.parametrize(("life", "expires"), [("3599", 3599), (3599, 3599), (3599.0, 3599), (None, 1), ("soon", 1)])
def test_a_token_s_life_is_a_number_or_a_text(
    redis_client: redis.Redis, daraja: responses.RequestsMock, life: object, expires: int
) -> None:
    name = f"test-{uuid4().hex}"
    daraja.replace("GET", TOKEN_URL, json={"access_token": "a-token", "expires_in": life})
    daraja.post(PAY_URL, json=ACK)
    clock = Clock()

    Gateway(credentials(), tokens=SharedTokens(redis_client, name=name, clock=clock)).pay(**PAYMENT)

    kept = redis_client.hget(f"daraja:token:{name}", "expires_at")
    assert kept is not None
    assert float(kept) == clock.now + expires
