"""Delayed jobs of the simulator, and its POSTs to the callback URLs."""

import heapq
import itertools
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import requests

CALLBACK_TIMEOUT_SECONDS = (3.0, 10.0)


class Delivery:
    """A pool of threads that runs jobs after a delay. Each thread keeps its own connections to the receivers open."""

    def __init__(self, *, threads: int = 24) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="callback")
        self._due: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._wake = threading.Condition()
        self._order = itertools.count()
        self._stopping = False
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._clock = threading.Thread(target=self._run, name="delivery-clock", daemon=True)

    def start(self) -> None:
        """Start the threads that run jobs."""
        self._clock.start()

    def stop(self) -> None:
        """Drop the jobs that are not due, finish the running ones and close the connections."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._clock.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for session in self._sessions:
            session.close()

    def after(self, seconds: float, job: Callable[..., None], *arguments: object) -> None:
        """Run a job on the pool after a delay in seconds."""
        with self._wake:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), job, arguments))
            if self._due[0][3] is arguments:
                self._wake.notify()

    def at_once(self, job: Callable[..., None], *arguments: object) -> None:
        """Run a job on the pool now and wait until it ends."""
        self._pool.submit(job, *arguments).result()

    def pending(self) -> int:
        """Count the jobs that are not due yet."""
        with self._wake:
            return len(self._due)

    def post(self, url: str, body: bytes, *, in_chunks: bool = False) -> str:
        """POST JSON once, without following redirects. Return the HTTP status or the name of the error.

        A body in chunks has no Content-Length.
        """
        try:
            return self._post(url, body, in_chunks)
        except requests.ConnectTimeout as error:
            return type(error).__name__
        except requests.ConnectionError as error:
            if "NewConnectionError" in repr(error):
                return type(error).__name__
            # A receiver may close an idle connection at the moment we use it again. This is no refusal, so POST again.
            try:
                return self._post(url, body, in_chunks)
            except requests.RequestException as again:
                return type(again).__name__
        except requests.RequestException as error:
            return type(error).__name__

    def _post(self, url: str, body: bytes, in_chunks: bool) -> str:
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            # Ignore the environment's proxies, because looking them up takes longer than the POST.
            session.trust_env = False
            session.headers["Content-Type"] = "application/json"
            self._sessions.append(session)
        content = iter([body[:100], body[100:]]) if in_chunks else body
        response = session.post(url, data=content, timeout=CALLBACK_TIMEOUT_SECONDS, allow_redirects=False)
        return str(response.status_code)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and (not self._due or self._due[0][0] > time.monotonic()):
                    self._wake.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._stopping:
                    return
                _, _, job, arguments = heapq.heappop(self._due)
            self._pool.submit(job, *arguments).add_done_callback(_print_error)


def _print_error(future: Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        sys.stderr.write("".join(traceback.format_exception(error)))
        sys.stderr.flush()
