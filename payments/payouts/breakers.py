"""Breakers, which pause sending for a fault that concerns every payout.

Without breakers such a fault would fail one winner after another. Each cause has one row. After each pause of an open
breaker a single payout is sent as a probe. The pauses double up to `breaker_longest_pause`.

A breaker closes on evidence about a request that was POSTed after the breaker opened:
- an acceptance closes ON_THE_WAY, and any answer of M-Pesa's host closes the network, such as an access token;
- a payment closes every cause that is not ended by a person;
- a proven failure closes the doubt.
Only a person ends three causes: the switch, a result for a request that we do not have (`orphan`), and a database that
lost its last commits (`restore`). They send no probes. Settlement, callbacks and status queries always continue.

Locks: a change locks every breaker by id, in one statement, and so never waits for a second one. The caller takes no
other lock afterwards, except a Settlement in a claim and the end of the audit trail.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from django.db import transaction

from payments.models import Breaker
from payments.payouts import outcomes
from payments.policy import Policy
from users import audit

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

Cause = Breaker.Cause

# An acceptance shows that these causes are gone. It says nothing about float, credentials and results.
ON_THE_WAY = (Cause.THROTTLE, Cause.NETWORK, Cause.SILENCE, Cause.SETTINGS)
BY_PAYMENT = [cause for cause in Cause if cause not in Breaker.ENDED_BY_A_PERSON]
BY_CODE = {
    "1": Cause.NO_FLOAT,
    "11": Cause.PRODUCT,
    "21": Cause.CREDENTIALS,
    "2001": Cause.CREDENTIALS,
    "2006": Cause.PRODUCT,
    "2028": Cause.PRODUCT,
    "8006": Cause.CREDENTIALS,
    "TP40153": Cause.CREDENTIALS,
    **dict.fromkeys(("18", "20", "22", "28", "31", "48"), Cause.CREDENTIALS),
}


# --- may a payout leave ----------------------------------------------------------------------------------------------


def allowance(*, at: datetime, policy: Policy) -> int | None:
    """Return the number of payouts that may be claimed now: None for any number, 1 for a probe, or 0.

    Runs in the caller's transaction. A call that returns 1 uses up the probe. The next probe is due after the pause.
    Locks: the open Breakers by id. If another worker holds one of them, that worker takes the probe and this call
    returns 0.
    """
    if policy.paused:
        return 0
    opened = list(Breaker.objects.filter(opened_at__isnull=False).order_by("pk"))
    if not opened:
        return None
    if any(breaker.probe_at is None or breaker.probe_at > at for breaker in opened):
        return 0
    held = Breaker.objects.filter(opened_at__isnull=False).order_by("pk")
    locked = list(held.select_for_update(skip_locked=True, no_key=True))
    if len(locked) != len(opened) or any(b.probe_at is None or b.probe_at > at for b in locked):
        return 0
    for breaker in locked:
        breaker.probes += 1
        breaker.probe_at = at + min(policy.breaker_pause * 2 ** min(breaker.probes, 10), policy.breaker_longest_pause)
        breaker.save(update_fields=["probes", "probe_at"])
    return 1


def any_open() -> bool:
    """Return True if any breaker is open."""
    return Breaker.objects.filter(opened_at__isnull=False).exists()


def closed_since(moment: datetime, cause: Breaker.Cause) -> bool:
    """Return True if the breaker of this cause was closed after a moment."""
    return Breaker.objects.filter(cause=cause, closed_at__gt=moment).exists()


# --- opening ---------------------------------------------------------------------------------------------------------


def trip(cause: Breaker.Cause, *, reason: str, at: datetime, policy: Policy) -> None:
    """Open a breaker in the caller's transaction. Idempotent: an open breaker does not change.

    Locks: all Breakers, unless it is open.
    """
    if Breaker.objects.filter(cause=cause, opened_at__isnull=False).exists():
        return
    breaker = locked(cause)
    if breaker.opened_at is not None:
        return
    breaker.opened_at, breaker.probes, breaker.reason = at, 0, reason[:300]
    breaker.probe_at = at + policy.breaker_pause
    breaker.save()
    alarm.error("Sending is paused (%s): %s", cause, reason)


def trip_by_code(code: str, *, reason: str, at: datetime, policy: Policy) -> None:
    """Open the breaker for a result code, if the code has a breaker.

    An unconfirmed report is enough, because a pause moves no money.
    """
    cause = BY_CODE.get(code)
    if cause is not None:
        trip(cause, reason=f"M-Pesa's code {code}: {reason}", at=at, policy=policy)


def judge(*, at: datetime, policy: Policy) -> None:
    """Open the breaker `doubt` or `failures` if too many of the latest outcomes are in doubt or failed.

    An acknowledged request without a result in time counts as a doubt. Only requests count that were POSTed after both
    breakers last closed. A few outcomes are enough, so that a young installation is watched too.
    Idempotent. Locks: all Breakers, but only if one of them opens.
    """
    causes = (Cause.DOUBT, Cause.FAILURES)
    watched = {row.cause: row for row in Breaker.objects.filter(cause__in=causes)}
    since = max((row.closed_at for row in watched.values() if row.closed_at), default=None)
    latest = outcomes.latest(since=since, at=at, window=policy.breaker_window)
    if latest.count < min(policy.breaker_window, outcomes.FEWEST):
        return
    enough = policy.breaker_failure_share * latest.count
    words = {
        Cause.DOUBT: (latest.in_doubt, f"{latest.in_doubt} of the latest {latest.count} requests are in doubt"),
        Cause.FAILURES: (latest.failed, f"{latest.failed} of the latest {latest.count} requests failed"),
    }
    for cause, (count, reason) in words.items():
        is_open = cause in watched and watched[cause].opened_at is not None
        if count >= enough and not is_open:
            with transaction.atomic():
                trip(cause, reason=reason, at=at, policy=policy)


def report_silence(*, oldest_posted_at: datetime, reason: str, at: datetime, policy: Policy) -> None:
    """Open the breaker `silence`, because a request POSTed at `oldest_posted_at` has no answer yet.

    Idempotent: a request POSTed before the breaker last closed does not open it again.
    Locks: all Breakers, unless it is open.
    """
    if Breaker.objects.filter(cause=Cause.SILENCE, closed_at__gte=oldest_posted_at).exists():
        return
    with transaction.atomic():
        trip(Cause.SILENCE, reason=reason, at=at, policy=policy)


# --- closing ---------------------------------------------------------------------------------------------------------


def acknowledged(posted_at: datetime | None, *, at: datetime) -> None:
    """Close the breakers on the way to M-Pesa, because a request POSTed at `posted_at` was accepted."""
    _close(ON_THE_WAY, posted_at, at)


def reached(asked_at: datetime | None, *, at: datetime) -> None:
    """Close the breaker of the network, because a call made at `asked_at` reached M-Pesa. Locks: all Breakers."""
    with transaction.atomic():
        _close((Cause.NETWORK,), asked_at, at)


def paid(posted_at: datetime | None, *, at: datetime) -> None:
    """Close every breaker that needs no person, because a request POSTed at `posted_at` was paid."""
    _close(BY_PAYMENT, posted_at, at)


def failed(posted_at: datetime | None, *, at: datetime) -> None:
    """Close the breaker `doubt`, because the result of a request POSTed at `posted_at` is proven."""
    _close((Cause.DOUBT,), posted_at, at)


# --- stops that a person ends ----------------------------------------------------------------------------------------


def stop(cause: Breaker.Cause, *, reason: str, at: datetime) -> None:
    """Stop sending in the caller's transaction until people end the stop. `cause` is one of ENDED_BY_A_PERSON.

    Idempotent: an open breaker does not change.
    Locks: all Breakers.
    """
    breaker = locked(cause)
    if breaker.opened_at is None:
        breaker.opened_at, breaker.probe_at, breaker.probes = at, None, 0
        breaker.reason, breaker.opened_by_id = reason[:300], None
        breaker.save()
        alarm.critical("Sending is stopped until a person ends the stop (%s): %s", cause, reason)


def end_stop(
    cause: Breaker.Cause, *, by: audit.Actor, reason: str, at: datetime, second: audit.Actor | None = None
) -> None:
    """End a stop (`stop`) in the caller's transaction, and record the decision of one or two people. Idempotent.

    Locks: all Breakers, then the end of the audit trail.
    """
    breaker = locked(cause)
    if breaker.opened_at is None:
        return
    before = {"sending": "stopped", "since": breaker.opened_at, "reason": breaker.reason}
    breaker.opened_at, breaker.probe_at, breaker.probes, breaker.closed_at = None, None, 0, at
    breaker.save()
    log.warning("The stop (%s) is ended by user %s: %s", cause, by.user_id, reason)
    for person in filter(None, (by, second)):
        audit.record(
            action="sending.lift",
            by=person,
            subject=f"breaker:{cause}",
            before=before,
            after={"sending": "on"},
            at=at,
            reason=reason,
        )


def switch_off(*, reason: str, by: audit.Actor, at: datetime) -> None:
    """Stop sending until people start it again (operations.starting). Settlement continues. Idempotent."""
    with transaction.atomic(durable=True):
        breaker = locked(Cause.SWITCH)
        if breaker.opened_at is None:
            breaker.opened_at, breaker.probe_at, breaker.reason = at, None, reason[:300]
            breaker.opened_by_id = by.user_id
            breaker.save()
            alarm.error("Sending is switched off by user %s: %s", by.user_id, reason)
            _record("sending.switch_off", "off", by=by, at=at, reason=reason)


def switch_on(*, by: audit.Actor, at: datetime, second: audit.Actor | None = None) -> None:
    """Start sending again in the caller's transaction, by the decision of one or two people. Idempotent.

    Locks: all Breakers, then the end of the audit trail.
    """
    breaker = locked(Cause.SWITCH)
    if breaker.opened_at is not None:
        breaker.opened_at, breaker.reason, breaker.closed_at = None, "", at
        breaker.save()
        log.warning("Sending is switched on by user %s", by.user_id)
        for person in filter(None, (by, second)):
            _record("sending.switch_on", "on", by=person, at=at)


def _record(action: str, sending: str, *, by: audit.Actor, at: datetime, reason: str = "") -> None:
    before = {"sending": "on" if sending == "off" else "off"}
    audit.record(
        action=action, by=by, subject="breaker:switch", before=before, after={"sending": sending}, at=at, reason=reason
    )


# --- rows ------------------------------------------------------------------------------------------------------------


def _close(causes: Sequence[Breaker.Cause], posted_at: datetime | None, at: datetime) -> None:
    """Close those of the breakers that opened before the request was POSTed."""
    if posted_at is None:
        return
    opened = Breaker.objects.filter(cause__in=causes, opened_at__lt=posted_at)
    if opened.exists():  # Almost always no breaker is open, and then no row is locked.
        _lock_all()
        opened.update(opened_at=None, probe_at=None, probes=0, closed_at=at)


def locked(cause: Breaker.Cause) -> Breaker:
    """Lock all breakers, and return the row of this cause. Create the row if it is missing."""
    Breaker.objects.bulk_create([Breaker(cause=cause)], ignore_conflicts=True)
    return next(breaker for breaker in _lock_all() if breaker.cause == cause)


def _lock_all() -> list[Breaker]:
    """Lock every breaker by id. Two transactions that change breakers therefore never wait for each other in a circle.

    Locks: all Breakers.
    """
    return list(Breaker.objects.order_by("pk").select_for_update(no_key=True))
