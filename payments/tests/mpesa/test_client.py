"""The gateway's requests, tokens and errors, against a mocked Daraja."""

import base64
import json
from typing import Any

import pytest
import redis
import requests
import responses

from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.client import Accepted, Gateway, StkAccepted, StkAnswer
from payments.mpesa.gateway_errors import NotSent, OutcomeUnknown, Rejected
from testing.gateways import (
    ACK,
    AT,
    BAD_TOKENS,
    BALANCE_URL,
    BASE,
    PAY_URL,
    PAYMENT,
    SEAL,
    STATUS_URL,
    STK_QUERY_URL,
    STK_URL,
    TOKEN_URL,
    URLS,
    closed_port,
    credentials,
    raw,
    sent_bodies,
)

# --- payments


def test_payment_body_uses_darajas_field_names(gateway: Gateway, daraja: responses.RequestsMock) -> None:
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


def test_empty_occasion_is_left_out(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, json=ACK)

    gateway.pay(**{**PAYMENT, "occasion": ""})

    assert "Occassion" not in sent_bodies(daraja, PAY_URL)[0]


# --- authorisation


@pytest.mark.parametrize(("status", "body"), BAD_TOKENS)
def test_refused_token_is_renewed_and_the_same_body_sent_again(
    gateway: Gateway, daraja: responses.RequestsMock, status: int, body: Any
) -> None:
    daraja.post(PAY_URL, body=raw(body), status=status)
    daraja.post(PAY_URL, json=ACK)
    daraja.get(TOKEN_URL, json={"access_token": "second-token", "expires_in": 3599})

    accepted = gateway.pay(**PAYMENT)

    assert accepted.conversation_id == "AG_20261123_1"
    first, second = sent_bodies(daraja, PAY_URL)
    assert first == second
    assert daraja.calls[-1].request.headers["Authorization"] == "Bearer second-token"


@pytest.mark.parametrize("ask", ["status", "balance", "push"])
def test_any_http_401_renews_the_token_of_every_call_once(
    gateway: Gateway, daraja: responses.RequestsMock, ask: str
) -> None:
    url = {"status": STATUS_URL, "balance": BALANCE_URL, "push": STK_URL}[ask]
    daraja.post(url, body=b"<html>401</html>", status=401)
    daraja.post(url, json={**ACK, "CheckoutRequestID": "ws_1"})
    daraja.get(TOKEN_URL, json={"access_token": "second-token", "expires_in": 3599})

    if ask == "status":
        gateway.ask_status(originator_conversation_id=PAYMENT["originator_conversation_id"], **URLS)
    elif ask == "balance":
        gateway.ask_balance(**URLS)
    else:
        gateway.push_stk(**STK)

    assert [call.request.headers["Authorization"] for call in daraja.calls if call.request.url == url] == [
        "Bearer first-token",
        "Bearer second-token",
    ]


def test_two_empty_http_401_leave_the_payment_not_sent(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, body=b"", status=401)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert caught.value.reason == "auth"
    assert len(sent_bodies(daraja, PAY_URL)) == 2


def test_token_refused_twice_raises_not_sent(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, json=BAD_TOKENS[1][1], status=401)

    with pytest.raises(NotSent) as caught:
        gateway.pay(**PAYMENT)

    assert (caught.value.reason, caught.value.code) == ("auth", "401.002.01")
    assert "first-token" not in str(caught.value)
    assert len(sent_bodies(daraja, PAY_URL)) == 2


def test_unanswered_resend_after_refused_token_is_in_doubt(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, json=BAD_TOKENS[0][1], status=404)
    daraja.post(PAY_URL, body=b"", status=503)

    with pytest.raises(OutcomeUnknown):
        gateway.pay(**PAYMENT)


def test_token_renewed_by_another_worker_is_used(
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
def test_without_token_nothing_is_sent(tokens: SharedTokens, status: int, body: bytes, reason: str) -> None:
    with responses.RequestsMock() as daraja:
        daraja.get(TOKEN_URL, status=status, body=body)

        with pytest.raises(NotSent) as caught:
            Gateway(credentials(), tokens=tokens).pay(**PAYMENT)

        assert caught.value.reason == reason


def test_without_redis_nothing_is_sent(daraja: responses.RequestsMock) -> None:
    nowhere = SharedTokens(redis.Redis(port=closed_port(), retry=None), name="test-nowhere", seal=SEAL)

    with pytest.raises(NotSent) as caught:
        Gateway(credentials(), tokens=nowhere).pay(**PAYMENT)

    assert caught.value.reason == "network"
    assert len(daraja.calls) == 0


# --- queries and STK pushes


def test_status_query_names_the_id_or_the_receipt(gateway: Gateway, daraja: responses.RequestsMock) -> None:
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
def test_status_query_without_exactly_one_key_is_refused(gateway: Gateway, wanted: dict) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        gateway.ask_status(**wanted, **URLS)


def test_balance_query_is_sent(gateway: Gateway, daraja: responses.RequestsMock) -> None:
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


def test_stk_push_is_signed_with_nairobi_time(gateway: Gateway, daraja: responses.RequestsMock) -> None:
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
def test_stk_push_with_invalid_field_is_refused(gateway: Gateway, changes: dict) -> None:
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
def test_stk_query_returns_pending_or_a_result_code(
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
def test_stk_answer_without_code_or_about_another_push_is_in_doubt(
    gateway: Gateway, daraja: responses.RequestsMock, status: int, body: dict
) -> None:
    daraja.post(STK_QUERY_URL, json=body, status=status)

    with pytest.raises(OutcomeUnknown):
        gateway.ask_stk(checkout_request_id="ws_1", at=AT)


# --- secrets and credentials


def test_reprs_and_errors_hide_secrets(gateway: Gateway, daraja: responses.RequestsMock) -> None:
    daraja.post(PAY_URL, status=400, json={"errorCode": "400.002.02", "errorMessage": "the-credential\n254712345678"})

    with pytest.raises(Rejected) as caught:
        gateway.pay(**PAYMENT)

    for text in (repr(gateway), repr(credentials()), repr(caught.value), str(caught.value)):
        assert not any(secret in text for secret in ("the-key", "the-secret", "the-credential", "the-passkey", "71234"))
    assert str(caught.value) == "Rejected by Daraja: 400.002.02 [redacted] 2547****678"


@pytest.mark.parametrize("base_url", ["api.example.com", "ftp://api.example.com", "https://"])
def test_invalid_base_url_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match="base URL"):
        credentials(base_url)


def test_token_name_depends_on_host_and_key_and_hides_both() -> None:
    names = {
        credentials().token_name,
        credentials("https://other.test").token_name,
        credentials(consumer_key="other").token_name,
    }

    assert len(names) == 3
    assert all(len(name) == 32 and "key" not in name for name in names)
    assert credentials(BASE + "/").token_name == credentials().token_name
