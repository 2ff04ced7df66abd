"""Bulk client for Daraja's B2C call: hundreds of requests in flight on one event loop.

The event loop has its own thread. The gateway (client.py) still writes each body, supplies the shared token, and reads
and classifies each answer. Only the HTTP transport differs.
Source: docs/decisions/0011-bulk-client.md.
"""

import asyncio
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp
import certifi

from payments import failpoints
from payments.mpesa.client import PAYMENT_PATH, Accepted, Gateway
from payments.mpesa.gateway_errors import GatewayError, NotSent, OutcomeUnknown
from payments.mpesa.http_answers import MAX_BODY_BYTES, Answer
from payments.mpesa.transport import CONNECT_SECONDS

# Requests handed to the event loop together. Each handover wakes the loop's thread, which costs as much as the books of
# a payout. The number is small, because the first request of a group waits until the last body is written.
HANDED_OVER_AT_ONCE = 50


@dataclass(frozen=True)
class Payment:
    """One B2C request to be POSTed at `at`.

    `key` is the caller's name for the request. `request` holds the arguments of `Gateway.pay`.
    Units: `at` is in seconds of time.monotonic.
    """

    key: int
    at: float
    request: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """The end of one request: Daraja's acceptance, the gateway's error, or an unexpected error.

    The caller must raise an unexpected error.
    """

    key: int
    response: Accepted | GatewayError | Exception


class _Exchange:
    """One request in flight. `sent` turns True when the request is about to be written to a connection.

    Exception types do not show this, because aiohttp raises the same types before and after the write.
    """

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


_exchange: ContextVar[_Exchange] = ContextVar("exchange")


class _WatchedRequest(aiohttp.ClientRequest):
    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        _exchange.get().sent = True
        return await super().send(conn)


class BulkGateway:
    """B2C requests for one caller's thread: `start` begins requests, and `collect` returns the ended ones by key.

    This gateway keeps at most `in_flight` connections and reuses them. It ignores proxies, .netrc, cookies and
    redirects. Each request and its answer must end within the gateway's `timeout_seconds` after the request is due.
    """

    def __init__(self, gateway: Gateway, *, in_flight: int) -> None:
        self._gateway = gateway
        self._in_flight = in_flight
        self._url = gateway.credentials.base_url + PAYMENT_PATH
        self._token = ""
        self._ended: deque[Ended] = deque()
        self._wanted = 1
        self._enough = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- called from the caller's thread

    def start(self, payments: Iterable[Payment]) -> None:
        """POST each payment when it is due. Returns at once, unless the token must be fetched.

        If no token can be had, nothing is sent, and each payment ends as NotSent.
        """
        loop = self._running_loop()
        try:
            self._token = self._gateway.token(time.monotonic() + self._gateway.timeout_seconds)
        except NotSent as error:
            for payment in payments:
                self._end(payment.key, error)
            return
        ready: list[tuple[Payment, bytes]] = []
        for payment in payments:
            try:
                ready.append((payment, json.dumps(self._gateway.payment_body(**payment.request)).encode()))
            except (ValueError, TypeError) as error:
                self._end(payment.key, error)
            if len(ready) == HANDED_OVER_AT_ONCE:
                loop.call_soon_threadsafe(self._due_later, ready)
                ready = []
        if ready:
            loop.call_soon_threadsafe(self._due_later, ready)

    def collect(self, *, patience_seconds: float, at_least: int) -> list[Ended]:
        """Return the requests that ended since the last call.

        Waits until `at_least` requests have ended, but no longer than `patience_seconds`.
        """
        self._wanted = at_least
        if len(self._ended) < at_least:
            self._enough.wait(patience_seconds)
        self._enough.clear()
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def close(self) -> None:
        """Stop the loop without waiting for requests in flight. Collect those requests first."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._loop = self._thread = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="daraja", daemon=True)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self._loop

    # --- run in the loop's thread

    async def _open(self) -> None:
        # Trust the certificate authorities that `requests` trusts, not those of the machine.
        connector = aiohttp.TCPConnector(
            limit=self._in_flight, ssl=ssl.create_default_context(cafile=certifi.where()), keepalive_timeout=15
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=_WatchedRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self._renewing = asyncio.Lock()

    async def _shut(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def _end(self, key: int, response: Accepted | GatewayError | Exception) -> None:
        self._ended.append(Ended(key, response))
        if len(self._ended) >= self._wanted:
            self._enough.set()

    def _due_later(self, payments: list[tuple[Payment, bytes]]) -> None:
        for payment, body in payments:
            asyncio.get_running_loop().call_at(payment.at, self._begin, payment, body)

    def _begin(self, payment: Payment, body: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._pay(payment, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pay(self, payment: Payment, body: bytes) -> None:
        try:
            answer = await self._authorised_post(body)
            self._end(payment.key, self._gateway.acceptance(answer, payment.request["originator_conversation_id"]))
        # Pass every error to the caller's thread, which can record or raise the error. Here it would be lost.
        except Exception as error:
            self._end(payment.key, error)

    async def _authorised_post(self, body: bytes) -> Answer:
        deadline = time.monotonic() + self._gateway.timeout_seconds
        token = self._token
        answer = await self._post(body, token, deadline)
        if not answer.refuses_token:
            return answer
        # A refused token proves that nothing was executed, so the same body may go again with another token.
        token = await self._renewed(token, deadline)
        answer = await self._post(body, token, deadline)
        if answer.refuses_token:
            raise self._gateway.unauthorised(answer, token)
        return answer

    async def _renewed(self, refused: str, deadline: float) -> str:
        """Renew the token once for all requests whose token was refused at about the same time."""
        async with self._renewing:
            if self._token == refused:
                self._token = await asyncio.to_thread(self._gateway.renewed_token, refused, deadline)
            return self._token

    async def _post(self, body: bytes, token: str, deadline: float) -> Answer:
        """Send one request and read its complete answer before `deadline`.

        Units: `deadline` is in seconds of time.monotonic.
        Raises: NotSent if no byte of the request left; OutcomeUnknown for every other failure.
        """
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise NotSent("network", message="the time ran out before the request was sent")
        exchange = _Exchange()
        _exchange.set(exchange)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        timeout = aiohttp.ClientTimeout(total=remaining, sock_connect=min(remaining, CONNECT_SECONDS))
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                failpoints.hit("request written")
                body_read = await _bounded_body(response)
                return Answer.of(response.status, body_read, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, OSError) as error:  # A timeout is an OSError.
            if not exchange.sent:
                raise NotSent("network", message=f"no connection to Daraja ({_cause(error)})") from None
            raise OutcomeUnknown(message=f"no complete answer from Daraja ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    """Name the cause of a failed request in words. The error itself may quote the request, which holds secrets."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return "TLS error" if isinstance(error, aiohttp.ClientSSLError) else "connection error"


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    # If a part of the body stays unread, aiohttp closes the connection afterwards.
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)
