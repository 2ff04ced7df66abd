"""Detection of a failover or a restore, after which the database no longer knows the last requests that left.

Each beat compares three things with the heartbeat's row: PostgreSQL's system identifier, its timeline, and the copies
of the counter in Redis and in a file. A failover and a recovery to a point in time begin a new timeline. A new cluster
has another system identifier. A snapshot of the whole machine keeps both, but its counter is behind the copies.
The dispatcher beats before it claims, so at most the claims of one second can be lost without a sign.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from markets import locks
from markets.models import Market
from payments.models import Breaker, DatabaseHeartbeat, Restore
from payments.payouts import breakers
from payments.payouts.restores.copies import Copies, Copy
from payments.policy import Policy

alarm = logging.getLogger("kasoko.alarm")

BEAT_SECONDS = 1.0
# The functions may be forbidden to the application's role, or be missing on a server that only speaks PostgreSQL's
# protocol. `to_regprocedure` returns NULL for a missing function.
_PRIVILEGES = """
    SELECT coalesce(has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'), false),
        coalesce(has_function_privilege(to_regprocedure('pg_current_wal_lsn()'), 'EXECUTE'), false)
        AND coalesce(has_function_privilege(to_regprocedure('pg_walfile_name(pg_lsn)'), 'EXECUTE'), false)
"""
_SYSTEM = "SELECT system_identifier::text FROM pg_control_system()"
# The first eight digits of the current WAL file's name change at the promotion. The timeline in pg_control_checkpoint
# changes only with the first checkpoint after it.
_TIMELINE = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"


def beat(*, at: datetime, copies: Copies, policy: Policy) -> Restore | None:
    """Record a heartbeat of the database, and copy it. If the database lost commits, stop sending and return a Restore.

    The copies are read before the row is locked. A copy is written only after its commit, so it is never ahead of a
    database that lost nothing.
    Locks: the heartbeat's row; if commits were lost, the lock of restores and the Breaker.
    """
    kept = copies.read()
    with transaction.atomic(durable=True):
        heartbeat = _locked_heartbeat(at)
        system, timeline = _server()
        own = [copy for copy in kept if copy.database == str(heartbeat.database)]
        sign = _sign_of_loss(heartbeat, system, timeline, own)
        restore = None
        if sign:
            restore = open_restore(sign=sign, survived_at=heartbeat.at, at=at, policy=policy)
        heartbeat.beats = 1 + max([heartbeat.beats, *(copy.beats for copy in own)])
        heartbeat.system, heartbeat.timeline = system or heartbeat.system, timeline or heartbeat.timeline
        heartbeat.at = at
        heartbeat.save()
    copies.write(database=str(heartbeat.database), beats=heartbeat.beats)
    return restore


def report(*, survived_at: datetime | None, at: datetime, policy: Policy) -> Restore:
    """Record a restore that a person reports. Payouts stop leaving.

    `survived_at` is the time of the backup. Without it, the newest heartbeat in the database counts.
    Locks: the heartbeat's row, the lock of restores, the Breaker.
    """
    with transaction.atomic(durable=True):
        heartbeat = _locked_heartbeat(at)
        times = [heartbeat.at, at] if survived_at is None else [heartbeat.at, survived_at, at]
        return open_restore(sign="A person reported it.", survived_at=min(times), at=at, policy=policy)


def open_restore(*, sign: str, survived_at: datetime, at: datetime, policy: Policy) -> Restore:
    """Record a restore and stop sending, in the caller's transaction.

    Locks: the lock of restores, which waits for settlements that are being finished; the Breaker.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [locks.RESTORES])
    newest = Market.objects.order_by("-pk").values_list("pk", flat=True).first()
    restore = Restore.objects.create(
        survived_at=survived_at,
        noticed_at=at,
        sign=sign[:300],
        needs_decision=at - survived_at > policy.resend_horizon,
        payouts_a_settlement=_most_unseen(survived_at, at, policy),
        last_market_id=newest or 0,
    )
    breakers.stop(Breaker.Cause.RESTORE, reason=f"The database lost its last commits. {sign}", at=at)
    alarm.critical("The database lost its commits since %s. Sending is stopped. %s", survived_at.isoformat(), sign)
    return restore


def _most_unseen(survived_at: datetime, stopped_at: datetime, policy: Policy) -> int:
    """Return the most requests that can have left without a row: the pace times the seconds, and those in flight."""
    seconds = max(0.0, (stopped_at - survived_at).total_seconds())
    return int(float(policy.payouts_a_second) * seconds) + 1 + policy.in_flight


def _locked_heartbeat(at: datetime) -> DatabaseHeartbeat:
    DatabaseHeartbeat.objects.bulk_create([DatabaseHeartbeat(at=at)], ignore_conflicts=True)
    return DatabaseHeartbeat.objects.select_for_update(no_key=True).get()


def _server() -> tuple[str, str]:
    """Return PostgreSQL's system identifier and timeline, each empty if we may not read it."""
    with connection.cursor() as cursor:
        cursor.execute(_PRIVILEGES)
        may_read_system, may_read_timeline = cursor.fetchone()
        values = []
        for allowed, sql in ((may_read_system, _SYSTEM), (may_read_timeline, _TIMELINE)):
            if allowed:
                cursor.execute(sql)
                values.append(str(cursor.fetchone()[0]))
            else:
                values.append("")
    return values[0], values[1]


def _sign_of_loss(heartbeat: DatabaseHeartbeat, system: str, timeline: str, own: list[Copy]) -> str:
    """Describe the sign that commits were lost since the heartbeat, or return an empty string."""
    if system and heartbeat.system and system != heartbeat.system:
        return f"PostgreSQL's system identifier was {heartbeat.system} and is {system}."
    if timeline and heartbeat.timeline and timeline != heartbeat.timeline:
        return f"PostgreSQL's timeline was {heartbeat.timeline} and is {timeline}."
    ahead = [copy for copy in own if copy.beats > heartbeat.beats]
    if ahead:
        newest = max(ahead, key=lambda copy: copy.beats)
        return f"The heartbeat in the database is {heartbeat.beats}. Its copy in {newest.place} is {newest.beats}."
    return ""


@dataclass
class Watch:
    """Beats at most once a second in each thread, and at once on each new connection to the database.

    `noticed` is called after a loss was recorded. A failover always breaks the connection, so the first claim after a
    failover is made after a beat.
    """

    copies: Copies
    policy: Policy
    clock: Callable[[], datetime]
    noticed: Callable[[Restore], None]
    _thread: threading.local = field(default_factory=threading.local)

    def __call__(self) -> None:
        """Beat if the last beat of this thread is a second old, or if its connection is new."""
        connection.ensure_connection()
        connected: Any = connection.connection
        if getattr(self._thread, "connected", None) is connected and time.monotonic() < self._thread.beat_at:
            return
        restore = beat(at=self.clock(), copies=self.copies, policy=self.policy)
        self._thread.connected, self._thread.beat_at = connection.connection, time.monotonic() + BEAT_SECONDS
        if restore is not None:
            self.noticed(restore)
