"""The simulator's B2C payments and queries, over HTTP and in its book."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from payments.mpesa.simulator.messages import NOT_FOUND_CODES
from payments.mpesa.simulator.terms import Terms
from testing.merchants import PHONE, CallbackReceiver, Merchant, parameters, status_answer


def test_payment_is_accepted_executed_and_reported(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start(float_shillings=1_000)

    # when
    answer = merchant.pay("KASOKO-1-1-aaaaaaaa-1", amount="285")
    result = receiver.wait("/result/")[0]["Result"]

    # then
    assert answer.status_code == 200
    assert answer.json()["ResponseCode"] == "0"
    assert answer.json()["OriginatorConversationID"] == "KASOKO-1-1-aaaaaaaa-1"
    assert re.fullmatch(r"AG_[0-9]{8}_[0-9a-f]{20}", answer.json()["ConversationID"])
    assert result["ConversationID"] == answer.json()["ConversationID"]
    assert (result["ResultType"], result["ResultCode"]) == (0, 0)
    assert re.fullmatch(r"[0-9A-Z]{10}", result["TransactionID"])
    reported = parameters({"Result": result})
    assert reported["TransactionAmount"] == 285
    assert reported["TransactionReceipt"] == result["TransactionID"]
    assert reported["ReceiverPartyPublicName"].startswith(PHONE)
    assert re.fullmatch(r"\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d", reported["TransactionCompletedDateTime"])
    assert reported["B2CUtilityAccountAvailableFunds"] == Decimal("715.00")
    assert reported["B2CChargesPaidAccountAvailableFunds"] == Decimal("-5.00")
    book = merchant.book()
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
def test_wrong_field_is_refused_and_nothing_moves(start: Callable[..., Merchant], field: str, value: object) -> None:
    # given
    merchant = start()

    # when
    answer = merchant.pay("A-1", **{field: value})

    # then
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == "400.002.02"
    assert answer.json()["errorMessage"] == f"Bad Request - Invalid {field}"
    assert merchant.book()["totals"]["verdicts"] == {"400.002.02": 1}
    assert merchant.book()["payments"] == []


def test_repeated_id_is_a_duplicate_and_pays_once(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start()
    merchant.pay("A-1")

    # when
    again = merchant.pay("A-1", amount=500)
    merchant.finished("A-1")

    # then
    assert again.status_code == 500
    assert again.json()["errorCode"] == "500.002.1001"
    assert again.json()["errorMessage"] == "Duplicate OriginatorConversationID."
    assert merchant.book()["totals"]["paid_total"] == 285
    assert [request["verdict"] for request in merchant.sandbox_call("book/A-1")["requests"]] == [
        "accepted",
        "500.002.1001",
    ]


def test_fifty_copies_at_once_pay_once(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start()

    # when
    with ThreadPoolExecutor(10) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: merchant.pay("A-1"), range(50))]
    merchant.finished("A-1")

    # then
    assert sorted(codes) == [200] + [500] * 49
    assert merchant.book()["totals"]["paid_count"] == 1


def test_two_paid_attempts_of_one_reference_are_listed(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start()

    # when
    merchant.pay("KASOKO-1-1-aaaaaaaa-1")
    merchant.pay("KASOKO-1-1-aaaaaaaa-2")
    merchant.finished("KASOKO-1-1-aaaaaaaa-1")
    merchant.finished("KASOKO-1-1-aaaaaaaa-2")

    # then
    (double,) = merchant.book()["double_paid"]
    assert double["reference"] == "KASOKO-1-1-aaaaaaaa"
    assert (double["phones"], double["paid_total"], len(set(double["receipts"]))) == ([PHONE], 570, 2)


@pytest.mark.parametrize(
    ("amounts", "code"), [([9], 2), ([250_001], 3), ([250_000, 250_000, 10], 4), ([250_000, 250_000], 1)]
)
def test_payment_beyond_a_limit_fails(
    start: Callable[..., Merchant], receiver: CallbackReceiver, amounts: list[int], code: int
) -> None:
    # given
    merchant = start(float_shillings=499_999 if code == 1 else 10_000_000)

    # when
    for number, amount in enumerate(amounts):
        merchant.pay(f"A-{number}", amount=amount)
        merchant.finished(f"A-{number}")

    # then
    result = receiver.wait("/result/", len(amounts))[-1]["Result"]
    assert result["ResultCode"] == code
    assert "ResultParameters" not in result
    assert merchant.book()["totals"]["paid_total"] == sum(amounts[:-1])
    assert parameters(status_answer(merchant, f"A-{len(amounts) - 1}"))["TransactionStatus"] == "Failed"


def test_new_float_ends_the_shortage(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start(float_shillings=0)
    merchant.pay("A-1")
    merchant.finished("A-1")

    # when
    merchant.sandbox_call("float", {"amount": 300})
    merchant.pay("A-2")
    merchant.finished("A-2")

    # then
    assert [body["Result"]["ResultCode"] for body in receiver.wait("/result/", 2)] == [1, 0]
    assert merchant.book()["totals"]["float"] == 15


def test_requests_beyond_the_limit_are_throttled(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start(tps=1)

    # when
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: merchant.pay(f"A-{number}"), range(30)))

    # then
    codes = [answer.json().get("errorCode", "accepted") for answer in answers]
    assert codes.count("500.003.02") >= 1
    assert set(codes) == {"accepted", "500.003.02"}
    assert merchant.book()["totals"]["verdicts"]["accepted"] == codes.count("accepted")


def test_status_query_finds_a_payment_by_id_and_by_receipt(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start()
    merchant.pay("A-1")
    receipt = merchant.finished("A-1")["receipt"]

    # when
    acknowledged = merchant.ask(OriginalConversationID="A-1").json()
    receiver.wait("/status/")
    merchant.ask(TransactionID=receipt)
    answers = receiver.wait("/status/", 2)

    # then
    assert acknowledged["ResponseCode"] == "0"
    assert acknowledged["OriginatorConversationID"] != "A-1"
    assert answers[0]["Result"]["OriginatorConversationID"] == acknowledged["OriginatorConversationID"]
    for answer in answers:
        reported = parameters(answer)
        assert answer["Result"]["ResultCode"] == 0
        assert (reported["TransactionStatus"], reported["ReceiptNo"]) == ("Completed", receipt)
        assert Decimal(str(reported["Amount"])) == 285
        assert reported["DebitPartyCharges"] == "Fee For B2C Payment|KES|5.00"
        assert "A-1" in (reported.get("OriginatorConversationID"), reported.get("Originator Conversation ID"))


@pytest.mark.parametrize("code", NOT_FOUND_CODES)
def test_unknown_id_is_not_found(start: Callable[..., Merchant], code: str) -> None:
    # given
    merchant = start(terms=Terms(callback_delay=0.01, not_found_code=code))

    # when
    answer = status_answer(merchant, "A-9")

    # then
    assert str(answer["Result"]["ResultCode"]) == code
    assert "ResultParameters" not in answer["Result"]


def test_query_without_id_and_receipt_fails_in_its_answer(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start()

    # when
    accepted = merchant.ask()

    # then
    assert accepted.status_code == 200
    assert receiver.wait("/status/")[0]["Result"]["ResultCode"] == 25


def test_balance_answer_lists_every_account(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start(float_shillings=1_000)
    merchant.pay("A-1")
    merchant.finished("A-1")

    # when
    merchant.ask("/mpesa/accountbalance/v1/query", CommandID="AccountBalance")
    reported = parameters(receiver.wait("/status/")[0])

    # then
    assert reported["AccountBalance"].split("&") == [
        "Working Account|KES|0.00|0.00|0.00|0.00",
        "Float Account|KES|0.00|0.00|0.00|0.00",
        "Utility Account|KES|715.00|715.00|0.00|0.00",
        "Charges Paid Account|KES|-5.00|-5.00|0.00|0.00",
        "Organization Settlement Account|KES|0.00|0.00|0.00|0.00",
    ]
    assert re.fullmatch(r"[0-9]{14}", str(reported["BOCompletedTime"]))
