"""Merchant and callback receiver for tests of the simulated Daraja."""

import base64
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from payments.mpesa.strict_json import read_message

PHONE = "254708374149"
OTHER_PHONE = "254722000111"
PATIENCE_SECONDS = 30


class CallbackReceiver:
    """A callback receiver that records POSTs in order, as (path, body)."""

    def __init__(self) -> None:
        self.arrived = threading.Condition()
        self.posts: list[tuple[str, dict]] = []
        # Whether each body came in chunks, and its bytes.
        self.raw: list[tuple[bool, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                in_chunks = self.headers["Transfer-Encoding"] == "chunked"
                body = self._chunks() if in_chunks else self.rfile.read(int(self.headers["Content-Length"]))
                with receiver.arrived:
                    receiver.raw.append((in_chunks, body))
                    receiver.posts.append((self.path, read_message(body)))
                    receiver.arrived.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def wait(self, path: str, count: int = 1) -> list[dict]:
        """Wait until `count` POSTs to a path have arrived, and return their bodies."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.at(path)) >= count, PATIENCE_SECONDS), self.posts
            return self.at(path)

    def at(self, path: str) -> list[dict]:
        return [body for post_path, body in self.posts if post_path == path]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Merchant:
    """A merchant with one access token, who calls Daraja."""

    def __init__(self, base_url: str, receiver: CallbackReceiver) -> None:
        self.base_url, self.receiver = base_url, receiver
        self.session = requests.Session()
        self.session.trust_env = False
        self.sign_in()

    def sign_in(self) -> requests.Response:
        answer = self.session.get(
            f"{self.base_url}/oauth/v1/generate", params={"grant_type": "client_credentials"}, auth=("key", "secret")
        )
        self.session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return answer

    def post(self, path: str, body: dict) -> requests.Response:
        return self.session.post(f"{self.base_url}{path}", json=body, timeout=PATIENCE_SECONDS)

    def pay(self, ocid: str, amount: object = 285, phone: str = PHONE, **changes: object) -> requests.Response:
        body = {
            "OriginatorConversationID": ocid,
            "InitiatorName": "testapi",
            "SecurityCredential": "credential==",
            "CommandID": "BusinessPayment",
            "Amount": amount,
            "PartyA": "600999",
            "PartyB": phone,
            "Remarks": "Payout",
            "QueueTimeOutURL": f"{self.receiver.url}/timeout/",
            "ResultURL": f"{self.receiver.url}/result/",
            "Occassion": "Market 1",
        }
        return self.post("/mpesa/b2c/v3/paymentrequest", {**body, **changes})

    def ask(self, path: str = "/mpesa/transactionstatus/v1/query", **changes: object) -> requests.Response:
        body = {
            "Initiator": "testapi",
            "SecurityCredential": "credential==",
            "CommandID": "TransactionStatusQuery",
            "PartyA": "600999",
            "IdentifierType": "4",
            "ResultURL": f"{self.receiver.url}/status/",
            "QueueTimeOutURL": f"{self.receiver.url}/timeout/",
            "Remarks": "Question",
        }
        return self.post(path, {**body, **changes})

    def push(self, amount: int = 100, phone: str = PHONE) -> requests.Response:
        body = {
            "BusinessShortCode": "174379",
            "Password": base64.b64encode(b"174379passkey20261123120000").decode(),
            "Timestamp": "20261123120000",
            "TransactionType": "CustomerPayBillOnline",
            "Amount": amount,
            "PartyA": phone,
            "PartyB": "174379",
            "PhoneNumber": phone,
            "CallBackURL": f"{self.receiver.url}/push/",
            "AccountReference": "WALLET",
            "TransactionDesc": "Deposit",
        }
        return self.post("/mpesa/stkpush/v1/processrequest", body)

    def ask_push(self, checkout_id: str) -> requests.Response:
        body = {
            "BusinessShortCode": "174379",
            "Password": base64.b64encode(b"174379passkey20261123120000").decode(),
            "Timestamp": "20261123120000",
            "CheckoutRequestID": checkout_id,
        }
        return self.post("/mpesa/stkpushquery/v1/query", body)

    def sandbox_call(self, path: str, body: dict | None = None) -> dict:
        url = f"{self.base_url}/sandbox/{path}"
        return (self.session.get(url) if body is None else self.session.post(url, json=body)).json()

    def book(self) -> dict:
        """Return the simulator's record of all requests."""
        return self.sandbox_call("book")

    def wait_for(self, holds: Callable[[dict], object]) -> dict:
        """Read the simulator's book of requests until the book satisfies a condition. Return the book."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds(book := self.book()):
            assert time.monotonic() < deadline, book
        return book

    def finished(self, ocid: str) -> dict:
        """Wait until a payment is finished, and return the payment.

        It is finished when the simulator has posted or lost its result, or has dropped it and posted a timeout.
        """

        def done(_: object) -> bool:
            payment = self.sandbox_call(f"book/{ocid}").get("payment") or {}
            kinds = [callback["kind"] for callback in payment.get("callbacks", ())]
            return "result" in kinds or (payment.get("state") == "dropped" and "timeout" in kinds)

        self.wait_for(done)
        return self.sandbox_call(f"book/{ocid}")["payment"]


def parameters(result: dict) -> dict:
    """Return the parameters of a result by their keys."""
    return {item["Key"]: item.get("Value") for item in result["Result"]["ResultParameters"]["ResultParameter"]}


def status_answer(merchant: Merchant, ocid: str, count: int = 1) -> dict:
    """Send a status query, and wait until `count` status answers have arrived. Return the last one."""
    merchant.ask(OriginalConversationID=ocid)
    return merchant.receiver.wait("/status/", count)[-1]
