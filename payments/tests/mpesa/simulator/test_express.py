"""The simulator's M-Pesa Express calls."""

from collections.abc import Callable

from testing.merchants import PHONE, CallbackReceiver, Merchant


def test_deposit_is_pushed_reported_and_queried(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start()

    # when
    checkout_id = merchant.push(100).json()["CheckoutRequestID"]
    callback = receiver.wait("/push/")[0]["Body"]["stkCallback"]
    answered = merchant.ask_push(checkout_id).json()

    # then
    items = {item["Name"]: item.get("Value") for item in callback["CallbackMetadata"]["Item"]}
    assert (callback["ResultCode"], items["Amount"], items["PhoneNumber"]) == (0, 100, int(PHONE))
    assert (answered["ResultCode"], answered["CheckoutRequestID"]) == ("0", checkout_id)
    assert merchant.book()["totals"]["working"] == 100


def test_deposit_without_answer_of_the_customer_is_being_processed(start: Callable[..., Merchant]) -> None:
    # given
    merchant = start(callback_delay=600)
    checkout_id = merchant.push(100).json()["CheckoutRequestID"]

    # when
    pending = merchant.ask_push(checkout_id)

    # then
    assert (pending.status_code, pending.json()["errorCode"]) == (500, "500.001.1001")
    assert merchant.book()["totals"]["working"] == 0


def test_deposit_that_the_customer_cancels_moves_nothing(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start("fail:1032x1")

    # when
    merchant.push()
    callback = receiver.wait("/push/")[0]["Body"]["stkCallback"]

    # then
    assert callback["ResultCode"] == 1032
    assert "CallbackMetadata" not in callback
    assert merchant.book()["totals"]["working"] == 0
