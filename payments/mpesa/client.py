"""Gateway to Daraja: each call makes one HTTP request and classifies the answer.

The class of an answer says what we know about the money: not sent, refused, or unknown. The gateway does not sleep.
It does not retry, except once with a new access token. It uses neither settings nor the ORM. The caller commits its
attempt before the call, and decides about the next step. The bulk client uses the gateway too, to write request bodies
and to read answers.
Units: whole shillings, seconds. Thread-safe: one Gateway per process serves all threads.
Source: Daraja portal, pages Authorization, Business To Customer, Transaction Status, Account Balance, M-Pesa Express.
"""

import base64
import re
import time
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import requests
from redis.exceptions import RedisError

from payments.mpesa import credentials, request_fields
from payments.mpesa.access_tokens import Tokens
from payments.mpesa.gateway_errors import NotSent, OutcomeUnknown, Reason, Rejected
from payments.mpesa.http_answers import Answer
from payments.mpesa.message_fields import NAIROBI
from payments.mpesa.redaction import redact
from payments.mpesa.transport import Transport

PAYMENT_PATH = "/mpesa/b2c/v3/paymentrequest"
# While the prompt is on the phone, the answer is an error with a general code. Only its text shows the state.
_STILL_PROCESSED = re.compile(r"(?i)being processed|under processing")
# The phone shows another merchant's prompt, so ours was not sent.
_OTHER_PROMPT = re.compile(r"(?i)unable to lock subscriber")
_DUPLICATE_ID = re.compile(r"(?i)duplicate\s*originator\s*conversation\s*id")


@dataclass(frozen=True)
class Accepted:
    """Daraja has queued a request. This is not yet a payment.

    The ids are those in Daraja's answer. If the answer to a payment has no originator conversation id, ours is used.
    After a query the ids identify the query, not the payment.
    """

    conversation_id: str
    originator_conversation_id: str


@dataclass(frozen=True)
class StkAccepted:
    """Daraja's acceptance of an STK push: the prompt is on its way to the phone."""

    merchant_request_id: str
    checkout_request_id: str
    customer_message: str


@dataclass(frozen=True)
class StkAnswer:
    """Answer about an STK push: pending, or a result code ("0" is paid)."""

    checkout_request_id: str
    pending: bool
    result_code: str
    result_desc: str

    @property
    def says_paid(self) -> bool:
        return not self.pending and self.result_code == "0"


class Gateway:
    """Daraja's B2C, status, balance and STK calls.

    `timeout_seconds` limits a call, including the request for a token. Only the look-up of the host's name and a wait
    for another worker's token are not counted.
    Every call may raise one of three errors:
    - NotSent: the same id may be sent again.
    - Rejected: a definite no.
    - OutcomeUnknown: M-Pesa may have executed the request, so send a status query first.

    Arguments that must not be sent raise ValueError or TypeError.
    If `session` is given, the session ignores proxies, .netrc and cookies from then on.
    """

    def __init__(
        self,
        credentials: credentials.Credentials,
        *,
        tokens: Tokens,
        session: requests.Session | None = None,
        timeout_seconds: float = 4.0,
        pool_size: int = 10,
    ) -> None:
        self.credentials = credentials
        self._tokens = tokens
        self.timeout_seconds = timeout_seconds
        self._transport = Transport(credentials.base_url, session=session, pool_size=pool_size)

    def __repr__(self) -> str:
        return f"Gateway({self.credentials!r})"

    def close(self) -> None:
        self._transport.close()

    def pay(
        self,
        *,
        originator_conversation_id: str,
        amount_shillings: int,
        phone_number: str,
        remarks: str,
        occasion: str,
        result_url: str,
        timeout_url: str,
    ) -> Accepted:
        """Ask M-Pesa to pay whole shillings to a phone (`2547XXXXXXXX`). Acceptance is not payment.

        Idempotent: if the same `originator_conversation_id` is sent again, Daraja refuses it. The call then raises
        OutcomeUnknown(duplicate=True).
        Raises: NotSent; Rejected; OutcomeUnknown; ValueError; TypeError.
        """
        payload = self.payment_body(
            originator_conversation_id=originator_conversation_id,
            amount_shillings=amount_shillings,
            phone_number=phone_number,
            remarks=remarks,
            occasion=occasion,
            result_url=result_url,
            timeout_url=timeout_url,
        )
        return self._accepted(PAYMENT_PATH, payload, originator_conversation_id)

    def payment_body(
        self,
        *,
        originator_conversation_id: str,
        amount_shillings: int,
        phone_number: str,
        remarks: str,
        occasion: str,
        result_url: str,
        timeout_url: str,
    ) -> dict[str, Any]:
        """Build the body of a B2C request and check its fields.

        Remarks and occasion are reduced to letters, digits and blanks. Other merchants report that requests with
        other characters fail or never get a result.
        Raises: ValueError; TypeError.
        """
        # InitiatorName, QueueTimeOutURL and Occassion are Daraja's spellings.
        payload = {
            "OriginatorConversationID": request_fields.checked_ocid(originator_conversation_id),
            "InitiatorName": self.credentials.initiator_name,
            "SecurityCredential": self.credentials.security_credential,
            "CommandID": self.credentials.transaction_command,
            "Amount": request_fields.checked_amount(amount_shillings),
            "PartyA": self.credentials.shortcode,
            "PartyB": request_fields.checked_phone(phone_number),
            "Remarks": request_fields.plain_text(remarks, "remarks"),
            "QueueTimeOutURL": request_fields.checked_url(timeout_url),
            "ResultURL": request_fields.checked_url(result_url),
        }
        if occasion.strip():
            payload["Occassion"] = request_fields.plain_text(occasion, "occasion")
        return payload

    def ask_status(
        self,
        *,
        originator_conversation_id: str | None = None,
        receipt: str | None = None,
        result_url: str,
        timeout_url: str,
        remarks: str = "Status",
    ) -> Accepted:
        """Ask for the status of a payment, by its id or by its receipt. M-Pesa posts the answer to `result_url`.

        Raises: NotSent; Rejected; OutcomeUnknown (M-Pesa may have got the query); ValueError.
        """
        if (originator_conversation_id is None) == (receipt is None):
            raise ValueError("Ask by originator_conversation_id or by receipt: exactly one.")
        # M-Pesa refuses an empty field as malformed, so leave out the unused field.
        subject = (
            {"TransactionID": receipt}
            if originator_conversation_id is None
            else {"OriginalConversationID": request_fields.checked_ocid(originator_conversation_id)}
        )
        payload = {**self._query_body("TransactionStatusQuery", result_url, timeout_url, remarks), **subject}
        return self._accepted("/mpesa/transactionstatus/v1/query", payload)

    def ask_balance(self, *, result_url: str, timeout_url: str, remarks: str = "Balance") -> Accepted:
        """Ask for the balances of our accounts. M-Pesa posts the answer to `result_url`.

        Raises: NotSent; Rejected; OutcomeUnknown (M-Pesa may have got the query); ValueError.
        """
        payload = self._query_body("AccountBalance", result_url, timeout_url, remarks)
        return self._accepted("/mpesa/accountbalance/v1/query", payload)

    def push_stk(
        self,
        *,
        amount_shillings: int,
        phone_number: str,
        account_reference: str,
        description: str,
        callback_url: str,
        at: datetime,
        transaction_type: str = "CustomerPayBillOnline",
    ) -> StkAccepted:
        """Ask a member's phone to pay us whole shillings.

        Units: `at` is an aware time; the reference has at most 12 characters, the description at most 13.
        Raises: NotSent; Rejected; OutcomeUnknown (a prompt may be on the phone); ValueError; TypeError.
        """
        phone = request_fields.checked_phone(phone_number)
        payload = {
            **self._stk_login(at),
            "TransactionType": transaction_type,
            "Amount": request_fields.checked_amount(amount_shillings),
            "PartyA": phone,
            "PartyB": self.credentials.shortcode,
            "PhoneNumber": phone,
            "CallBackURL": request_fields.checked_url(callback_url),
            "AccountReference": request_fields.short_text(account_reference, 12, "account_reference"),
            "TransactionDesc": request_fields.short_text(description, 13, "description"),
        }
        answer = self._authorised_post("/mpesa/stkpush/v1/processrequest", payload)
        if answer.code == "500.001.1001" and _OTHER_PROMPT.search(answer.message):
            raise Rejected(answer.code, self._clean(answer.message))
        self._refuse_unless_acknowledged(answer)
        checkout_request_id = answer.text("CheckoutRequestID")
        if not checkout_request_id:
            raise OutcomeUnknown(answer.code, "accepted without a CheckoutRequestID")
        return StkAccepted(answer.text("MerchantRequestID"), checkout_request_id, answer.text("CustomerMessage"))

    def ask_stk(self, *, checkout_request_id: str, at: datetime) -> StkAnswer:
        """Ask for the state of an STK push. Daraja answers in the same call. `at` is an aware time.

        Raises: NotSent; Rejected; OutcomeUnknown (ask again).
        """
        payload = {**self._stk_login(at), "CheckoutRequestID": checkout_request_id}
        answer = self._authorised_post("/mpesa/stkpushquery/v1/query", payload)
        code = answer.text("ResultCode")
        if code == "4999" or (answer.code == "500.001.1001" and _STILL_PROCESSED.search(answer.message)):
            return StkAnswer(checkout_request_id, True, code, self._clean(answer.text("ResultDesc") or answer.message))
        self._refuse_unless_acknowledged(answer)
        if not code:
            raise OutcomeUnknown(answer.code, "answered without a ResultCode")
        if answer.text("CheckoutRequestID") not in ("", checkout_request_id):
            raise OutcomeUnknown(answer.code, "answered about another CheckoutRequestID")
        return StkAnswer(checkout_request_id, False, code, self._clean(answer.text("ResultDesc")))

    def _query_body(self, command: str, result_url: str, timeout_url: str, remarks: str) -> dict[str, Any]:
        return {
            "Initiator": self.credentials.initiator_name,
            "SecurityCredential": self.credentials.security_credential,
            "CommandID": command,
            "PartyA": self.credentials.shortcode,
            "IdentifierType": "4",
            "Remarks": request_fields.plain_text(remarks, "remarks"),
            "QueueTimeOutURL": request_fields.checked_url(timeout_url),
            "ResultURL": request_fields.checked_url(result_url),
        }

    def _stk_login(self, at: datetime) -> dict[str, Any]:
        if at.tzinfo is None:
            raise ValueError("`at` must be an aware time.")
        if not self.credentials.passkey:
            raise ValueError("STK push needs the passkey of the shortcode.")
        timestamp = at.astimezone(NAIROBI).strftime("%Y%m%d%H%M%S")
        login = f"{self.credentials.shortcode}{self.credentials.passkey}{timestamp}".encode()
        return {
            "BusinessShortCode": self.credentials.shortcode,
            "Password": base64.b64encode(login).decode("ascii"),
            "Timestamp": timestamp,
        }

    def _accepted(self, path: str, payload: dict[str, Any], own_id: str = "") -> Accepted:
        return self.acceptance(self._authorised_post(path, payload), own_id)

    def acceptance(self, answer: Answer, own_id: str = "") -> Accepted:
        """Read the answer to a request that Daraja queues. Raises: NotSent; Rejected; OutcomeUnknown."""
        self._refuse_unless_acknowledged(answer)
        conversation_id = answer.text("ConversationID")
        if not conversation_id:
            raise OutcomeUnknown(answer.code, "accepted without a ConversationID")
        return Accepted(conversation_id, answer.text("OriginatorConversationID") or own_id)

    def _refuse_unless_acknowledged(self, answer: Answer) -> None:
        """Raise an error unless the answer is HTTP 2xx with ResponseCode "0".

        An answer may satisfy several checks. The check that leaves the money in doubt therefore comes first.
        Raises: NotSent; Rejected; OutcomeUnknown.
        """
        if answer.is_2xx and answer.text("ResponseCode") == "0" and not answer.text("errorCode"):
            return
        code, message = self._clean(answer.code), self._clean(answer.message)
        if answer.is_duplicate:
            # After any refusal of a duplicate the money is in doubt. Only the words "duplicate originator conversation
            # id" show that M-Pesa got this id before.
            raise OutcomeUnknown(code, message, duplicate=bool(_DUPLICATE_ID.search(message)))
        if answer.is_throttle:
            raise NotSent("throttle", code, message, answer.retry_after_seconds)
        if answer.is_rejection:
            raise Rejected(code, message)
        raise OutcomeUnknown(code, message or f"HTTP {answer.status} without a known code")

    def _clean(self, text: str, *secrets: str) -> str:
        credentials = self.credentials
        known = (
            credentials.consumer_key,
            credentials.consumer_secret,
            credentials.security_credential,
            credentials.passkey,
            *secrets,
        )
        return redact(text[:1000], *known)[:300]

    def _authorised_post(self, path: str, payload: dict[str, Any]) -> Answer:
        deadline = time.monotonic() + self.timeout_seconds
        token = self.token(deadline)
        answer = self._post(path, payload, token, deadline)
        if not answer.refuses_token:
            return answer
        # A refused token proves that nothing was executed, so the same body may go again with another token.
        token = self.renewed_token(token, deadline)
        answer = self._post(path, payload, token, deadline)
        if answer.refuses_token:
            raise self.unauthorised(answer, token)
        return answer

    def unauthorised(self, answer: Answer, token: str) -> NotSent:
        """Return the error for a request whose second token Daraja refused too."""
        return NotSent("auth", self._clean(answer.code), self._clean(answer.message, token))

    def renewed_token(self, refused: str, deadline: float) -> str:
        """Return an access token other than `refused`. Raises: NotSent."""
        try:
            self._tokens.drop(refused)
        except RedisError:
            raise NotSent("network", message="the token store in Redis failed") from None
        return self.token(deadline)

    def token(self, deadline: float) -> str:
        """Return the shared access token by `deadline` (seconds of time.monotonic). Raises: NotSent."""
        try:
            return self._tokens.get(lambda: self._fetch_token(deadline))
        except RedisError:
            raise NotSent("network", message="the token store in Redis failed") from None

    def _fetch_token(self, deadline: float) -> tuple[str, int]:
        """Fetch a token and its lifetime in seconds. A token request moves no money, so every failure is NotSent."""
        credentials = self.credentials
        try:
            answer = self._transport.send(
                "GET",
                "/oauth/v1/generate",
                deadline,
                params={"grant_type": "client_credentials"},
                auth=(credentials.consumer_key, credentials.consumer_secret),
            )
        except OutcomeUnknown as error:
            raise NotSent("network", error.code, error.message) from None
        token = answer.text("access_token")
        if answer.is_2xx and re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
            return token, _life_seconds(answer.text("expires_in"))
        code, message = self._clean(answer.code), self._clean(answer.message)
        if answer.is_throttle:
            raise NotSent("throttle", code, message, answer.retry_after_seconds)
        # Daraja answers wrong keys with 400, sometimes with an empty body.
        reason: Reason = "auth" if answer.status in (400, 401, 403) or answer.is_auth_error else "network"
        raise NotSent(reason, code, message or f"HTTP {answer.status} instead of an access token")

    def _post(self, path: str, payload: dict[str, Any], token: str, deadline: float) -> Answer:
        headers = {"Authorization": f"Bearer {token}"}
        return self._transport.send("POST", path, deadline, json=payload, headers=headers)


def _life_seconds(text: str) -> int:
    """Read `expires_in`, which comes as 3599 or as "3599".

    If the lifetime cannot be read, it is taken as one second. The token is used now, and the next call fetches another
    token.
    """
    try:
        return max(1, min(int(Decimal(text)), 86_400))
    except (InvalidOperation, ValueError, OverflowError):
        return 1
