"""A thread that runs the dispatcher, so that requests outlive the Celery task that woke it.

A task only wakes the thread and ends at once. The thread sends while payouts are due, then sleeps. When its process is
asked to end, it waits for the requests under way and records their responses. If the process is killed, status queries
find the results instead.
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
    """One thread, started when it is first woken. `dispatcher` builds the dispatcher that it runs."""

    def __init__(self, dispatcher: Callable[[], Dispatcher]) -> None:
        self._dispatcher = dispatcher
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
        """Wait at most this long until all due payouts are sent, and return whether they are."""
        with self._awake:
            return self._awake.wait_for(lambda: not (self._wanted or self._busy), seconds)

    def end(self, seconds: float) -> None:
        """Stop claiming, record the requests under way, and end the thread; wait at most this long."""
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
        """Run the dispatcher once. An error ends this run only, because the next sweep wakes the thread again."""
        close_old_connections()
        try:
            self._dispatcher().run(keep_going=lambda: not self._ending)
        except (redis.RedisError, OperationalError, InterfaceError) as error:
            log.warning("Sending stops until the next sweep: %s", error)
            connections.close_all()
        # The thread must outlive any error. Otherwise nothing would be sent until the process is started again.
        except Exception:
            alarm.exception("Sending stops until the next sweep")
            connections.close_all()
