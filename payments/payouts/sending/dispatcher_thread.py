"""A thread that runs the dispatcher, so that requests outlive the Celery task that woke the thread.

A task only wakes the thread and ends at once. The thread sends while payouts are due, then sleeps. When the process is
asked to end, the thread waits for the requests under way and records their responses. If the process is killed, status
queries find the results instead.
"""

import logging
import threading
from collections.abc import Callable

import redis
from django.db import InterfaceError, OperationalError, close_old_connections, connections

from payments.payouts.sending.dispatcher import Dispatcher

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")


class DispatcherThread:
    """One thread, started by the first `wake`. `make_dispatcher` returns the Dispatcher to run."""

    def __init__(self, make_dispatcher: Callable[[], Dispatcher]) -> None:
        self._make_dispatcher = make_dispatcher
        self._awake = threading.Condition()
        self._wanted = False
        self._busy = False
        self._ending = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Make the thread look for due payouts. Returns at once. Idempotent."""
        with self._awake:
            if self._ending:
                return
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="dispatcher", daemon=True)
                self._thread.start()
            self._awake.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait at most `seconds` until all due payouts are sent. Return True if they are sent."""
        with self._awake:
            return self._awake.wait_for(lambda: not (self._wanted or self._busy), seconds)

    def end(self, seconds: float) -> None:
        """Stop claiming, record the responses to the requests under way, and end the thread. Wait at most `seconds`."""
        with self._awake:
            self._ending, thread = True, self._thread
            self._awake.notify_all()
        if thread is not None:
            thread.join(seconds)

    def _live(self) -> None:
        try:
            while self._sleep():
                self._send()
        finally:
            connections.close_all()

    def _sleep(self) -> bool:
        with self._awake:
            self._busy = False
            self._awake.notify_all()
            self._awake.wait_for(lambda: self._wanted or self._ending)
            self._wanted, self._busy = False, True
            return not self._ending

    def _send(self) -> None:
        """Run the dispatcher once. An error ends only this run; the next sweep wakes the thread again."""
        close_old_connections()
        try:
            self._make_dispatcher().run(keep_going=lambda: not self._ending)
        except (redis.RedisError, OperationalError, InterfaceError) as error:
            log.warning("Sending stops until the next sweep: %s", error)
            connections.close_all()
        # The thread must outlive any error. Otherwise nothing would be sent until the process is started again.
        except Exception:
            alarm.exception("Sending stops until the next sweep")
            connections.close_all()
