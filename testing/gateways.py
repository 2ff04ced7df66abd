"""Kit for tests of the gateway: credentials, requests, Daraja's answers and a scripted server on loopback."""

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import responses

from payments.mpesa.credentials import Credentials
from payments.mpesa.gateway_errors import GatewayError, NotSent, OutcomeUnknown, Rejected
from payments.mpesa.sealing import Seal

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

SEAL = Seal("a secret", purpose="test")


def credentials(base_url: str = BASE, **changes: Any) -> Credentials:
    keys = {"consumer_key": "the-key", "consumer_secret": "the-secret", "passkey": "the-passkey"}
    own = {"initiator_name": "kasoko", "security_credential": "the-credential", "shortcode": "600310"}
    return Credentials(base_url, **{**keys, **own, **changes})


def sent_bodies(daraja: responses.RequestsMock, url: str) -> list[dict[str, Any]]:
    return [json.loads(call.request.body or "") for call in daraja.calls if call.request.url == url]


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
    "acknowledgement with an error in it": (200, {**ACK, "errorCode": "404.001.03"}, OutcomeUnknown, {}),
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
    "rejection with HTTP 500": (500, {"errorCode": "400.002.02", "errorMessage": "?"}, OutcomeUnknown, {}),
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
    "spike arrest in a gateway's envelope": (
        500,
        {
            "soapenv:Envelope": {
                "soapenv:Body": {
                    "soapenv:Fault": {
                        "faultstring": "Spike arrest violation. Allowed rate : 5ps",
                        "detail": {"source": {"errorcode": "policies.ratelimit.SpikeArrestViolation"}},
                    }
                }
            }
        },
        NotSent,
        {"reason": "throttle", "code": "policies.ratelimit.SpikeArrestViolation"},
    ),
    "quota by its words only": (503, {"fault": {"faultstring": "Quota Violation"}}, NotSent, {"reason": "throttle"}),
    "another fault in a gateway's envelope": (
        500,
        {
            "Envelope": {
                "Body": {
                    "Fault": {
                        "faultcode": "soap:Server",
                        "faultstring": "Execution of ServiceCallout failed",
                        "detail": {"source": {"errorcode": "steps.servicecallout.ExecutionFailed"}},
                    }
                }
            }
        },
        OutcomeUnknown,
        {"code": "steps.servicecallout.ExecutionFailed", "message": "Execution of ServiceCallout failed"},
    ),
    "an envelope without a fault": (500, {"Envelope": {"Body": [1], "Fault": 5}, "fault": "x"}, OutcomeUnknown, {}),
    "our app or address is not allowed": (
        403,
        {"errorCode": "403.002.1001", "errorMessage": "You are not authorized to initiate this transaction"},
        Rejected,
        {"code": "403.002.1001"},
    ),
    "duplicate id, written with capitals": (
        500,
        {"RequestID": "r", "ErrorCode": "500.002.1001", "ErrorMessage": "Duplicate OriginatorConversationID."},
        OutcomeUnknown,
        {"code": "500.002.1001", "duplicate": True},
    ),
}
BAD_TOKENS = [
    (404, {"errorCode": "404.001.03", "errorMessage": "Invalid Access Token"}),
    (401, {"errorCode": "401.002.01", "errorMessage": "Error Occurred - Invalid Access Token - first-token"}),
    (400, {"errorCode": "400.003.01", "errorMessage": "Invalid Access Token"}),
    (500, {"errorCode": "500.009.99", "errorMessage": "Invalid access token"}),
    (401, {"fault": {"faultstring": "Invalid Access Token", "detail": {"errorcode": "keymanagement.service.x"}}}),
    (401, {"error": "invalid_token"}),
    (401, b""),
    (401, b"<html><body>401 Unauthorized</body></html>"),
    (401, b"<?xml version='1.0'?><error>token</error>"),
    (401, {"Envelope": {"Body": {"Fault": {"faultcode": "x", "faultstring": "Policy failed"}}}}),
    (500, {"Envelope": {"Body": {"Fault": {"faultcode": "soap:Server", "faultstring": "Invalid Access Token"}}}}),
    (200, {"errorCode": "401.002.01", "errorMessage": "Error Occurred - Invalid Access Token - first-token"}),
]


def raw(body: Any) -> bytes:
    """Return a body as bytes: bytes as they are, everything else as JSON."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


Script = Callable[[socket.socket, int], None]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ScriptedServer:
    """A real server on loopback. It reads each request completely, then runs the script on the connection."""

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


def drip(connection: socket.socket, payload: bytes) -> None:
    for byte in payload:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def reset(connection: socket.socket, _: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang_up(connection: socket.socket, _: int) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def hang_until_closed(connection: socket.socket) -> None:
    connection.recv(1)


def pour(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(10_000):
        connection.sendall(b" " * 65_536)


def send_and_hang_up(connection: socket.socket, answer: bytes) -> None:
    connection.sendall(answer)
    hang_up(connection, 0)


LOST_ANSWERS: dict[str, Script] = {
    "reset after sending": reset,
    "hung up after sending": hang_up,
    "silent": lambda connection, _: hang_until_closed(connection),
    "slow headers": lambda connection, _: drip(connection, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 500 + b"\r\n\r\n"),
    "slow body": lambda connection, _: drip(connection, http_answer(json.dumps(ACK).encode() + b" " * 300)),
    "half a body": lambda connection, _: send_and_hang_up(connection, ACKNOWLEDGEMENT[:-5]),
    "no HTTP": lambda connection, _: send_and_hang_up(connection, b"220 smtp ready\r\n"),
    "two lengths": lambda connection, _: connection.sendall(http_answer(b"{}", "200 OK", "Content-Length: 7, 9")),
    "false compression": lambda connection, _: connection.sendall(
        http_answer(b"{}", "200 OK", "Content-Encoding: gzip")
    ),
    "a huge body": lambda connection, _: connection.sendall(http_answer(json.dumps(ACK).encode() + b" " * 70_000)),
    "an endless body": lambda connection, _: pour(connection),
}
