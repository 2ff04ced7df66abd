"""The Daraja gateway: one HTTP request per call, parsed, classified by what we then know of the money, and redacted.

No retry loop, no sleep, no settings, no ORM: the caller commits its attempt before calling and decides what follows.
Units: whole shillings, seconds. Thread-safe; one Gateway per process serves all its threads. What it knows of Daraja,
how a payment is written and an answer read, serves the bulk client as well (daraja_bulk).
Source: Daraja portal, pages Authorization, Business To Customer, Transaction Status, Account Balance, M-Pesa Express.
"""

import base64
import hashlib
import http.client
import io
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Literal, Protocol, Self, TypeAlias
from urllib.parse import urlsplit

import redis
import requests
import urllib3
from redis.exceptions import LockError, RedisError
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from payments import failpoints
from payments.mpesa.messages import NAIROBI, Unreadable, read_object, redact

MAX_BODY_BYTES = 64 * 1024
PAYMENT_PATH = "/mpesa/b2c/v3/paymentrequest"
CONNECT_SECONDS = 2.0

Reason: TypeAlias = Literal["network", "auth", "throttle"]

# Daraja silently refuses callback URLs with these words in them, in any case, anywhere.
FORBIDDEN_WORDS = ("m-pesa", "mpesa", "safaricom", "exec", "exe", "cmd", "sql", "query")

# Both lists are allow-lists: a code that is not on one leaves the money in doubt.
_REJECTED_RESPONSE_CODES = frozenset({"23", "24", "25", "29", "100000005", "100000007", "100000010", "100000014"})
_REJECTED_ERROR_CODES = frozenset({"400.002.02", "400.002.05", "400.003.02", "405.001"})
_AUTH_CODES = frozenset({"404.001.03", "404.001.04", "400.003.01", "400.008.01", "400.008.02"})
_THROTTLE_CODES = frozenset({"500.003.02", "500.003.03"})
_AUTH_WORDS = re.compile(r"(?i)invalid[ _]access[ _]?token|access[ _]token (?:has )?expired|no apiproduct match found")
_DUPLICATE_WORDS = re.compile(r"(?i)duplicate")
_DUPLICATE_ID = re.compile(r"(?i)duplicate\s*originator\s*conversation\s*id")
_OCID = re.compile(r"[A-Za-z0-9_-]{1,36}")
_PHONE = re.compile(r"254[17][0-9]{8}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]+")


# -------- errors: what we know of the money


class GatewayError(Exception):
    """A call without an acknowledgement. `code` and `message` are Daraja's, or ours where it said nothing; redacted."""

    def __init__(self, code: str, message: str, *more: object) -> None:
        # All of it goes into args, so that the error survives pickling by a task queue.
        super().__init__(code, message, *more)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.code} {self.message}".replace("  ", " ").strip()


class NotSent(GatewayError):
    """The request never left, or was surely not executed: the same id may be sent again."""

    def __init__(
        self, reason: Reason, code: str = "", message: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.args = (reason, code, message, retry_after_seconds)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Rejected(GatewayError):
    """A definite no: Daraja refused the request itself and will not execute it."""


class OutcomeUnknown(GatewayError):
    """Perhaps executed: ask, never conclude. `duplicate`: Daraja has seen this id, so an earlier request counts."""

    def __init__(self, code: str = "", message: str = "", duplicate: bool = False) -> None:
        super().__init__(code, message, duplicate)
        self.duplicate = duplicate


# -------- what comes and goes


@dataclass(frozen=True, repr=False)
class Credentials:
    """One shortcode's keys at Daraja. `security_credential` is the encrypted password, `passkey` serves STK only."""

    base_url: str
    consumer_key: str
    consumer_secret: str
    initiator_name: str
    security_credential: str
    shortcode: str
    passkey: str = ""
    transaction_command: str = "BusinessPayment"

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The Daraja base URL must be http(s)://host, not {self.base_url!r}.")
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    def __repr__(self) -> str:
        return f"Credentials({self.base_url}, shortcode {self.shortcode}, secrets redacted)"

    @property
    def token_name(self) -> str:
        """The name under which workers with the same app share a token; a hash, so it tells nothing of the key."""
        return hashlib.sha256(f"{self.base_url}\n{self.consumer_key}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Accepted:
    """Daraja queued the request: accepted, not paid. The ids are Daraja's; for a query they are the query's own."""

    conversation_id: str
    originator_conversation_id: str


@dataclass(frozen=True)
class StkAccepted:
    """The prompt is on its way to the phone."""

    merchant_request_id: str
    checkout_request_id: str
    customer_message: str


@dataclass(frozen=True)
class StkAnswer:
    """What became of an STK push: pending, or a result code ("0" is paid)."""

    checkout_request_id: str
    pending: bool
    result_code: str
    result_desc: str

    @property
    def says_paid(self) -> bool:
        return not self.pending and self.result_code == "0"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that came whole. `fields` is None where the body is no JSON object."""

    status: int
    fields: dict[str, Any] | None
    retry_after_seconds: float | None

    @classmethod
    def of(cls, status: int, body: bytes, retry_after: str) -> Self:
        """Read an answer off the wire; a body longer than MAX_BODY_BYTES is none."""
        return cls(status, _object_or_none(body), _seconds_or_none(retry_after))

    def text(self, name: str) -> str:
        value = (self.fields or {}).get(name)
        is_scalar = isinstance(value, str | int | Decimal) and not isinstance(value, bool)
        return str(value).strip() if is_scalar else ""

    @property
    def is_2xx(self) -> bool:
        return 200 <= self.status < 300

    @property
    def code(self) -> str:
        return self.text("errorCode") or self.text("ResponseCode") or self._fault("errorcode")

    @property
    def message(self) -> str:
        return self.text("errorMessage") or self.text("ResponseDescription") or self._fault("faultstring")

    def _fault(self, name: str) -> str:
        """The proxy in front of Daraja has an error shape of its own: {fault: {faultstring, detail: {errorcode}}}."""
        fault = (self.fields or {}).get("fault")
        detail = fault.get("detail") if isinstance(fault, dict) else None
        value = {**(detail if isinstance(detail, dict) else {}), **(fault if isinstance(fault, dict) else {})}.get(name)
        return value.strip() if isinstance(value, str) else ""

    @property
    def is_auth_error(self) -> bool:
        # Four spellings of a bad token come with 400, 401, 404 and 500 alike, so the HTTP status decides nothing.
        if self.fields is None or self.is_2xx:
            return False
        return self.code in _AUTH_CODES or self.code.startswith("401.") or bool(_AUTH_WORDS.search(self.message))

    @property
    def refuses_token(self) -> bool:
        return self.is_auth_error and not self.is_duplicate

    @property
    def is_throttle(self) -> bool:
        if self.is_2xx:
            return False
        return self.status == 429 or self.code in _THROTTLE_CODES or self.code.startswith("policies.ratelimit.")

    @property
    def is_duplicate(self) -> bool:
        return bool(_DUPLICATE_WORDS.search(self.message))

    @property
    def is_rejection(self) -> bool:
        if self.is_2xx:
            return self.text("ResponseCode") in _REJECTED_RESPONSE_CODES
        return 400 <= self.status < 500 and (self.code in _REJECTED_ERROR_CODES or self.code.startswith("404."))


# -------- the wire, watched and timed


class _Exchange(threading.local):
    """The request this thread is making. `sent`: False once our connection was asked, True once a byte was handed over.

    Exception types cannot tell this: urllib3 raises the same TLS and connection errors before and after the request.
    """

    deadline: float = float("inf")
    sent: bool | None = None


_exchange = _Exchange()


class _TimedReader(io.RawIOBase):
    """Bounds each read by what is left until the deadline, so that a slow drip of bytes cannot hold a worker."""

    def __init__(self, raw: io.RawIOBase, sock: Any, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(remaining)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, _exchange.deadline))


class _Watched:
    """Mixed into urllib3's connections: notes when the first byte of a request is about to leave."""

    response_class: Any = _TimedResponse
    sock: Any

    def connect(self) -> None:
        _exchange.sent = False
        super().connect()  # type: ignore[misc]

    def send(self, payload: Any) -> None:
        if self.sock is None:
            self.connect()
        if not _exchange.sent:
            _exchange.sent = False
            if time.monotonic() >= _exchange.deadline:
                raise TimeoutError("connecting took too long")
            _exchange.sent = True
        super().send(payload)  # type: ignore[misc]
        failpoints.hit("request written")


class _WatchedHTTPConnection(_Watched, HTTPConnection):
    pass


class _WatchedHTTPSConnection(_Watched, HTTPSConnection):
    pass


class _WatchedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _WatchedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection


class _WatchedAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _WatchedHTTPPool, "https": _WatchedHTTPSPool}


# -------- tokens

Fetch: TypeAlias = Callable[[], tuple[str, int]]


class Tokens(Protocol):
    """Where the OAuth token is kept. `fetch` returns (token, seconds it lives)."""

    def get(self, fetch: Fetch) -> str: ...

    def drop(self, token: str) -> None: ...


class SharedTokens:
    """One OAuth token for all workers, in Redis: the portal says that each new token ends the one before.

    Refreshed by one worker at a time, min(60 s, a quarter of its life) before its end; meanwhile the others go on with
    the old one. `name` is `Credentials.token_name`; `clock` gives seconds since the epoch.
    """

    _DROP = "if redis.call('HGET', KEYS[1], 'value') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

    def __init__(
        self,
        redis_client: redis.Redis,
        *,
        name: str,
        clock: Callable[[], float] = time.time,
        wait_seconds: float = 1.0,
        lock_seconds: float = 10.0,
    ) -> None:
        self._redis = redis_client
        self._key = f"daraja:token:{name}"
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._lock_seconds = lock_seconds

    def get(self, fetch: Fetch) -> str:
        """The shared token, fetched under the lock when there is none or its end is near.

        Raises: NotSent where another worker holds the lock for too long; RedisError; whatever `fetch` raises.
        """
        token, is_fresh = self._read()
        if token and is_fresh:
            return token
        lock = self._redis.lock(f"{self._key}:lock", timeout=self._lock_seconds, sleep=0.02)
        if not lock.acquire(blocking=not token, blocking_timeout=self._wait_seconds if not token else None):
            if token:
                return token
            raise NotSent("network", message="another worker is still fetching the access token")
        try:
            token, is_fresh = self._read()
            return token if token and is_fresh else self._write(*fetch())
        except NotSent:
            # The old token serves until its end, even when no new one is to be had.
            if token:
                return token
            raise
        finally:
            try:
                lock.release()
            except LockError:
                # The lock ran out while we fetched; whoever holds it now fetches again, which is harmless.
                pass

    def drop(self, token: str) -> None:
        """Forget `token` where it is still the shared one; a newer one stays. Raises: RedisError."""
        self._redis.eval(self._DROP, 1, self._key, token)

    def _read(self) -> tuple[str, bool]:
        found = self._redis.hmget(self._key, "value", "refresh_at", "expires_at")
        value, refresh_at, expires_at = (part.decode() if isinstance(part, bytes) else part for part in found)
        now = self._clock()
        if not (value and refresh_at and expires_at) or now >= float(expires_at):
            return "", False
        return value, now < float(refresh_at)

    def _write(self, value: str, life_seconds: int) -> str:
        now = self._clock()
        margin = min(60.0, life_seconds / 4)
        token: dict[Any, Any] = {
            "value": value,
            "refresh_at": now + life_seconds - margin,
            "expires_at": now + life_seconds,
        }
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(self._key, mapping=token)
            pipeline.expire(self._key, life_seconds)
            pipeline.execute()
        return value


# -------- gateway


class Gateway:
    """Daraja's B2C, status, balance and STK calls.

    No request starts, and no answer is awaited, after `timeout_seconds`, token included; only the look-up of the host's
    name and a wait for another worker's token come on top. Every call raises NotSent (same id may be resent), Rejected
    (a definite no) or OutcomeUnknown (ask only), and ValueError or TypeError for arguments that must not be sent.
    A given `session` gets this gateway's adapter, and ignores proxies, .netrc and cookies: the money's road is
    configured, not inherited.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        tokens: Tokens,
        session: requests.Session | None = None,
        timeout_seconds: float = 4.0,
        pool_size: int = 10,
    ) -> None:
        self.credentials = credentials
        self._tokens = tokens
        self.timeout_seconds = timeout_seconds
        self._session = session or requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _WatchedAdapter(pool_connections=2, pool_maxsize=pool_size, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def __repr__(self) -> str:
        return f"Gateway({self.credentials!r})"

    def close(self) -> None:
        self._session.close()

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

        Idempotent: by `originator_conversation_id`, at Daraja; a repeat answers OutcomeUnknown(duplicate=True).
        Raises: NotSent; Rejected; OutcomeUnknown; ValueError; TypeError.
        """
        payload = self.payment(
            originator_conversation_id=originator_conversation_id,
            amount_shillings=amount_shillings,
            phone_number=phone_number,
            remarks=remarks,
            occasion=occasion,
            result_url=result_url,
            timeout_url=timeout_url,
        )
        return self._accepted(PAYMENT_PATH, payload, originator_conversation_id)

    def payment(
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
        """The body of a B2C request, checked.

        Remarks and occasion are reduced to letters, digits and blanks: other characters made requests vanish.
        Raises: ValueError; TypeError.
        """
        # The three spellings InitiatorName, QueueTimeOutURL and Occassion are Daraja's.
        payload = {
            "OriginatorConversationID": _checked_ocid(originator_conversation_id),
            "InitiatorName": self.credentials.initiator_name,
            "SecurityCredential": self.credentials.security_credential,
            "CommandID": self.credentials.transaction_command,
            "Amount": _checked_amount(amount_shillings),
            "PartyA": self.credentials.shortcode,
            "PartyB": _checked_phone(phone_number),
            "Remarks": _plain(remarks, "remarks"),
            "QueueTimeOutURL": _checked_url(timeout_url),
            "ResultURL": _checked_url(result_url),
        }
        if occasion.strip():
            payload["Occassion"] = _plain(occasion, "occasion")
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
        """Ask what became of a payment, by its id or its receipt (exactly one). The answer comes to `result_url`.

        Raises: NotSent; Rejected; OutcomeUnknown (perhaps asked); ValueError.
        """
        if (originator_conversation_id is None) == (receipt is None):
            raise ValueError("Ask by originator_conversation_id or by receipt: exactly one.")
        # Empty fields are refused by M-Pesa as malformed, so the one that is not asked by is left out.
        wanted = (
            {"TransactionID": receipt}
            if originator_conversation_id is None
            else {"OriginalConversationID": _checked_ocid(originator_conversation_id)}
        )
        payload = {**self._question("TransactionStatusQuery", result_url, timeout_url, remarks), **wanted}
        return self._accepted("/mpesa/transactionstatus/v1/query", payload)

    def ask_balance(self, *, result_url: str, timeout_url: str, remarks: str = "Balance") -> Accepted:
        """Ask for the balances of our accounts. The answer comes to `result_url`.

        Raises: NotSent; Rejected; OutcomeUnknown (perhaps asked); ValueError.
        """
        payload = self._question("AccountBalance", result_url, timeout_url, remarks)
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
        """Ask a member's phone to pay us whole shillings. `at` is an aware time; reference ≤ 12, description ≤ 13.

        Raises: NotSent; Rejected; OutcomeUnknown (a prompt may be on the phone); ValueError; TypeError.
        """
        phone = _checked_phone(phone_number)
        payload = {
            **self._stk_login(at),
            "TransactionType": transaction_type,
            "Amount": _checked_amount(amount_shillings),
            "PartyA": phone,
            "PartyB": self.credentials.shortcode,
            "PhoneNumber": phone,
            "CallBackURL": _checked_url(callback_url),
            "AccountReference": _short(account_reference, 12, "account_reference"),
            "TransactionDesc": _short(description, 13, "description"),
        }
        answer = self._acknowledged("/mpesa/stkpush/v1/processrequest", payload)
        checkout_request_id = answer.text("CheckoutRequestID")
        if not checkout_request_id:
            raise OutcomeUnknown(answer.code, "accepted without a CheckoutRequestID")
        return StkAccepted(answer.text("MerchantRequestID"), checkout_request_id, answer.text("CustomerMessage"))

    def ask_stk(self, *, checkout_request_id: str, at: datetime) -> StkAnswer:
        """Ask, and hear at once, what became of an STK push. `at` is an aware time.

        Raises: NotSent; Rejected; OutcomeUnknown (ask again).
        """
        payload = {**self._stk_login(at), "CheckoutRequestID": checkout_request_id}
        answer = self._authorised_post("/mpesa/stkpushquery/v1/query", payload)
        code = answer.text("ResultCode")
        # While the prompt is on the phone, the answer is an error with a catch-all code; only its text tells.
        if code == "4999" or (answer.code == "500.001.1001" and "being processed" in answer.message.lower()):
            return StkAnswer(checkout_request_id, True, code, self._clean(answer.text("ResultDesc") or answer.message))
        self._refuse_unless_acknowledged(answer)
        if not code:
            raise OutcomeUnknown(answer.code, "answered without a ResultCode")
        if answer.text("CheckoutRequestID") not in ("", checkout_request_id):
            raise OutcomeUnknown(answer.code, "answered about another CheckoutRequestID")
        return StkAnswer(checkout_request_id, False, code, self._clean(answer.text("ResultDesc")))

    # -------- payloads

    def _question(self, command: str, result_url: str, timeout_url: str, remarks: str) -> dict[str, Any]:
        return {
            "Initiator": self.credentials.initiator_name,
            "SecurityCredential": self.credentials.security_credential,
            "CommandID": command,
            "PartyA": self.credentials.shortcode,
            "IdentifierType": "4",
            "Remarks": _plain(remarks, "remarks"),
            "QueueTimeOutURL": _checked_url(timeout_url),
            "ResultURL": _checked_url(result_url),
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

    # -------- classification

    def _accepted(self, path: str, payload: dict[str, Any], own_id: str = "") -> Accepted:
        return self.acceptance(self._authorised_post(path, payload), own_id)

    def acceptance(self, answer: Answer, own_id: str = "") -> Accepted:
        """Read the answer to a request that is queued. Raises: NotSent; Rejected; OutcomeUnknown."""
        self._refuse_unless_acknowledged(answer)
        conversation_id = answer.text("ConversationID")
        if not conversation_id:
            raise OutcomeUnknown(answer.code, "accepted without a ConversationID")
        return Accepted(conversation_id, answer.text("OriginatorConversationID") or own_id)

    def _acknowledged(self, path: str, payload: dict[str, Any]) -> Answer:
        answer = self._authorised_post(path, payload)
        self._refuse_unless_acknowledged(answer)
        return answer

    def _refuse_unless_acknowledged(self, answer: Answer) -> None:
        """Return only on HTTP 2xx with ResponseCode "0"; the order of the questions is from most to least doubt."""
        if answer.is_2xx and answer.text("ResponseCode") == "0" and not answer.text("errorCode"):
            return
        code, message = self._clean(answer.code), self._clean(answer.message)
        if answer.is_duplicate:
            # Whatever is called a duplicate is in doubt; that M-Pesa has had this id, only these words say.
            raise OutcomeUnknown(code, message, duplicate=bool(_DUPLICATE_ID.search(message)))
        if answer.is_throttle:
            raise NotSent("throttle", code, message, answer.retry_after_seconds)
        if answer.is_rejection:
            raise Rejected(code, message)
        raise OutcomeUnknown(code, message or f"HTTP {answer.status} without a code we know")

    def _clean(self, text: str, *secrets: str) -> str:
        own = self.credentials
        known = (own.consumer_key, own.consumer_secret, own.security_credential, own.passkey, *secrets)
        return redact(text[:1000], *known)[:300]

    # -------- the call

    def _authorised_post(self, path: str, payload: dict[str, Any]) -> Answer:
        deadline = time.monotonic() + self.timeout_seconds
        token = self.token(deadline)
        answer = self._post(path, payload, token, deadline)
        if not answer.refuses_token:
            return answer
        # It proves that nothing was executed, so the same body may go once more with another token.
        token = self.renewed_token(token, deadline)
        answer = self._post(path, payload, token, deadline)
        if answer.refuses_token:
            raise self.unauthorised(answer, token)
        return answer

    def unauthorised(self, answer: Answer, token: str) -> NotSent:
        """What it is when a second token is refused as well."""
        return NotSent("auth", self._clean(answer.code), self._clean(answer.message, token))

    def renewed_token(self, refused: str, deadline: float) -> str:
        """Another access token than the one that Daraja refused. Raises: NotSent."""
        try:
            self._tokens.drop(refused)
        except RedisError as error:
            raise NotSent("network", message=f"the token store failed: {type(error).__name__}") from None
        return self.token(deadline)

    def token(self, deadline: float) -> str:
        """The shared access token, by `deadline` (seconds of time.monotonic). Raises: NotSent."""
        try:
            return self._tokens.get(lambda: self._fetch_token(deadline))
        except RedisError as error:
            raise NotSent("network", message=f"the token store failed: {type(error).__name__}") from None

    def _fetch_token(self, deadline: float) -> tuple[str, int]:
        """Get a token and its life in seconds. Asking for one moves no money, so every failure here is NotSent."""
        own = self.credentials
        try:
            answer = self._send(
                "GET",
                "/oauth/v1/generate",
                deadline,
                params={"grant_type": "client_credentials"},
                auth=(own.consumer_key, own.consumer_secret),
            )
        except OutcomeUnknown as error:
            raise NotSent("network", error.code, error.message) from None
        token = answer.text("access_token")
        if answer.is_2xx and re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
            return token, _life_seconds(answer.text("expires_in"))
        code, message = self._clean(answer.code), self._clean(answer.message)
        if answer.is_throttle:
            raise NotSent("throttle", code, message, answer.retry_after_seconds)
        # Wrong keys are answered with 400, sometimes with an empty body.
        reason: Reason = "auth" if answer.status in (400, 401) or answer.is_auth_error else "network"
        raise NotSent(reason, code, message or f"HTTP {answer.status} instead of an access token")

    def _post(self, path: str, payload: dict[str, Any], token: str, deadline: float) -> Answer:
        return self._send("POST", path, deadline, json=payload, headers={"Authorization": f"Bearer {token}"})

    def _send(self, method: str, path: str, deadline: float, **request: Any) -> Answer:
        """Make one request and read its whole answer before the deadline (seconds of time.monotonic).

        Raises: NotSent where not a byte of the request left; OutcomeUnknown for everything else that goes wrong.
        """
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise NotSent("network", message="out of time before sending")
        request["headers"] = {**request.get("headers", {}), "Accept-Encoding": "identity"}
        _exchange.deadline, _exchange.sent = deadline, None
        try:
            with self._session.request(
                method,
                self.credentials.base_url + path,
                timeout=(min(remaining, CONNECT_SECONDS), remaining),
                allow_redirects=False,
                stream=True,
                **request,
            ) as response:
                return Answer.of(response.status_code, _bounded_body(response), response.headers.get("Retry-After", ""))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if _exchange.sent is False or isinstance(error, requests.ConnectTimeout):
                raise NotSent("network", message=f"no connection: {type(error).__name__}") from None
            raise OutcomeUnknown(message=f"no whole answer: {type(error).__name__}") from None


def _bounded_body(response: requests.Response) -> bytes:
    body = bytearray()
    # We ask for no compression; a body that is compressed all the same stays so, and reads as no JSON.
    for chunk in response.raw.stream(8192, decode_content=False):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


def _object_or_none(body: bytes) -> dict[str, Any] | None:
    try:
        return read_object(body, max_bytes=MAX_BODY_BYTES)
    except Unreadable:
        return None


def _seconds_or_none(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,5}", text.strip()) else None


def _life_seconds(text: str) -> int:
    """`expires_in` comes as 3599 or "3599"; a token that tells no life is used at once and fetched anew next time."""
    try:
        return max(1, min(int(Decimal(text)), 86_400))
    except (InvalidOperation, ValueError, OverflowError):
        return 1


def _checked_amount(amount_shillings: int) -> int:
    # Booleans are integers to Python, and Decimals or floats may hold cents, which M-Pesa does not move.
    if type(amount_shillings) is not int:
        raise TypeError(f"An amount is an int of whole shillings, not {type(amount_shillings).__name__}.")
    if amount_shillings <= 0:
        raise ValueError("An amount must be above zero.")
    return amount_shillings


def _checked_phone(phone_number: str) -> str:
    if not _PHONE.fullmatch(phone_number):
        raise ValueError(f"{redact(phone_number)!r} is no number of the form 2547XXXXXXXX or 2541XXXXXXXX.")
    return phone_number


def _checked_ocid(originator_conversation_id: str) -> str:
    if not _OCID.fullmatch(originator_conversation_id):
        raise ValueError("An originator conversation id has 1 to 36 letters, digits, dashes or underscores.")
    return originator_conversation_id


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("A callback URL must be http(s)://host/path.")
    for word in FORBIDDEN_WORDS:
        if word in url.lower():
            raise ValueError(f"Daraja refuses callback URLs that contain {word!r}.")
    return url


def _plain(text: str, name: str) -> str:
    plain = _NOT_PLAIN.sub(" ", text).strip()[:100].strip()
    if len(plain) < 2:
        raise ValueError(f"{name} must have at least two letters or digits.")
    return plain


def _short(text: str, longest: int, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9 -]+", text) or len(text) > longest:
        raise ValueError(f"{name} must have 1 to {longest} letters, digits, blanks or dashes.")
    return text
