"""The simulator's messages."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from payments.mpesa.messages import parse_result
from payments.mpesa.simulator import faults, messages
from payments.mpesa.simulator.book import Book
from testing.merchants import PHONE, CallbackReceiver, Merchant, parameters


def test_payment_in_flight_is_authorized_without_receipt() -> None:
    # given
    book = Book(None, float_shillings=1_000, seed=0, now=lambda: datetime(2026, 11, 23, 9, tzinfo=UTC))
    payment = book.accept(ocid="A-1", amount=285, phone=PHONE, request={}, active_faults=faults.NO_FAULTS)
    assert payment is not None

    # when
    answer = messages.status_answer(payment, conversation_id="AG_1", query_ocid="1-2-3", shortcode="600999")

    # then
    reported = parameters(answer)
    assert (reported["TransactionStatus"], reported["ReceiptNo"], reported["FinalisedTime"]) == (
        "Authorized",
        None,
        None,
    )
    assert str(reported["InitiatedTime"]) == "20261123120000"


@pytest.mark.parametrize("form", ["chunked", "bom", "windows_1252", "control", "parameters"])
def test_odd_body_is_read_as_the_same_payment(
    start: Callable[..., Merchant], receiver: CallbackReceiver, form: str
) -> None:
    # given
    merchant = start(f"odd_body:{form}")

    # when
    merchant.pay("one")
    receiver.wait("/result/")

    # then
    ((in_chunks, body),) = receiver.raw
    result = parse_result(body)
    assert in_chunks is (form == "chunked")
    assert (result.says_paid, result.amount, result.receiver_phone) == (True, Decimal(285), PHONE)
    assert body.startswith(b"\xef\xbb\xbf") is (form == "bom")
    assert (b"\xc1" in body, b"\t" in body, b"null" in body) == (
        form == "windows_1252",
        form == "control",
        form == "parameters",
    )


def test_shape_of_a_result_does_not_change_the_money(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start()
    phones = {
        name: f"25471200000{number}"
        for number, name in enumerate(("string_codes", "dict_parameter", "missing_values", "masked_receiver"))
    }
    for name, phone in phones.items():
        merchant.sandbox_call("faults", {"phone": phone, "spec": name})

    # when
    for name, phone in phones.items():
        merchant.pay(name, phone=phone)
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
    assert merchant.book()["totals"]["paid_count"] == 4
