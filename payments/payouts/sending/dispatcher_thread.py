"""The dispatcher in a thread of its own, so that requests outlive the task that asked for them to be sent.

A task only wakes it, and is over at once; it sends for as long as something is due, and then sleeps. What it has under
way when its process is asked to end is heard out and written down; when the process is killed, the questions find out.
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
    """One thread, started when it is first woken. `dispatcher` makes what it runs."""

    def __init__(self, dispatcher: Callable[[], Dispatcher]) -> None:
        self._dispatcher = dispatcher
        self._awake = threading.Condition()
        self._wanted = False
        self._busy = False
        self._ending = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have it look for what is due. Returns at once; idempotent."""
        with self._awake:
            if self._ending:
                return
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="dispatcher", daemon=True)
                self._thread.start()
            self._awake.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether it came to rest, having sent all that was due, within this time."""
        with self._awake:
            return self._awake.wait_for(lambda: not (self._wanted or self._busy), seconds)

    def end(self, seconds: float) -> None:
        """Claim nothing more, write down what is under way, and end the thread, within this time if it can be."""
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
        """Run the dispatcher once. What goes wrong ends this run only: the next sweep wakes us again."""
        close_old_connections()
        try:
            self._dispatcher().run(keep_going=lambda: not self._ending)
        except (redis.RedisError, OperationalError, InterfaceError) as error:
            log.warning("Sending stops until the next sweep: %s", error)
            connections.close_all()
        # The thread must outlive what nobody foresaw, or nothing would be sent until the process is started again.
        except Exception:
            alarm.exception("Sending stops until the next sweep")
            connections.close_all()
