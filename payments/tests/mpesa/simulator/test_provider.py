"""The Daraja simulator, asked over HTTP and looked up in its own book."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from payments.mpesa import tariff
from payments.mpesa.simulator import fault_schedule, faults, messages
from payments.mpesa.simulator.book import Book
from payments.mpesa.simulator.server import Options, Simulator
from payments.mpesa.simulator.terms import Terms

ROOT = Path(__file__).resolve().parents[4]
PHONE = "254708374149"
OTHER = "254722000111"
PATIENCE_SECONDS = 30


class Receiver:
    """A callback receiver that keeps what it was sent, in order, as (path, body)."""

    def __init__(self) -> None:
        self.arrived = threading.Condition()
        self.posts: list[tuple[str, dict]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver.arrived:
                    receiver.posts.append((self.path, json.loads(body, parse_float=Decimal)))
                    receiver.arrived.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def wait(self, path: str, count: int = 1) -> list[dict]:
        """Wait until so many posts came to a path; return their bodies."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.at(path)) >= count, PATIENCE_SECONDS), self.posts
            return self.at(path)

    def at(self, path: str) -> list[dict]:
        return [body for where, body in self.posts if where == path]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Client:
    """A merchant: one token, and the calls of Daraja."""

    def __init__(self, base_url: str, receiver: Receiver) -> None:
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

    def own(self, path: str, body: dict | None = None) -> dict:
        url = f"{self.base_url}/sandbox/{path}"
        return (self.session.get(url) if body is None else self.session.post(url, json=body)).json()

    def book(self) -> dict:
        return self.own("book")

    def wait_for(self, holds: Callable[[dict], object]) -> dict:
        """Ask for the book until something holds in it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds(book := self.book()):
            assert time.monotonic() < deadline, book
        return book

    def settled(self, ocid: str) -> dict:
        """Wait until the result of a payment was posted or lost, or it was dropped; return the payment."""

        def done(_: object) -> bool:
            payment = self.own(f"book/{ocid}").get("payment") or {}
            kinds = [callback["kind"] for callback in payment.get("callbacks", ())]
            return "result" in kinds or (payment.get("state") == "dropped" and "timeout" in kinds)

        self.wait_for(done)
        return self.own(f"book/{ocid}")["payment"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def start(receiver: Receiver) -> Iterator[Callable[..., Client]]:
    """Start a simulator in this process; faults of PHONE by their specifications."""
    running: list[tuple[Simulator, Client]] = []

    def begin(*specs: str, callback_delay: float = 0.01, tps: int = 0, **options: object) -> Client:
        terms = options.pop("terms", Terms(callback_delay=callback_delay, tps=tps))
        phone_faults = tuple((PHONE, spec) for spec in specs)
        simulator = Simulator(Options(latency=0, terms=terms, phone_faults=phone_faults, **options)).start()
        client = Client(simulator.base_url, receiver)
        running.append((simulator, client))
        return client

    yield begin
    for simulator, client in running:
        client.session.close()
        simulator.stop()


def parameters(result: dict) -> dict:
    return {item["Key"]: item.get("Value") for item in result["Result"]["ResultParameters"]["ResultParameter"]}


def asked(client: Client, ocid: str, count: int = 1) -> dict:
    client.ask(OriginalConversationID=ocid)
    return client.receiver.wait("/status/", count)[-1]


# The tariff.


@pytest.mark.parametrize(
    ("amount", "price"),
    [
        ("10", "0"),
        ("100", "0"),
        ("101", "5"),
        ("1500", "5"),
        ("1501", "9"),
        ("5000", "9"),
        ("5001", "11"),
        ("20000", "11"),
        ("20001", "13"),
        ("150000", "13"),
        ("250000", "13"),
    ],
)
def test_the_charge_follows_the_published_bands(amount: str, price: str) -> None:
    assert tariff.charge(Decimal(amount), date(2026, 11, 23)) == Decimal(price)


@pytest.mark.parametrize(
    ("amount", "on"),
    [
        ("0", date(2026, 1, 1)),
        ("-5", date(2026, 1, 1)),
        ("250000.01", date(2026, 1, 1)),
        ("NaN", date(2026, 1, 1)),
        ("100", date(2023, 7, 31)),
    ],
)
def test_an_amount_or_a_day_without_tariff_is_refused(amount: str, on: date) -> None:
    with pytest.raises(tariff.NoTariff):
        tariff.charge(Decimal(amount), on)


# Daraja's calls.


def test_a_payment_is_accepted_then_executed_then_told(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start(float_shillings=1_000)

    # when
    answer = client.pay("KASOKO-1-1-aaaaaaaa-1", amount="285")
    result = receiver.wait("/result/")[0]["Result"]

    # then
    assert answer.status_code == 200
    assert answer.json()["ResponseCode"] == "0"
    assert answer.json()["OriginatorConversationID"] == "KASOKO-1-1-aaaaaaaa-1"
    assert re.fullmatch(r"AG_[0-9]{8}_[0-9a-f]{20}", answer.json()["ConversationID"])
    assert result["ConversationID"] == answer.json()["ConversationID"]
    assert (result["ResultType"], result["ResultCode"]) == (0, 0)
    assert re.fullmatch(r"[0-9A-Z]{10}", result["TransactionID"])
    told = parameters({"Result": result})
    assert told["TransactionAmount"] == 285
    assert told["TransactionReceipt"] == result["TransactionID"]
    assert told["ReceiverPartyPublicName"].startswith(PHONE)
    assert re.fullmatch(r"\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d", told["TransactionCompletedDateTime"])
    assert told["B2CUtilityAccountAvailableFunds"] == Decimal("715.00")
    assert told["B2CChargesPaidAccountAvailableFunds"] == Decimal("-5.00")
    book = client.book()
    assert book["totals"]["paid_count"] == 1
    assert book["totals"]["paid_total"] == 285
    assert book["totals"]["by_phone"] == {PHONE: {"count": 1, "total": 285}}
    assert (book["totals"]["float"], book["totals"]["charges"]) == (715, "5.00")
    assert book["double_paid"] == []
    assert book["payments"][0]["receipt"] == result["TransactionID"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("OriginatorConversationID", ""),
        ("OriginatorConversationID", "a b"),
        ("InitiatorName", ""),
        ("SecurityCredential", ""),
        ("CommandID", "BusinessPayments"),
        ("Amount", "285.00"),
        ("Amount", 285.0),
        ("Amount", True),
        ("Amount", "-10"),
        ("PartyA", "12"),
        ("PartyB", "0708374149"),
        ("PartyB", "+254708374149"),
        ("Remarks", "x"),
        ("ResultURL", "ftp://example.com/"),
        ("ResultURL", "https://example.com/MPESA/"),
        ("ResultURL", "https://example.com/mysqlite/"),
        ("QueueTimeOutURL", "https://example.com/execute/"),
        ("QueueTimeOutURL", None),
        ("Occassion", "x" * 101),
    ],
)
def test_a_wrong_field_is_refused_and_nothing_moves(start: Callable[..., Client], field: str, value: object) -> None:
    # given
    client = start()

    # when
    answer = client.pay("A-1", **{field: value})

    # then
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == "400.002.02"
    assert answer.json()["errorMessage"] == f"Bad Request - Invalid {field}"
    assert client.book()["totals"]["verdicts"] == {"400.002.02": 1}
    assert client.book()["payments"] == []


def test_a_repeated_id_is_a_duplicate_and_pays_once(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start()
    client.pay("A-1")

    # when
    again = client.pay("A-1", amount=500)
    client.settled("A-1")

    # then
    assert again.status_code == 500
    assert again.json()["errorCode"] == "500.002.1001"
    assert again.json()["errorMessage"] == "Duplicate OriginatorConversationID."
    assert client.book()["totals"]["paid_total"] == 285
    assert [request["verdict"] for request in client.own("book/A-1")["requests"]] == ["accepted", "500.002.1001"]


def test_fifty_copies_at_once_pay_once(start: Callable[..., Client]) -> None:
    # given
    client = start()

    # when
    with ThreadPoolExecutor(10) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: client.pay("A-1"), range(50))]
    client.settled("A-1")

    # then
    assert sorted(codes) == [200] + [500] * 49
    assert client.book()["totals"]["paid_count"] == 1


def test_two_attempts_paid_for_one_reference_are_named(start: Callable[..., Client]) -> None:
    # given
    client = start()

    # when
    client.pay("KASOKO-1-1-aaaaaaaa-1")
    client.pay("KASOKO-1-1-aaaaaaaa-2")
    client.settled("KASOKO-1-1-aaaaaaaa-1")
    client.settled("KASOKO-1-1-aaaaaaaa-2")

    # then
    (double,) = client.book()["double_paid"]
    assert double["reference"] == "KASOKO-1-1-aaaaaaaa"
    assert (double["phones"], double["paid_total"], len(set(double["receipts"]))) == ([PHONE], 570, 2)


@pytest.mark.parametrize(
    ("amounts", "code"), [([9], 2), ([250_001], 3), ([250_000, 250_000, 10], 4), ([250_000, 250_000], 1)]
)
def test_the_core_declines_beyond_its_limits(
    start: Callable[..., Client], receiver: Receiver, amounts: list[int], code: int
) -> None:
    # given
    client = start(float_shillings=499_999 if code == 1 else 10_000_000)

    # when
    for number, amount in enumerate(amounts):
        client.pay(f"A-{number}", amount=amount)
        client.settled(f"A-{number}")

    # then
    result = receiver.wait("/result/", len(amounts))[-1]["Result"]
    assert result["ResultCode"] == code
    assert "ResultParameters" not in result
    assert client.book()["totals"]["paid_total"] == sum(amounts[:-1])
    assert parameters(asked(client, f"A-{len(amounts) - 1}"))["TransactionStatus"] == "Failed"


def test_a_new_float_ends_the_shortage(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start(float_shillings=0)
    client.pay("A-1")
    client.settled("A-1")

    # when
    client.own("float", {"amount": 300})
    client.pay("A-2")
    client.settled("A-2")

    # then
    assert [body["Result"]["ResultCode"] for body in receiver.wait("/result/", 2)] == [1, 0]
    assert client.book()["totals"]["float"] == 15


def test_a_new_token_ends_the_one_before(start: Callable[..., Client]) -> None:
    # given
    client = start()
    old = client.session.headers["Authorization"]
    client.sign_in()

    # when
    client.session.headers["Authorization"] = old
    refusals = [client.pay("A-1"), client.ask(OriginalConversationID="A-1")]
    refusals.append(client.ask("/mpesa/accountbalance/v1/query", CommandID="AccountBalance"))
    client.session.headers["Authorization"] = "Basic nonsense"
    refusals.append(client.pay("A-1"))

    # then
    assert [(answer.status_code, answer.json()["errorCode"]) for answer in refusals] == [
        (404, "404.001.03"),
        (400, "400.003.01"),
        (401, "401.002.01"),
        (404, "404.001.04"),
    ]
    assert client.book()["payments"] == []


def test_expires_in_comes_as_text_and_as_number(start: Callable[..., Client]) -> None:
    # given
    client = start()

    # when
    lives = {client.sign_in().json()["expires_in"] for _ in range(20)}

    # then
    assert lives == {3599, "3599"}


def test_wrong_credentials_get_no_token(start: Callable[..., Client]) -> None:
    # given
    client = start(terms=Terms(consumer_key="key", consumer_secret="secret"))
    url = f"{client.base_url}/oauth/v1/generate"
    grant = {"grant_type": "client_credentials"}

    # when
    answers = [
        requests.get(url, params=grant, timeout=9),
        requests.get(url, params=grant, auth=("key", "wrong"), timeout=9),
        requests.get(url, auth=("key", "secret"), timeout=9),
    ]

    # then
    assert [(answer.status_code, answer.json()["errorCode"]) for answer in answers] == [
        (400, "400.008.01"),
        (400, "400.008.01"),
        (400, "400.008.02"),
    ]


def test_wrong_paths_verbs_and_bodies_have_their_codes(start: Callable[..., Client]) -> None:
    # given
    client = start()
    pay = f"{client.base_url}/mpesa/b2c/v3/paymentrequest"

    # when
    answers = [
        client.session.get(pay),
        client.session.post(f"{client.base_url}/mpesa/b2c/v9/paymentrequest", json={}),
        client.session.post(pay, data="{}", headers={"Content-Type": "text/plain"}),
        client.session.post(pay, data="[" * 30_000, headers={"Content-Type": "application/json"}),
        client.session.post(pay, data=b"x" * 70_000, headers={"Content-Type": "application/json"}),
    ]

    # then
    assert [(answer.status_code, answer.json()["errorCode"]) for answer in answers] == [
        (405, "405.001"),
        (404, "404.001.01"),
        (400, "400.002.02"),
        (400, "400.002.05"),
        (400, "400.002.05"),
    ]


def test_more_requests_than_the_limit_are_throttled(start: Callable[..., Client]) -> None:
    # given
    client = start(tps=1)

    # when
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: client.pay(f"A-{number}"), range(30)))

    # then
    codes = [answer.json().get("errorCode", "accepted") for answer in answers]
    assert codes.count("500.003.02") >= 1
    assert set(codes) == {"accepted", "500.003.02"}
    assert client.book()["totals"]["verdicts"]["accepted"] == codes.count("accepted")


def test_a_status_query_finds_a_payment_by_id_and_by_receipt(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start()
    client.pay("A-1")
    receipt = client.settled("A-1")["receipt"]

    # when
    acknowledged = client.ask(OriginalConversationID="A-1").json()
    receiver.wait("/status/")
    client.ask(TransactionID=receipt)
    answers = receiver.wait("/status/", 2)

    # then
    assert acknowledged["ResponseCode"] == "0"
    assert acknowledged["OriginatorConversationID"] != "A-1"
    assert answers[0]["Result"]["OriginatorConversationID"] == acknowledged["OriginatorConversationID"]
    for answer in answers:
        told = parameters(answer)
        assert answer["Result"]["ResultCode"] == 0
        assert (told["TransactionStatus"], told["ReceiptNo"]) == ("Completed", receipt)
        assert Decimal(str(told["Amount"])) == 285
        assert told["DebitPartyCharges"] == "Fee For B2C Payment|KES|5.00"
        assert "A-1" in (told.get("OriginatorConversationID"), told.get("Originator Conversation ID"))


@pytest.mark.parametrize("code", ["49", "SFC_IC0003"])
def test_an_unknown_id_is_not_found(start: Callable[..., Client], code: str) -> None:
    # given
    client = start(terms=Terms(callback_delay=0.01, not_found_code=code))

    # when
    answer = asked(client, "A-9")

    # then
    assert str(answer["Result"]["ResultCode"]) == code
    assert "ResultParameters" not in answer["Result"]


def test_a_query_about_nothing_fails_in_its_answer(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start()

    # when
    accepted = client.ask()

    # then
    assert accepted.status_code == 200
    assert receiver.wait("/status/")[0]["Result"]["ResultCode"] == 25


def test_a_payment_in_flight_is_authorized_and_has_no_receipt() -> None:
    # given
    book = Book(None, float_shillings=1_000, seed=0, now=lambda: datetime(2026, 11, 23, 9, tzinfo=UTC))
    payment = book.accept(ocid="A-1", amount=285, phone=PHONE, request={}, strikes=faults.NO_STRIKES)
    assert payment is not None

    # when
    answer = messages.status_answer(payment, conversation_id="AG_1", query_ocid="1-2-3", shortcode="600999")

    # then
    told = parameters(answer)
    assert (told["TransactionStatus"], told["ReceiptNo"], told["FinalisedTime"]) == ("Authorized", None, None)
    assert str(told["InitiatedTime"]) == "20261123120000"


def test_the_balance_names_every_account(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start(float_shillings=1_000)
    client.pay("A-1")
    client.settled("A-1")

    # when
    client.ask("/mpesa/accountbalance/v1/query", CommandID="AccountBalance")
    told = parameters(receiver.wait("/status/")[0])

    # then
    assert told["AccountBalance"].split("&") == [
        "Working Account|KES|0.00|0.00|0.00|0.00",
        "Float Account|KES|0.00|0.00|0.00|0.00",
        "Utility Account|KES|715.00|715.00|0.00|0.00",
        "Charges Paid Account|KES|-5.00|-5.00|0.00|0.00",
        "Organization Settlement Account|KES|0.00|0.00|0.00|0.00",
    ]
    assert re.fullmatch(r"[0-9]{14}", str(told["BOCompletedTime"]))


def test_a_deposit_is_pushed_told_and_asked_about(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start()

    # when
    checkout_id = client.push(100).json()["CheckoutRequestID"]
    callback = receiver.wait("/push/")[0]["Body"]["stkCallback"]
    answered = client.ask_push(checkout_id).json()

    # then
    items = {item["Name"]: item.get("Value") for item in callback["CallbackMetadata"]["Item"]}
    assert (callback["ResultCode"], items["Amount"], items["PhoneNumber"]) == (0, 100, int(PHONE))
    assert (answered["ResultCode"], answered["CheckoutRequestID"]) == ("0", checkout_id)
    assert client.book()["totals"]["working"] == 100


def test_a_deposit_still_with_the_customer_is_being_processed(start: Callable[..., Client]) -> None:
    # given
    client = start(callback_delay=600)
    checkout_id = client.push(100).json()["CheckoutRequestID"]

    # when
    pending = client.ask_push(checkout_id)

    # then
    assert (pending.status_code, pending.json()["errorCode"]) == (500, "500.001.1001")
    assert client.book()["totals"]["working"] == 0


def test_a_deposit_the_customer_cancels_moves_nothing(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("fail:1032x1")

    # when
    client.push()
    callback = receiver.wait("/push/")[0]["Body"]["stkCallback"]

    # then
    assert callback["ResultCode"] == 1032
    assert "CallbackMetadata" not in callback
    assert client.book()["totals"]["working"] == 0


# Faults, each on the wire and in the book.


def test_ack_lost_closes_the_connection_and_pays(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("ack_lost")

    # when
    with pytest.raises(requests.ConnectionError):
        client.pay("A-1")

    # then
    assert receiver.wait("/result/")[0]["Result"]["ResultCode"] == 0
    assert client.settled("A-1")["state"] == "paid"
    assert client.pay("A-1").json()["errorCode"] == "500.002.1001"


def test_slow_acknowledges_late_and_pays(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("slow:0.5")

    # when
    answer = client.pay("A-1")

    # then
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.5
    assert client.settled("A-1")["state"] == "paid"


@pytest.mark.parametrize("shape", ["json", "html"])
@pytest.mark.parametrize("fate", ["executed", "dropped"])
def test_error_500_may_hide_a_payment(start: Callable[..., Client], shape: str, fate: str) -> None:
    # given
    client = start(f"error_500:{shape}+{fate}x1")

    # when
    first, second = client.pay("A-1"), client.pay("A-1")
    client.settled("A-1")

    # then
    assert first.status_code == (503 if shape == "html" else 500)
    assert "500.003.1001" in first.text if shape == "json" else first.text.startswith("<html>")
    assert second.status_code == (500 if fate == "executed" else 200)
    assert client.book()["totals"]["paid_count"] == 1


@pytest.mark.parametrize(("name", "code"), [("spike_arrest", "500.003.02"), ("quota", "500.003.03")])
def test_a_throttled_request_is_not_executed_and_may_come_again(
    start: Callable[..., Client], name: str, code: str
) -> None:
    # given
    client = start(f"{name}x1")

    # when
    first, second = client.pay("A-1"), client.pay("A-1")
    client.settled("A-1")

    # then
    assert (first.status_code, first.json()["errorCode"]) == (500, code)
    assert second.status_code == 200
    assert [request["verdict"] for request in client.own("book/A-1")["requests"]] == [code, "accepted"]
    assert client.book()["totals"]["paid_count"] == 1


@pytest.mark.parametrize(
    ("spelling", "status"), [("404.001.03", 404), ("401.002.01", 401), ("400.003.01", 400), ("404.001.04", 404)]
)
def test_token_expired_ends_the_token_in_four_spellings(
    start: Callable[..., Client], spelling: str, status: int
) -> None:
    # given
    client = start(f"token_expired:{spelling}x1")

    # when
    first, still = client.pay("A-1"), client.pay("A-2", phone=OTHER)
    client.sign_in()
    again = client.pay("A-1")

    # then
    assert (first.status_code, first.json()["errorCode"]) == (status, spelling)
    assert still.json()["errorCode"] == "404.001.03"
    assert again.status_code == 200


def test_callback_lost_pays_in_silence(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("callback_lost")

    # when
    client.pay("A-1")
    payment = client.settled("A-1")

    # then
    assert payment["state"] == "paid"
    assert [callback["outcome"] for callback in payment["callbacks"]] == ["lost"]
    assert receiver.posts == []
    assert parameters(asked(client, "A-1"))["TransactionStatus"] == "Completed"


def test_callback_doubled_tells_twice_and_pays_once(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("callback_doubled")

    # when
    client.pay("A-1")
    first, second = receiver.wait("/result/", 2)

    # then
    assert first == second
    assert client.book()["totals"]["paid_count"] == 1


def test_callback_early_comes_before_the_acknowledgement(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("callback_early", callback_delay=60)

    # when
    answer = client.pay("A-1")

    # then
    assert answer.status_code == 200
    assert receiver.at("/result/")[0]["Result"]["ConversationID"] == answer.json()["ConversationID"]


def test_callback_late_pays_before_it_tells(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("callback_late:0.5")

    # when
    client.pay("A-1")
    payment = client.settled("A-1")

    # then
    told_at = datetime.fromisoformat(payment["callbacks"][0]["at"])
    assert told_at - datetime.fromisoformat(payment["executed_at"]) >= timedelta(seconds=0.5)
    assert receiver.wait("/result/")[0]["Result"]["ResultCode"] == 0


def test_out_of_order_answers_the_query_first(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("out_of_order")
    client.pay("A-1")
    client.wait_for(lambda book: book["totals"]["paid_count"])

    # when
    client.ask(OriginalConversationID="A-1")
    receiver.wait("/result/")

    # then
    assert [path for path, _ in receiver.posts] == ["/status/", "/result/"]


@pytest.mark.parametrize("shape", ["flat", "envelope"])
@pytest.mark.parametrize(
    ("aftermath", "state", "results", "status"),
    [
        ("result", "paid", 1, "Completed"),
        ("silence", "paid", 0, "Completed"),
        ("expired", "failed", 0, "Expired"),
        ("dropped", "dropped", 0, None),
    ],
)
def test_queue_timeout_says_nothing_about_the_money(
    start: Callable[..., Client],
    receiver: Receiver,
    shape: str,
    aftermath: str,
    state: str,
    results: int,
    status: str | None,
) -> None:
    # given
    client = start(f"queue_timeout:{shape}+{aftermath}")

    # when
    client.pay("A-1")
    told = receiver.wait("/timeout/")[0]
    payment = client.settled("A-1")

    # then
    if shape == "flat":
        assert (told["OriginatorConversationID"], told["SecurityCredential"]) == ("A-1", "credential==")
        assert (told["Amount"], told["PartyB"], told["Occassion"]) == ("285", PHONE, "Market 1")
    else:
        assert (told["Result"]["OriginatorConversationID"], told["Result"]["ResultCode"]) == ("A-1", 1)
    assert payment["state"] == state
    assert len(receiver.at("/result/")) == results
    answer = asked(client, "A-1")
    assert answer["Result"]["ResultCode"] in ((49,) if status is None else (0, "0"))
    assert status is None or parameters(answer)["TransactionStatus"] == status


def test_duplicate_id_tells_code_15_under_the_id_of_the_original(
    start: Callable[..., Client], receiver: Receiver
) -> None:
    # given
    client = start("duplicate_id")
    first = client.pay("A-1")
    client.settled("A-1")

    # when
    second = client.pay("A-1")
    original, repeated = (body["Result"] for body in receiver.wait("/result/", 2))

    # then
    assert second.status_code == 200
    assert (original["ResultCode"], repeated["ResultCode"]) == (0, 15)
    assert original["OriginatorConversationID"] == repeated["OriginatorConversationID"] == "A-1"
    assert original["ConversationID"] == first.json()["ConversationID"] != repeated["ConversationID"]
    assert client.book()["totals"]["paid_count"] == 1


@pytest.mark.parametrize("code", list(faults.PAYMENT_FAILURES))
def test_fail_is_told_and_confirmed_by_the_status(start: Callable[..., Client], receiver: Receiver, code: str) -> None:
    # given
    client = start(f"fail:{code}x1")

    # when
    client.pay("A-1")
    client.settled("A-1")
    client.pay("A-2")
    client.settled("A-2")

    # then
    assert [str(body["Result"]["ResultCode"]) for body in receiver.wait("/result/", 2)] == [code, "0"]
    assert parameters(asked(client, "A-1"))["TransactionStatus"] == "Failed"
    assert [payment["state"] for payment in client.book()["payments"]] == ["failed", "paid"]


@pytest.mark.parametrize(("fate", "status"), [("executed", "Completed"), ("dropped", "Failed")])
def test_system_17_may_hide_a_payment(start: Callable[..., Client], receiver: Receiver, fate: str, status: str) -> None:
    # given
    client = start(f"system_17:{fate}")

    # when
    client.pay("A-1")
    client.settled("A-1")

    # then
    assert receiver.wait("/result/")[0]["Result"]["ResultCode"] == 17
    assert parameters(asked(client, "A-1"))["TransactionStatus"] == status
    assert client.book()["totals"]["paid_count"] == (1 if fate == "executed" else 0)


def test_the_shapes_of_a_result_vary_and_the_money_does_not(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start()
    phones = {
        name: f"25471200000{number}"
        for number, name in enumerate(("string_codes", "dict_parameter", "missing_values", "masked_receiver"))
    }
    for name, phone in phones.items():
        client.own("faults", {"phone": phone, "spec": name})

    # when
    for name, phone in phones.items():
        client.pay(name, phone=phone)
    results = {body["Result"]["OriginatorConversationID"]: body for body in receiver.wait("/result/", 4)}

    # then
    assert (results["string_codes"]["Result"]["ResultCode"], results["string_codes"]["Result"]["ResultType"]) == (
        "0",
        "0",
    )
    receipt = results["dict_parameter"]["Result"]["TransactionID"]
    single = results["dict_parameter"]["Result"]["ResultParameters"]["ResultParameter"]
    assert single == {"Key": "TransactionReceipt", "Value": receipt}
    assert parameters(results["missing_values"])["ReceiverPartyPublicName"] is None
    masked = parameters(results["masked_receiver"])["ReceiverPartyPublicName"]
    assert masked.startswith("0712***003")
    assert client.book()["totals"]["paid_count"] == 4


def test_status_lost_is_accepted_and_never_answered(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("status_lostx1")
    client.pay("A-1")
    client.settled("A-1")

    # when
    lost = client.ask(OriginalConversationID="A-1")
    answer = asked(client, "A-1")

    # then
    assert lost.status_code == 200
    assert answer["Result"]["OriginatorConversationID"] != lost.json()["OriginatorConversationID"]
    assert len(receiver.at("/status/")) == 1
    assert client.own("book/A-1")["queries"] == 2


def test_status_not_found_denies_a_payment_it_knows(start: Callable[..., Client], receiver: Receiver) -> None:
    # given
    client = start("status_not_foundx2")
    client.pay("A-1")
    client.settled("A-1")

    # when
    answers = [asked(client, "A-1", count)["Result"]["ResultCode"] for count in (1, 2, 3)]

    # then
    assert answers == [49, 49, 0]
    assert client.book()["totals"]["paid_count"] == 1


def test_every_fault_can_be_written_and_read_again() -> None:
    # given
    schedule = fault_schedule.Schedule(seed=3, rate=1.0, names=tuple(faults.FAULTS))

    # when
    for name in faults.FAULTS:
        schedule.add(PHONE, name)
    strikes = schedule.strikes("payment", key="A-1", phone=PHONE, earlier=0)
    again = faults.strikes_from(strikes.texts())

    # then
    assert again == strikes
    assert set(strikes.faults) == {fault.name for fault in faults.TABLE if "payment" in fault.stages}
    assert all(fault.wire and fault.money and fault.source for fault in faults.TABLE)


@pytest.mark.parametrize("spec", ["", "nothing", "fail:9999", "slow:soon", "error_500:perhaps", "failx0", "fail:15"])
def test_a_fault_that_is_not_in_the_table_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(spec))):
        faults.parse(spec)


def test_the_same_seed_strikes_the_same_payments(tmp_path: Path) -> None:
    # given
    ids = [f"KASOKO-1-{number}-aaaaaaaa-1" for number in range(2_000)]

    def struck(seed: int) -> list[list[str]]:
        schedule = fault_schedule.Schedule(seed=seed, rate=0.2, names=tuple(faults.FAULTS))
        return [schedule.strikes("payment", key=ocid, phone=PHONE, earlier=0).texts() for ocid in ids]

    # when
    first, again, other = struck(7), struck(7), struck(8)

    # then
    assert first == again != other
    assert 250 <= sum(map(bool, first)) <= 450
    assert {text.partition(":")[0] for texts in first for text in texts} == {
        fault.name for fault in faults.TABLE if "payment" in fault.stages
    }


def test_faults_of_the_seed_can_be_healed_at_run_time(start: Callable[..., Client]) -> None:
    # given
    client = start(fault_rate=1.0, fault_names=("quota",))
    struck = client.pay("A-1")

    # when
    client.own("faults", {"rate": 0, "names": "all"})

    # then
    assert struck.json()["errorCode"] == "500.003.03"
    assert client.pay("A-2").status_code == 200


def test_a_seeded_refusal_lets_the_repetition_through(start: Callable[..., Client]) -> None:
    # given
    client = start(fault_rate=1.0, fault_names=("spike_arrest",))

    # when
    codes = [client.pay("A-1").status_code for _ in range(3)]

    # then
    assert codes == [500, 200, 500]


# The process and its book.


def launch(tmp_path: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable,
        "-m",
        "payments.mpesa.simulator",
        "--latency",
        "0",
        "--book",
        str(tmp_path / "book.jsonl"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    running = subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return running, running.stdout.readline().strip()


def end(running: subprocess.Popen[str], number: signal.Signals) -> int:
    running.send_signal(number)
    running.stdout.close()
    return running.wait(PATIENCE_SECONDS)


def test_a_killed_simulator_continues_where_it_was(tmp_path: Path, receiver: Receiver) -> None:
    # given
    running, url = launch(tmp_path, "--callback-delay", "600", "--float", "1000", "--phone-fault", f"{OTHER}=fail:8x1")
    client = Client(url, receiver)
    accepted = [client.pay("A-1").status_code, client.pay("A-2", phone=OTHER).status_code]
    client.session.close()
    end(running, signal.SIGKILL)
    with (tmp_path / "book.jsonl").open("ab") as book:
        book.write(b'{"event":"acce')

    # when
    running, url = launch(tmp_path, "--callback-delay", "0", "--float", "5", "--phone-fault", f"{OTHER}=fail:8x1")
    client = Client(url, receiver)
    results = {body["Result"]["OriginatorConversationID"]: body["Result"] for body in receiver.wait("/result/", 2)}
    duplicate = client.pay("A-1")
    client.pay("A-3", phone=OTHER)
    client.settled("A-3")
    totals = client.book()["totals"]
    client.session.close()
    status = end(running, signal.SIGTERM)

    # then
    assert accepted == [200, 200]
    assert (results["A-1"]["ResultCode"], results["A-2"]["ResultCode"]) == (0, 8)
    assert duplicate.json()["errorCode"] == "500.002.1001"
    assert (totals["paid_count"], totals["paid_total"], totals["float"]) == (2, 570, 430)
    assert status == 0


def test_a_third_start_finds_the_same_book_and_tells_nothing_twice(
    tmp_path: Path, start: Callable[..., Client], receiver: Receiver
) -> None:
    # given
    path = tmp_path / "book.jsonl"
    first = start(book=path, fault_rate=0.5, seed=4, fault_names=("fail", "callback_lost", "system_17"))
    for number in range(40):
        first.pay(f"KASOKO-1-{number}-aaaaaaaa-1", phone=f"2547120000{number:02d}")
        first.settled(f"KASOKO-1-{number}-aaaaaaaa-1")
    told = len(receiver.posts)

    # when
    second = start(book=path)

    # then
    before, after = first.book(), second.book()
    assert after["payments"] == before["payments"]
    assert after["totals"] == before["totals"]
    assert second.own("health") == {"status": "ok", "pending": 0}
    assert len(receiver.posts) == told


def test_the_process_says_where_it_listens_and_stops_when_told(tmp_path: Path) -> None:
    # given
    url_file = tmp_path / "url"

    # when
    running, url = launch(tmp_path, "--url-file", str(url_file))
    health = requests.get(f"{url}/sandbox/health", timeout=PATIENCE_SECONDS).json()
    status = end(running, signal.SIGINT)

    # then
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", url)
    assert health == {"status": "ok", "pending": 0}
    assert status == 0
    assert url_file.read_text() == f"{url}\n"


def test_a_file_that_is_no_book_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    # given
    (tmp_path / "book.jsonl").write_text("hello\n")

    # when
    ended = subprocess.run(
        [sys.executable, "-m", "payments.mpesa.simulator", "--book", str(tmp_path / "book.jsonl")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    # then
    assert ended.returncode == 1
    assert "line 1 is not a line of a simulator's book" in ended.stderr
    assert (tmp_path / "book.jsonl").read_text() == "hello\n"
