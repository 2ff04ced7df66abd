"""HTTP transport to Daraja that knows whether a request left this machine."""

import http.client
import io
import threading
import time
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from payments import failpoints
from payments.mpesa.gateway_errors import NotSent, OutcomeUnknown
from payments.mpesa.http_answers import MAX_BODY_BYTES, Answer

CONNECT_SECONDS = 2.0


class Transport:
    """HTTP requests to one base URL over connections that stay open. Thread-safe.

    The session ignores proxies, .netrc and cookies, so that the environment cannot redirect a payment.
    If `session` is given, this transport mounts its own adapter on that session.
    """

    def __init__(self, base_url: str, *, session: requests.Session | None, pool_size: int) -> None:
        self._base_url = base_url
        self._session = session or requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _WatchedAdapter(pool_connections=2, pool_maxsize=pool_size, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def close(self) -> None:
        self._session.close()

    def send(self, method: str, path: str, deadline: float, **request: Any) -> Answer:
        """Send one request and read its complete answer before `deadline`.

        Units: `deadline` is in seconds of time.monotonic.
        Raises: NotSent if no byte of the request left; OutcomeUnknown for every other failure.
        """
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise NotSent("network", message="the time ran out before the request was sent")
        request["headers"] = {**request.get("headers", {}), "Accept-Encoding": "identity"}
        _exchange.deadline, _exchange.sent = deadline, None
        try:
            with self._session.request(
                method,
                self._base_url + path,
                timeout=(min(remaining, CONNECT_SECONDS), remaining),
                allow_redirects=False,
                stream=True,
                **request,
            ) as response:
                return Answer.of(response.status_code, _bounded_body(response), response.headers.get("Retry-After", ""))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if _exchange.sent is False or isinstance(error, requests.ConnectTimeout):
                raise NotSent("network", message=f"no connection to Daraja ({_cause(error)})") from None
            raise OutcomeUnknown(message=f"no complete answer from Daraja ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    """Name the cause of a failed request in words. The error itself may quote the request, which holds secrets."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return "timeout"
    return "TLS error" if isinstance(error, requests.exceptions.SSLError) else "connection error"


def _bounded_body(response: requests.Response) -> bytes:
    body = bytearray()
    # We request no compression. A body that is compressed anyway stays compressed and does not read as JSON.
    for chunk in response.raw.stream(8192, decode_content=False):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


class _Exchange(threading.local):
    """The current request of this thread.

    `sent` is False from the moment our connection is used, and True just before the first byte is written.
    Exception types do not show this: urllib3 raises the same TLS and connection errors before and after the write.
    """

    deadline: float = float("inf")
    sent: bool | None = None


_exchange = _Exchange()


class _TimedReader(io.RawIOBase):
    """A reader that limits each read to the time left, so that a slow drip of bytes cannot hold a worker."""

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
    """A mixin for urllib3's connections that records when the first byte of a request is about to leave."""

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
