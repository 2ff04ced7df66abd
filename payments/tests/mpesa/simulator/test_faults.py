"""Each fault, on the wire and in the book."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import requests

from payments.mpesa.simulator import fault_schedule, faults
from testing.merchants import OTHER_PHONE, PHONE, CallbackReceiver, Merchant, parameters, status_answer


def test_ack_lost_closes_the_connection_and_pays(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("ack_lost")

    # when
    with pytest.raises(requests.ConnectionError):
        merchant.pay("A-1")

    # then
    assert receiver.wait("/result/")[0]["Result"]["ResultCode"] == 0
    assert merchant.finished("A-1")["state"] == "paid"
    assert merchant.pay("A-1").json()["errorCode"] == "500.002.1001"


def test_slow_acknowledges_late_and_pays(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("slow:0.5")

    # when
    answer = merchant.pay("A-1")

    # then
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.5
    assert merchant.finished("A-1")["state"] == "paid"


@pytest.mark.parametrize("shape", ["json", "html"])
@pytest.mark.parametrize("fate", ["executed", "dropped"])
def test_error_500_may_hide_a_payment(start: Callable[..., Merchant], shape: str, fate: str) -> None:
    # given
    merchant = start(f"error_500:{shape}+{fate}x1")

    # when
    first, second = merchant.pay("A-1"), merchant.pay("A-1")
    merchant.finished("A-1")

    # then
    assert first.status_code == (503 if shape == "html" else 500)
    assert "500.003.1001" in first.text if shape == "json" else first.text.startswith("<html>")
    assert second.status_code == (500 if fate == "executed" else 200)
    assert merchant.book()["totals"]["paid_count"] == 1


@pytest.mark.parametrize(("name", "code"), [("spike_arrest", "500.003.02"), ("quota", "500.003.03")])
def test_throttled_request_is_not_executed_and_may_be_resent(
    start: Callable[..., Merchant], name: str, code: str
) -> None:
    # given
    merchant = start(f"{name}x1")

    # when
    first, second = merchant.pay("A-1"), merchant.pay("A-1")
    merchant.finished("A-1")

    # then
    assert (first.status_code, first.json()["errorCode"]) == (500, code)
    assert second.status_code == 200
    assert [request["verdict"] for request in merchant.sandbox_call("book/A-1")["requests"]] == [code, "accepted"]
    assert merchant.book()["totals"]["paid_count"] == 1


@pytest.mark.parametrize(
    ("error_code", "status"), [("404.001.03", 404), ("401.002.01", 401), ("400.003.01", 400), ("404.001.04", 404)]
)
def test_token_expired_ends_the_token_with_each_error_code(
    start: Callable[..., Merchant], error_code: str, status: int
) -> None:
    # given
    merchant = start(f"token_expired:{error_code}x1")

    # when
    first, still = merchant.pay("A-1"), merchant.pay("A-2", phone=OTHER_PHONE)
    merchant.sign_in()
    again = merchant.pay("A-1")

    # then
    assert (first.status_code, first.json()["errorCode"]) == (status, error_code)
    assert still.json()["errorCode"] == "404.001.03"
    assert again.status_code == 200


def test_callback_lost_pays_without_a_result(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("callback_lost")

    # when
    merchant.pay("A-1")
    payment = merchant.finished("A-1")

    # then
    assert payment["state"] == "paid"
    assert [callback["outcome"] for callback in payment["callbacks"]] == ["lost"]
    assert receiver.posts == []
    assert parameters(status_answer(merchant, "A-1"))["TransactionStatus"] == "Completed"


def test_callback_doubled_posts_twice_and_pays_once(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("callback_doubled")

    # when
    merchant.pay("A-1")
    first, second = receiver.wait("/result/", 2)

    # then
    assert first == second
    assert merchant.book()["totals"]["paid_count"] == 1


def test_callback_early_comes_before_the_acknowledgement(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start("callback_early", callback_delay=60)

    # when
    answer = merchant.pay("A-1")

    # then
    assert answer.status_code == 200
    assert receiver.at("/result/")[0]["Result"]["ConversationID"] == answer.json()["ConversationID"]


def test_callback_late_pays_before_it_posts(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("callback_late:0.5")

    # when
    merchant.pay("A-1")
    payment = merchant.finished("A-1")

    # then
    reported_at = datetime.fromisoformat(payment["callbacks"][0]["at"])
    assert reported_at - datetime.fromisoformat(payment["executed_at"]) >= timedelta(seconds=0.5)
    assert receiver.wait("/result/")[0]["Result"]["ResultCode"] == 0


def test_out_of_order_answers_the_query_before_the_result(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start("out_of_order")
    merchant.pay("A-1")
    merchant.wait_for(lambda book: book["totals"]["paid_count"])

    # when
    merchant.ask(OriginalConversationID="A-1")
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
    start: Callable[..., Merchant],
    receiver: CallbackReceiver,
    shape: str,
    aftermath: str,
    state: str,
    results: int,
    status: str | None,
) -> None:
    # given
    merchant = start(f"queue_timeout:{shape}+{aftermath}")

    # when
    merchant.pay("A-1")
    reported = receiver.wait("/timeout/")[0]
    payment = merchant.finished("A-1")

    # then
    if shape == "flat":
        assert (reported["OriginatorConversationID"], reported["SecurityCredential"]) == ("A-1", "credential==")
        assert (reported["Amount"], reported["PartyB"], reported["Occassion"]) == ("285", PHONE, "Market 1")
    else:
        assert (reported["Result"]["OriginatorConversationID"], reported["Result"]["ResultCode"]) == ("A-1", 1)
    assert payment["state"] == state
    assert len(receiver.at("/result/")) == results
    answer = status_answer(merchant, "A-1")
    assert answer["Result"]["ResultCode"] in ((49,) if status is None else (0, "0"))
    assert status is None or parameters(answer)["TransactionStatus"] == status


def test_duplicate_id_posts_code_15_under_the_original_id(
    start: Callable[..., Merchant], receiver: CallbackReceiver
) -> None:
    # given
    merchant = start("duplicate_id")
    first = merchant.pay("A-1")
    merchant.finished("A-1")

    # when
    second = merchant.pay("A-1")
    original, repeated = (body["Result"] for body in receiver.wait("/result/", 2))

    # then
    assert second.status_code == 200
    assert (original["ResultCode"], repeated["ResultCode"]) == (0, 15)
    assert original["OriginatorConversationID"] == repeated["OriginatorConversationID"] == "A-1"
    assert original["ConversationID"] == first.json()["ConversationID"] != repeated["ConversationID"]
    assert merchant.book()["totals"]["paid_count"] == 1


@pytest.mark.parametrize("code", list(faults.PAYMENT_FAILURES))
def test_fail_is_posted_and_confirmed_by_the_status_query(
    start: Callable[..., Merchant], receiver: CallbackReceiver, code: str
) -> None:
    # given
    merchant = start(f"fail:{code}x1")

    # when
    merchant.pay("A-1")
    merchant.finished("A-1")
    merchant.pay("A-2")
    merchant.finished("A-2")

    # then
    assert [str(body["Result"]["ResultCode"]) for body in receiver.wait("/result/", 2)] == [code, "0"]
    assert parameters(status_answer(merchant, "A-1"))["TransactionStatus"] == "Failed"
    assert [payment["state"] for payment in merchant.book()["payments"]] == ["failed", "paid"]


@pytest.mark.parametrize(("fate", "status"), [("executed", "Completed"), ("dropped", "Failed")])
def test_system_17_may_hide_a_payment(
    start: Callable[..., Merchant], receiver: CallbackReceiver, fate: str, status: str
) -> None:
    # given
    merchant = start(f"system_17:{fate}")

    # when
    merchant.pay("A-1")
    merchant.finished("A-1")

    # then
    assert receiver.wait("/result/")[0]["Result"]["ResultCode"] == 17
    assert parameters(status_answer(merchant, "A-1"))["TransactionStatus"] == status
    assert merchant.book()["totals"]["paid_count"] == (1 if fate == "executed" else 0)


def test_status_lost_is_accepted_and_never_answered(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("status_lostx1")
    merchant.pay("A-1")
    merchant.finished("A-1")

    # when
    lost = merchant.ask(OriginalConversationID="A-1")
    answer = status_answer(merchant, "A-1")

    # then
    assert lost.status_code == 200
    assert answer["Result"]["OriginatorConversationID"] != lost.json()["OriginatorConversationID"]
    assert len(receiver.at("/status/")) == 1
    assert merchant.sandbox_call("book/A-1")["queries"] == 2


def test_status_not_found_denies_a_known_payment(start: Callable[..., Merchant], receiver: CallbackReceiver) -> None:
    # given
    merchant = start("status_not_foundx2")
    merchant.pay("A-1")
    merchant.finished("A-1")

    # when
    answers = [status_answer(merchant, "A-1", count)["Result"]["ResultCode"] for count in (1, 2, 3)]

    # then
    assert answers == [49, 49, 0]
    assert merchant.book()["totals"]["paid_count"] == 1


def test_every_fault_is_unchanged_by_writing_and_reading() -> None:
    # given
    schedule = fault_schedule.Schedule(seed=3, rate=1.0, names=tuple(faults.FAULTS))

    # when
    for name in faults.FAULTS:
        schedule.add(PHONE, name)
    active_faults = schedule.active_faults("payment", key="A-1", phone=PHONE, earlier=0)
    again = faults.active_faults_from(active_faults.texts())

    # then
    assert again == active_faults
    assert set(active_faults.variants) == {fault.name for fault in faults.TABLE if "payment" in fault.stages}
    assert all(fault.wire and fault.money and fault.source for fault in faults.TABLE)


@pytest.mark.parametrize("spec", ["", "nothing", "fail:9999", "slow:soon", "error_500:perhaps", "failx0", "fail:15"])
def test_fault_outside_the_table_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(spec))):
        faults.parse(spec)
