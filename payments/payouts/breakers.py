"""Breakers, which pause sending for a fault that concerns every payout.

Without breakers such a fault would fail one winner after another. Each cause has one row. After each pause of an open
breaker a single payout is sent as a probe. The pauses double up to `breaker_longest_pause`.

A breaker closes on evidence about a request that was POSTed after the breaker opened:
- an acceptance closes the causes on the way to M-Pesa;
- a payment closes every cause that is not ended by a person.
Only a person ends three causes: the switch, a result for a request that we do not have (`orphan`), and a database that
lost its last commits (`restore`). They send no probes. Settlement, callbacks and status queries always continue.
"""

import logging
from datetime import datetime

from django.db import transaction
from django.db.models import Q

from payments.models import Attempt, Breaker
from payments.policy import Policy
from users import audit

log = logging.getLogger(__name__)
alarm = logging.getLogger("kasoko.alarm")

Cause = Breaker.Cause

# An acceptance closes the breakers of these causes.
ON_THE_WAY = (Cause.THROTTLE, Cause.NETWORK, Cause.DOUBT)
BY_CODE = {
    "1": Cause.NO_FLOAT,
    "21": Cause.CREDENTIALS,
    "2001": Cause.CREDENTIALS,
    "8006": Cause.CREDENTIALS,
}


def allowance(*, at: datetime, policy: Policy) -> int | None:
    """Return the number of payouts that may be claimed now: None for any number, 1 for a probe, or 0.

    Runs in the caller's transaction. A call that returns 1 uses up the probe. The next probe is due after the pause.
    Locks: the open Breakers. If another worker holds one of them, that worker takes the probe and this call returns 0.
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


def trip(cause: Breaker.Cause, *, reason: str, at: datetime, policy: Policy) -> None:
    """Open a breaker in the caller's transaction. Idempotent: an open breaker does not change.

    Locks: the Breaker.
    """
    breaker = _locked(cause)
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


def watch(*, at: datetime, policy: Policy) -> None:
    """Open the breaker `doubt` or `failures` if too many of the latest requests are in doubt or failed.

    Runs in the caller's transaction.
    """
    states = list(Attempt.objects.order_by("-pk").values_list("state", "doubted_at")[: policy.breaker_window])
    if len(states) < policy.breaker_window:
        return
    enough = policy.breaker_failure_share * policy.breaker_window
    doubtful = sum(state == Attempt.State.IN_DOUBT and doubted_at is not None for state, doubted_at in states)
    failed = sum(state == Attempt.State.FAILED for state, _ in states)
    if doubtful >= enough:
        trip(Cause.DOUBT, reason=f"{doubtful} of the latest {len(states)} requests are in doubt", at=at, policy=policy)
    if failed >= enough:
        trip(Cause.FAILURES, reason=f"{failed} of the latest {len(states)} requests failed", at=at, policy=policy)


def acknowledged(posted_at: datetime | None) -> None:
    """Close the breakers on the way to M-Pesa, because a request POSTed at `posted_at` was accepted."""
    _close(Q(cause__in=ON_THE_WAY), posted_at)


def paid(posted_at: datetime | None) -> None:
    """Close every breaker that needs no person, because a request POSTed at `posted_at` was paid."""
    _close(~Q(cause__in=Breaker.ENDED_BY_A_PERSON), posted_at)


def stop(cause: Breaker.Cause, *, reason: str, at: datetime) -> None:
    """Stop sending in the caller's transaction until a person calls `lift`. `cause` is one of ENDED_BY_A_PERSON.

    Idempotent: an open breaker does not change.
    Locks: the Breaker.
    """
    breaker = _locked(cause)
    if breaker.opened_at is None:
        breaker.opened_at, breaker.probe_at, breaker.probes = at, None, 0
        breaker.reason, breaker.opened_by_id = reason[:300], None
        breaker.save()
        alarm.critical("Sending is stopped until a person ends the stop (%s): %s", cause, reason)


def lift(cause: Breaker.Cause, *, by: audit.Actor, reason: str, at: datetime) -> None:
    """End a stop (`stop`), and record the decision in the audit trail. Idempotent.

    Locks: the Breaker, then the end of the audit trail.
    """
    with transaction.atomic(durable=True):
        end_stop(cause, by=by, reason=reason, at=at)


def end_stop(cause: Breaker.Cause, *, by: audit.Actor, reason: str, at: datetime) -> None:
    """Do the work of `lift` in the caller's transaction.

    Locks: the Breaker, then the end of the audit trail.
    """
    breaker = _locked(cause)
    if breaker.opened_at is None:
        return
    before = {"sending": "stopped", "since": breaker.opened_at, "reason": breaker.reason}
    breaker.opened_at, breaker.probe_at, breaker.probes, breaker.closed_at = None, None, 0, at
    breaker.save()
    log.warning("The stop (%s) is ended by user %s: %s", cause, by.user_id, reason)
    audit.record(
        action="sending.lift",
        by=by,
        subject=f"breaker:{cause}",
        before=before,
        after={"sending": "on"},
        at=at,
        reason=reason,
    )


def switch_off(*, reason: str, by: audit.Actor, at: datetime) -> None:
    """Stop sending until `switch_on`. Settlement continues. Idempotent."""
    with transaction.atomic(durable=True):
        breaker = _locked(Cause.SWITCH)
        if breaker.opened_at is None:
            breaker.opened_at, breaker.probe_at, breaker.reason = at, None, reason[:300]
            breaker.opened_by_id = by.user_id
            breaker.save()
            alarm.error("Sending is switched off by user %s: %s", by.user_id, reason)
            _record("sending.switch_off", "off", by=by, at=at, reason=reason)


def switch_on(*, by: audit.Actor, at: datetime) -> None:
    """Start sending again. Idempotent."""
    with transaction.atomic(durable=True):
        off = Breaker.objects.filter(cause=Cause.SWITCH, opened_at__isnull=False)
        if off.update(opened_at=None, reason="", closed_at=at):
            log.warning("Sending is switched on by user %s", by.user_id)
            _record("sending.switch_on", "on", by=by, at=at)


def _record(action: str, sending: str, *, by: audit.Actor, at: datetime, reason: str = "") -> None:
    before = {"sending": "on" if sending == "off" else "off"}
    audit.record(
        action=action, by=by, subject="breaker:switch", before=before, after={"sending": sending}, at=at, reason=reason
    )


def _close(which: Q, posted_at: datetime | None) -> None:
    """Close the breakers that opened before the request was POSTed."""
    if posted_at is not None:
        Breaker.objects.filter(which, opened_at__lt=posted_at).update(opened_at=None, probe_at=None, probes=0)


def _locked(cause: Breaker.Cause) -> Breaker:
    """Lock and return the breaker's row. Create the row if it is missing."""
    Breaker.objects.bulk_create([Breaker(cause=cause)], ignore_conflicts=True)
    return Breaker.objects.select_for_update(no_key=True).get(cause=cause)
