"""Every body of `testing/shapes.jsonl` is read by its parser or by the gateway, and means what it must mean."""

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import responses

from payments.mpesa import messages, result_codes, strict_json
from payments.mpesa.client import Gateway
from payments.mpesa.gateway_errors import NotSent, OutcomeUnknown, Rejected
from testing import shapes
from testing.gateways import AT, PAY_URL, PAYMENT, STK_QUERY_URL, STK_URL, TOKEN_URL, sent_bodies
from testing.shapes import Shape, of_kind

COUNTS = {
    "b2c_result": 69,
    "b2c_timeout": 4,
    "status_answer": 25,
    "balance_answer": 9,
    "stk_callback": 40,
    "b2c_http": 33,
    "oauth_http": 5,
    "stk_query_http": 16,
    "c2b_confirmation": 26,
}
# No parser reads these yet. C2B confirmations come with deposits.
NOT_READ_YET = {"c2b_confirmation"}
PUSH: dict[str, Any] = {
    "amount_shillings": 450,
    "phone_number": shapes.PHONE,
    "account_reference": "KSK42",
    "description": "Deposit",
    "callback_url": "https://pay.example.com/stk/0a/",
    "at": AT,
}


def of(*kinds: str) -> Callable[..., Any]:
    return pytest.mark.parametrize("shape", of_kind(*kinds), ids=str)


def test_every_shape_has_a_test_or_is_named_as_not_read() -> None:
    assert Counter(shape.kind for shape in shapes.SHAPES) == COUNTS
    assert len({shape.name for shape in shapes.SHAPES}) == sum(COUNTS.values())
    assert not [kind for kind in NOT_READ_YET if hasattr(messages, f"parse_{kind.partition('_')[0]}")]


# --- callbacks


@of("b2c_result")
def test_result_reports_its_meaning(shape: Shape) -> None:
    if shape.means.get("unreadable"):
        with pytest.raises(strict_json.Unreadable):
            messages.parse_result(shape.body)
        return

    result = messages.parse_result(shape.body)

    ours = result.originator_conversation_id == shapes.OCID
    match = (result.amount, result.receiver_phone_visible, result.receipt)
    if shape.means["paid"]:
        assert (ours, result.says_paid, result.is_final) == (True, True, True)
        assert result.amount == shapes.AMOUNT
        assert result.receipt == shapes.RECEIPT
        assert result.receiver_phone in (shapes.PHONE, None)
    if shape.means.get("reports") == "paid":
        assert result.says_paid
        assert None in match
    if shape.means.get("reports") in ("failed", "nothing"):
        assert (ours, result.says_paid, result.receipt) == (True, False, None)
        definite = result_codes.meaning(result.result_code).definite and result.is_final
        assert definite is (shape.means["reports"] == "failed")
    if "fault" in shape.means:
        assert result_codes.meaning(result.result_code).fault == shape.means["fault"]


@of("b2c_timeout")
def test_timeout_names_its_request_and_keeps_nothing_else(shape: Shape) -> None:
    assert messages.parse_timeout(shape.body) == messages.Timeout(shape.means["names"])


@of("status_answer")
def test_status_answer_has_its_meaning(shape: Shape) -> None:
    answer = messages.parse_status(shape.body)

    assert answer.payment_status == shape.means["payment"]
    assert answer.is_thin is shape.means.get("thin", False)
    assert answer.refuses_our_credentials is (shape.means.get("fault") == "ours")
    if answer.payment_status == "completed" and not answer.is_thin:
        assert (answer.originator_conversation_id, answer.receipt) == (shapes.OCID, shapes.RECEIPT)
        assert (answer.amount, answer.receiver_phone) == (shapes.AMOUNT, shapes.PHONE)


@of("balance_answer")
def test_balance_answer_states_the_float_or_nothing(shape: Shape) -> None:
    answer = messages.parse_balance(shape.body)

    utility = answer.balances.get("Utility Account")
    assert (utility and utility.available) == (shape.means["utility"] and Decimal(shape.means["utility"]))
    assert answer.refuses_our_credentials is (shape.means.get("fault") == "ours")


@of("stk_callback")
def test_stk_callback_states_its_payment(shape: Shape) -> None:
    if shape.means.get("unreadable"):
        with pytest.raises(strict_json.Unreadable):
            messages.parse_stk(shape.body)
        return

    result = messages.parse_stk(shape.body)

    assert (result.says_paid, result.checkout_request_id) == (shape.means["paid"], shapes.CHECKOUT_ID)
    if result.says_paid:
        amount = shape.means["amount"] and Decimal(shape.means["amount"])
        assert (result.amount, result.receipt) == (amount, shape.means["receipt"])
        assert result.phone_number in (shapes.PHONE, None)


# --- answers to our requests


def outcome_of(call: Callable[[], object]) -> str:
    """Return the meaning of one gateway call as the shapes name it."""
    try:
        call()
    except NotSent as error:
        return "token" if error.reason == "auth" else error.reason
    except Rejected as error:
        return "ours" if error.our_fault else "rejected"
    except OutcomeUnknown as error:
        return "known" if error.duplicate else "doubt"
    return "accepted"


@of("b2c_http")
def test_answer_to_a_payment_has_its_meaning(shape: Shape, gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.get(TOKEN_URL, json={"access_token": "second-token", "expires_in": "3599"})
    daraja.post(PAY_URL, body=shape.body, status=shape.status)

    outcome = outcome_of(lambda: gateway.pay(**PAYMENT))

    assert outcome == shape.means["outcome"]
    if shape.means["outcome"] == "token":
        assert [call.request.headers["Authorization"] for call in daraja.calls if call.request.url == PAY_URL] == [
            "Bearer first-token",
            "Bearer second-token",
        ]
    else:
        assert len(sent_bodies(daraja, PAY_URL)) == 1


@of("oauth_http")
def test_answer_to_a_token_request_has_its_meaning(shape: Shape, gateway: Gateway) -> None:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as daraja:
        daraja.get(TOKEN_URL, body=shape.body, status=shape.status)
        daraja.post(PAY_URL, json={"ResponseCode": "0", "ConversationID": "AG_1"})

        outcome = outcome_of(lambda: gateway.pay(**PAYMENT))

        if shape.means.get("refused"):
            assert outcome == "token"
            assert not sent_bodies(daraja, PAY_URL)
        else:
            assert outcome == "accepted"
            assert daraja.calls[-1].request.headers["Authorization"] == f"Bearer {shape.means['token']}"


@of("stk_query_http")
def test_answer_about_a_push_has_its_meaning(shape: Shape, gateway: Gateway, daraja: responses.RequestsMock) -> None:
    if shape.means.get("push"):
        daraja.post(STK_URL, body=shape.body, status=shape.status)
        outcome = outcome_of(lambda: gateway.push_stk(**PUSH))
        # Another merchant's prompt is nobody's fault. Only the codes of payments are classified by fault.
        assert outcome == shape.means["outcome"] or (outcome, shape.means["outcome"]) == ("ours", "refused")
        return

    daraja.post(STK_QUERY_URL, body=shape.body, status=shape.status)

    try:
        answer = gateway.ask_stk(checkout_request_id=shapes.CHECKOUT_ID, at=AT)
        read = "pending" if answer.pending else "paid" if answer.says_paid else "not paid"
    except OutcomeUnknown:
        read = "doubt"
    assert read == shape.means["outcome"]
